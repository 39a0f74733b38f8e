import type { Arena, Ptr } from '../core/arena.ts';
import { halfToFloat } from '../core/half.ts';
import type { ActivationKind, Kernels, WeightForm } from './kernels.ts';
import { weightBytes } from './weights.ts';
import { type Grid, gridValue, readGrid } from './weights-grid.ts';
import { fineRows, q6hGroupAt, q6hResidualAt } from './weights-q6h.ts';

/** The methods of the products and rows groups. */
export type DenseKernels = Pick<
  Kernels,
  | 'activationBytes'
  | 'prepareActivation'
  | 'matmul'
  | 'embed'
  | 'rmsNorm'
  | 'add'
  | 'mul'
  | 'sigmoid'
  | 'siluMul'
  | 'rope'
>;

/** Every rounding to f32 is written out: this file is the order of operations that the WASM kernels keep, to the bit. */
const f = Math.fround;
/** Round to nearest, ties to even, for |x| < 2^22. */
const nearest = (x: number): number => f(f(x + 12582912) - 12582912);
/** Groups whose largest magnitude lies below count as zero: 127 / peak must stay finite. */
const TINY = f(1e-30);

export const activationGroup = (kind: ActivationKind): number => (kind === 'i8h64' ? 64 : 32);

/** Bytes of one row: codes, then for each group of i8 (scale, scale * sum of codes, high part, step), of i8h64 (scale, scale * sum). */
export const activationRowBytes = (kind: ActivationKind, k: number): number =>
  kind === 'f32' ? 0 : kind === 'i8' ? k + (k / 32) * 16 : (k + (k / 64) * 8 + 15) & ~15;
/** A channel this many times as large as all others of its group of 32 gets a code of two bytes; see wasm/simd/activation.ts. */
const OUTLIER = 2.5;

export function denseReference(arena: Arena): DenseKernels {
  const floats = (ptr: Ptr, length: number) => new Float32Array(arena.memory.buffer, ptr, length);
  const view = (ptr: Ptr, bytes: number) => new DataView(arena.memory.buffer, ptr, bytes);

  return {
    activationBytes: (kind, rows, k) => rows * activationRowBytes(kind, k),

    prepareActivation(kind, x, rows, k, out) {
      if (kind === 'f32') return;
      const group = activationGroup(kind);
      const values = new Float32Array(group);
      for (let row = 0; row < rows; row++) {
        const at = out + row * activationRowBytes(kind, k);
        const codes = new Int8Array(arena.memory.buffer, at, k);
        for (let g = 0; g < k / group; g++) {
          values.set(floats(x + (row * k + g * group) * 4, group));
          if (kind === 'i8h64') hadamard64(values);
          const magnitudes = values.map(Math.abs);
          const peak = magnitudes.reduce((most, m) => Math.max(most, m), 0);
          let outlier = -1;
          let kept = peak;
          if (kind === 'i8') {
            const place = magnitudes.indexOf(peak);
            const rest = magnitudes.reduce((most, m, i) => (i === place ? most : Math.max(most, m)), 0);
            const scaled = Math.max(rest, f(peak / 128));
            if (peak > f(OUTLIER * rest) && scaled >= TINY) [outlier, kept] = [place, scaled];
          }
          const factor = kept >= TINY ? f(127 / kept) : 0;
          const scale = kept < TINY ? 0 : f(kept / 127);
          let sum = 0;
          let high = 0;
          for (let i = 0; i < group; i++) {
            const code = nearest(f(values[i]! * factor)) || 0;
            if (i === outlier) high = nearest(f(code / 128));
            codes[g * group + i] = i === outlier ? code - 128 * high : code;
            sum += code;
          }
          const meta = view(at + k + g * (kind === 'i8' ? 16 : 8), kind === 'i8' ? 16 : 8);
          meta.setFloat32(0, scale, true);
          meta.setFloat32(4, f(scale * sum), true);
          if (kind !== 'i8') continue;
          meta.setUint32(8, 0, true);
          if (outlier >= 0) meta.setInt8(8 + (outlier & 3), high);
          meta.setInt32(12, outlier >= 0 ? outlier >> 2 : -1, true);
        }
      }
    },

    matmul(form, activation, rows, weight, n, k, out, ldOut) {
      const w = view(weight, weightBytes(form, n, k));
      for (let row = 0; row < n; row++) {
        const dot = rowProduct(form, w, row, n, k);
        for (let r = 0; r < rows; r++)
          floats(out + (r * ldOut + row) * 4, 1)[0] = dot(arena.memory.buffer, activation, r);
      }
    },

    embed(form, table, n, k, ids, count, out) {
      const w = view(table, weightBytes(form, n, k));
      const rows = new Uint32Array(arena.memory.buffer, ids, count);
      for (let i = 0; i < count; i++) {
        const values = floats(out + i * k * 4, k);
        decodeRow(form, w, rows[i]!, n, k, values);
        if (form === 'q6h') for (let c = 0; c < k; c += 64) hadamard64(values.subarray(c, c + 64));
      }
    },

    rmsNorm(x, weight, rows, dim, eps, out) {
      const w = floats(weight, dim);
      for (let r = 0; r < rows; r++) {
        const from = floats(x + r * dim * 4, dim);
        const to = floats(out + r * dim * 4, dim);
        const mean = f(laneDot(from, from, dim) / dim);
        const inverse = f(1 / f(Math.sqrt(f(mean + f(eps)))));
        for (let i = 0; i < dim; i++) to[i] = f(from[i]! * inverse) * w[i]!;
      }
    },
    add(a, b, count, out) {
      const [x, y, to] = [floats(a, count), floats(b, count), floats(out, count)];
      for (let i = 0; i < count; i++) to[i] = x[i]! + y[i]!;
    },
    mul(a, b, count, out) {
      const [x, y, to] = [floats(a, count), floats(b, count), floats(out, count)];
      for (let i = 0; i < count; i++) to[i] = x[i]! * y[i]!;
    },
    sigmoid(x, count, out) {
      const [from, to] = [floats(x, count), floats(out, count)];
      for (let i = 0; i < count; i++) to[i] = sigmoid(from[i]!);
    },
    siluMul(gate, up, count, out) {
      const [g, u, to] = [floats(gate, count), floats(up, count), floats(out, count)];
      for (let i = 0; i < count; i++) to[i] = f(g[i]! * sigmoid(g[i]!)) * u[i]!;
    },
    rope(x, ldX, rows, heads, headDim, cos, sin, position) {
      const half = headDim / 2;
      for (let r = 0; r < rows; r++) {
        const c = floats(cos + (position + r) * half * 4, half);
        const s = floats(sin + (position + r) * half * 4, half);
        for (let h = 0; h < heads; h++) {
          const v = floats(x + (r * ldX + h * headDim) * 4, headDim);
          for (let i = 0; i < half; i++) {
            const [a, b] = [v[i]!, v[i + half]!];
            v[i] = f(a * c[i]!) - f(b * s[i]!);
            v[i + half] = f(b * c[i]!) + f(a * s[i]!);
          }
        }
      }
    },
  };
}

/** Orthonormal Hadamard matrix of 64 in f32, strides 1 to 32 in this order. */
function hadamard64(x: Float32Array): void {
  for (let half = 1; half < 64; half *= 2)
    for (let i = 0; i < 64; i += 2 * half)
      for (let j = i; j < i + half; j++) {
        const [a, b] = [x[j]!, x[j + half]!];
        x[j] = a + b;
        x[j + half] = a - b;
      }
  for (let i = 0; i < 64; i++) x[i]! *= 0.125;
}

/** Four lanes over the channels, (l0 + l1) + (l2 + l3), then the channels past the last multiple of 4. */
function laneDot(x: Float32Array, y: Float32Array, length: number): number {
  const lanes = [0, 0, 0, 0];
  const whole = length & ~3;
  for (let i = 0; i < whole; i++) lanes[i & 3] = f(lanes[i & 3]! + f(x[i]! * y[i]!));
  let sum = f(f(lanes[0]! + lanes[1]!) + f(lanes[2]! + lanes[3]!));
  for (let i = whole; i < length; i++) sum = f(sum + f(x[i]! * y[i]!));
  return sum;
}

/** exp by 2^n * p(r): Cephes' expf, the same steps as the WASM kernel; x clamped to -87..88, NaN kept. */
export function expF32(value: number): number {
  if (Number.isNaN(value)) return value;
  const x = Math.min(Math.max(value, -87), 88);
  const n = nearest(f(x * f(Math.LOG2E)));
  let r = f(x - f(n * f(0.693359375)));
  r = f(r - f(n * f(-2.1219444e-4)));
  let p = f(f(f(1.98756915e-4) * r) + f(1.3981999507e-3));
  p = f(f(p * r) + f(8.3334519073e-3));
  p = f(f(p * r) + f(4.1665795894e-2));
  p = f(f(p * r) + f(1.6666665459e-1));
  p = f(f(p * r) + f(5.0000001201e-1));
  p = f(f(f(p * f(r * r)) + r) + 1);
  return f(p * 2 ** n);
}
const sigmoid = (x: number): number => f(1 / f(1 + expF32(-x)));

/** The product of weight row `row` with activation row r, as a function of the activation. */
function rowProduct(
  form: WeightForm,
  w: DataView,
  row: number,
  n: number,
  k: number,
): (buffer: ArrayBuffer, activation: Ptr, r: number) => number {
  if (form === 'q4r') {
    const stride = activationRowBytes('i8', k);
    const coded = readQ4r(w, row, k);
    return (buffer, activation, r) => addProducts(0, coded, 32, buffer, activation + r * stride, k);
  }
  if (form === 'q6h') {
    const stride = activationRowBytes('i8h64', k);
    const mean = Float32Array.from({ length: k }, (_, i) => w.getFloat32(i * 4, true));
    const coded = readQ6h(w, q6hGroupAt(row, k), row & 7, k);
    const residual = row < fineRows(n) ? readQ6h(w, q6hResidualAt(row, n, k), row & 7, k) : undefined;
    return (buffer, activation, r) => {
      const at = activation + r * stride;
      let sum = 0;
      for (let g = 0; g < k / 64; g++) {
        const x = Float32Array.from(new Int8Array(buffer, at + g * 64, 64));
        const dot = laneDot(x, mean.subarray(g * 64, g * 64 + 64), 64);
        sum = f(sum + f(dot * new Float32Array(buffer, at + k + g * 8, 1)[0]!));
      }
      sum = addProducts(f(sum * coded.share), coded, 64, buffer, at, k);
      return residual ? addProducts(sum, residual, 64, buffer, at, k) : sum;
    };
  }
  const values = new Float32Array(k);
  decodeRow(form, w, row, n, k, values);
  if (form === 'f32') return (buffer, x, r) => laneDot(new Float32Array(buffer, x + r * k * 4, k), values, k);
  return (buffer, activation, r) => {
    const x = new Float32Array(buffer, activation + r * k * 4, k);
    let sum = 0;
    for (let b = 0; b < k; b += 32) {
      let block = 0;
      for (let i = b; i < b + 32; i++) block = f(block + f(x[i]! * values[i]!));
      sum = f(sum + block);
    }
    return sum;
  };
}

/** A row's values in f32; q6h still rotated. Layouts: weights.ts. */
function decodeRow(
  form: WeightForm,
  w: DataView,
  row: number,
  n: number,
  k: number,
  out: Float32Array,
): void {
  if (form === 'f32') for (let i = 0; i < k; i++) out[i] = w.getFloat32((row * k + i) * 4, true);
  else if (form === 'q4_1')
    for (let i = 0; i < k; i++) {
      const at = ((row >> 2) * (k >> 5) + (i >> 5)) * 80;
      const byte = w.getUint8(at + 16 + ((i & 31) >> 3) * 16 + (i & 3) * 4 + (row & 3));
      const scale = halfToFloat(w.getUint16(at + (row & 3) * 2, true));
      out[i] =
        f(scale * (i & 4 ? byte >> 4 : byte & 15)) + halfToFloat(w.getUint16(at + 8 + (row & 3) * 2, true));
    }
  else if (form === 'q8_0')
    for (let i = 0; i < k; i++) {
      const at = ((row >> 2) * (k >> 5) + (i >> 5)) * 136;
      out[i] =
        halfToFloat(w.getUint16(at + (row & 3) * 2, true)) * w.getInt8(at + 8 + (i & 31) * 4 + (row & 3));
    }
  else if (form === 'q4r') {
    const { codes, scales, shifts } = readQ4r(w, row, k);
    for (let i = 0; i < k; i++) out[i] = f(scales[i >> 5]! * codes[i]!) + shifts[i >> 5]!;
  } else {
    const coded = readQ6h(w, q6hGroupAt(row, k), row & 7, k);
    for (let i = 0; i < k; i++) out[i] = coded.share * w.getFloat32(i * 4, true);
    const add = ({ codes, scales, zeros }: CodedQ6h) => {
      for (let i = 0; i < k; i++) out[i]! += f(scales[i >> 6]! * f(codes[i]! - zeros[i >> 6]! / 4));
    };
    add(coded);
    if (row < fineRows(n)) add(readQ6h(w, q6hResidualAt(row, n, k), row & 7, k));
  }
}

/** A row as codes with a scale and a shift for each group. */
interface Coded {
  readonly codes: Uint8Array;
  readonly scales: Float32Array;
  readonly shifts: Float32Array;
}

/** sum + the products of all groups in order, as the kernels add them. `at`: a row of an integer activation. */
function addProducts(
  sum: number,
  { codes, scales, shifts }: Coded,
  group: number,
  buffer: ArrayBuffer,
  at: Ptr,
  k: number,
): number {
  const x = new Int8Array(buffer, at, k);
  const meta = new DataView(buffer, at + k);
  for (let g = 0; g < k / group; g++) {
    let dot = 0;
    for (let i = g * group; i < (g + 1) * group; i++) dot += x[i]! * codes[i]!;
    const pair = g * (group === 32 ? 16 : 8);
    const step = group === 32 ? meta.getInt32(pair + 12, true) : -1;
    if (step >= 0)
      for (let i = 0; i < 4; i++) dot += 128 * meta.getInt8(pair + 8 + i) * codes[g * 32 + step * 4 + i]!;
    const product = f(f(dot * scales[g]!) * meta.getFloat32(pair, true));
    sum = f(sum + f(product + f(shifts[g]! * meta.getFloat32(pair + 4, true))));
  }
  return sum;
}

const gridAt = (w: DataView, at: number): Grid => readGrid(w.getUint32(at, true));

/** `shifts` are the minima. */
function readQ4r(w: DataView, row: number, k: number): Coded {
  const codes = new Uint8Array(k);
  const scales = new Float32Array(k / 32);
  const shifts = new Float32Array(k / 32);
  const lane = row & 7;
  const base = (row >> 3) * (64 + (k / 32) * 144);
  const scaleGrid = gridAt(w, base + lane * 4);
  const minimumGrid = gridAt(w, base + 32 + lane * 4);
  for (let b = 0; b < k / 32; b++) {
    const at = base + 64 + b * 144;
    scales[b] = gridValue(scaleGrid, w.getUint8(at + lane));
    shifts[b] = gridValue(minimumGrid, w.getUint8(at + 8 + lane));
    for (let c = 0; c < 32; c++) {
      const byte = w.getUint8(at + 16 + (lane >> 2) * 64 + (c >> 3) * 16 + (lane & 3) * 4 + (c & 3));
      codes[b * 32 + c] = c & 4 ? byte >> 4 : byte & 15;
    }
  }
  return { codes, scales, shifts };
}

interface CodedQ6h extends Coded {
  /** As stored: in quarters of a code. */
  readonly zeros: Uint8Array;
  readonly share: number;
}

/** `base`: the group of 8 rows; `shifts` are -scale * zero / 4. */
function readQ6h(w: DataView, base: number, lane: number, k: number): CodedQ6h {
  const codes = new Uint8Array(k);
  const scales = new Float32Array(k / 64);
  const shifts = new Float32Array(k / 64);
  const zeros = new Uint8Array(k / 64);
  const grid = gridAt(w, base + lane * 4);
  for (let g = 0; g < k / 64; g++) {
    const at = base + 64 + g * 400;
    scales[g] = gridValue(grid, w.getUint8(at + lane));
    zeros[g] = w.getUint8(at + 8 + lane);
    shifts[g] = -f((zeros[g]! / 4) * scales[g]!);
    const plane = at + 16 + (lane >> 2) * 192 + (lane & 3) * 4;
    for (let c = 0; c < 64; c++) {
      const set = plane + (c >> 4) * 48 + (c & 3);
      const step = (c >> 2) & 3;
      const two = (j: number) => w.getUint8(set + j * 16) >> 6;
      codes[g * 64 + c] =
        step < 3 ? w.getUint8(set + step * 16) & 63 : (two(0) << 4) | (two(1) << 2) | two(2);
    }
  }
  return { codes, scales, shifts, zeros, share: w.getFloat32(base + 32 + lane * 4, true) };
}
