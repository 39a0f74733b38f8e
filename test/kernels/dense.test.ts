import { beforeAll, describe, expect, it } from 'vitest';
import { activationKind, type Kernels } from '../../src/kernels/kernels.ts';
import { selectKernels } from '../../src/kernels/select.ts';
import { packWeight, unpackWeight } from '../../src/kernels/weights.ts';
import { referenceKernels, wasmKernels, wasmModules } from '../helpers/kernels.ts';
import { normal, randomSource, seeded } from '../helpers/weights.ts';
import { matmulCases, widths } from './cases.ts';

/** Bytes before and after an output that a kernel must leave alone. */
const GUARD = 64;
const GUARD_BYTE = 0xa5;

/** A kernel set with a scratch area: operands are copied in, outputs lie between guards. */
class Bench {
  readonly kernels: Kernels;
  #area: number;
  #next = 0;
  #guards: number[] = [];
  static readonly BYTES = 24 * 1024 * 1024;

  constructor(kernels: Kernels) {
    this.kernels = kernels;
    this.#area = kernels.arena.allocStatic(Bench.BYTES);
  }
  reset(): void {
    this.#next = 0;
    this.#guards = [];
  }
  put(data: Uint8Array | Float32Array | Uint32Array): number {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    const ptr = this.#take(bytes.length);
    new Uint8Array(this.kernels.arena.memory.buffer).set(bytes, ptr);
    return ptr;
  }
  /** An output of `bytes`, filled with NaN patterns so that an element left out is seen. */
  room(bytes: number): number {
    const before = this.#take(GUARD);
    const ptr = this.#take(bytes);
    const after = this.#take(GUARD);
    this.#guards.push(before, ptr + bytes);
    const memory = new Uint8Array(this.kernels.arena.memory.buffer);
    memory.fill(GUARD_BYTE, before, before + GUARD);
    memory.fill(0xff, ptr, ptr + bytes);
    memory.fill(GUARD_BYTE, ptr + bytes, after + GUARD);
    return ptr;
  }
  bytes(ptr: number, length: number): Uint8Array {
    return new Uint8Array(this.kernels.arena.memory.buffer, ptr, length).slice();
  }
  floats(ptr: number, length: number): Float32Array {
    return new Float32Array(this.bytes(ptr, length * 4).buffer);
  }
  checkGuards(): void {
    for (const at of this.#guards)
      for (let i = 0; i < GUARD; i++)
        if (new Uint8Array(this.kernels.arena.memory.buffer)[at + i] !== GUARD_BYTE)
          throw new Error(`${this.kernels.name} ${this.kernels.variant} wrote outside its output, at ${i}`);
  }
  #take(bytes: number): number {
    const ptr = this.#area + this.#next;
    this.#next += Math.ceil(bytes / 16) * 16;
    if (this.#next > Bench.BYTES) throw new Error('the test area is too small');
    return ptr;
  }
}

let reference: Bench;
let all: Bench[];
beforeAll(() => {
  reference = new Bench(referenceKernels());
  all = [reference, new Bench(wasmKernels('relaxed')), new Bench(wasmKernels('plain'))];
});

/** Runs on every kernel set and expects the same bytes; returns them. */
function same(run: (bench: Bench) => { ptr: number; floats: number }): Float32Array {
  let expected: Float32Array | undefined;
  for (const bench of all) {
    bench.reset();
    const { ptr, floats } = run(bench);
    bench.checkGuards();
    const got = bench.floats(ptr, floats);
    if (!expected) expected = got;
    else expectSameBits(got, expected, `${bench.kernels.name} ${bench.kernels.variant}`);
  }
  return expected!;
}

function expectSameBits(got: Float32Array, expected: Float32Array, what: string): void {
  const [a, b] = [new Uint32Array(got.buffer), new Uint32Array(expected.buffer)];
  const at = a.findIndex((bits, i) => bits !== b[i] && !(Number.isNaN(got[i]) && Number.isNaN(expected[i])));
  if (at >= 0) throw new Error(`${what} differs at ${at}: ${got[at]} instead of ${expected[at]}`);
}

const randomFloats = (count: number, seed: number, scale = 1): Float32Array => {
  const gauss = normal(seeded(seed));
  return Float32Array.from({ length: count }, () => gauss() * scale);
};

function product(
  bench: Bench,
  form: (typeof matmulCases)[number]['form'],
  packed: Uint8Array,
  x: Float32Array,
  n: number,
  k: number,
  ldOut: number,
) {
  const rows = x.length / k;
  const kind = activationKind(form);
  const input = bench.put(x);
  const bytes = bench.kernels.activationBytes(kind, rows, k);
  const activation = kind === 'f32' ? input : bench.room(bytes);
  bench.kernels.prepareActivation(kind, input, rows, k, activation);
  const weight = bench.put(packed);
  const out = bench.room((rows - 1) * ldOut * 4 + n * 4);
  bench.kernels.matmul(form, activation, rows, weight, n, k, out, ldOut);
  return out;
}

describe('matmul: reference, relaxed and plain SIMD agree to the bit', { timeout: 60_000 }, () => {
  for (const { form, type, n, k, rows } of matmulCases)
    for (const count of rows)
      it(`${form} from ${type}, ${n} x ${k}, ${count} rows`, () => {
        const packed = packWeight(form, randomSource(type, n, k, n + k));
        const x = randomFloats(count * k, count + 7);
        const ldOut = n + 5;
        const floats = (count - 1) * ldOut + n;
        const result = same((bench) => ({ ptr: product(bench, form, packed, x, n, k, ldOut), floats }));
        for (let r = 0; r < count; r++)
          for (let i = 0; i < ldOut && r * ldOut + i < floats; i++) {
            // Between rows nothing is written: the filling is a NaN.
            expect(Number.isFinite(result[r * ldOut + i]!)).toBe(i < n);
          }
      });
});

describe('matmul: a row alone has the bits it has among 128', { timeout: 60_000 }, () => {
  for (const { form, type, n, k } of matmulCases)
    it(`${form} from ${type}, ${n} x ${k}`, () => {
      const packed = packWeight(form, randomSource(type, n, k, 3));
      const x = randomFloats(128 * k, 11);
      const bench = all[1]!;
      bench.reset();
      const whole = bench.floats(product(bench, form, packed, x, n, k, n), 128 * n);
      for (const row of [0, 1, 2, 3, 63, 126, 127]) {
        bench.reset();
        const alone = bench.floats(product(bench, form, packed, x.slice(row * k, (row + 1) * k), n, k, n), n);
        expectSameBits(alone, whole.slice(row * n, (row + 1) * n), `row ${row}`);
      }
    });
});

/** Largest error against float64 products of the decoded weights, relative to the norms of both vectors. */
function relativeError(form: (typeof matmulCases)[number]['form'], type: 'Q4_1' | 'Q8_0' | 'F32'): number {
  const [n, k, rows] = [64, 576, 8];
  const packed = packWeight(form, randomSource(type, n, k, 21));
  const values = unpackWeight(form, packed, n, k);
  const x = randomFloats(rows * k, 22);
  const bench = all[1]!;
  bench.reset();
  const out = bench.floats(product(bench, form, packed, x, n, k, n), rows * n);
  let worst = 0;
  for (let r = 0; r < rows; r++)
    for (let i = 0; i < n; i++) {
      let [dot, xx, ww] = [0, 0, 0];
      for (let c = 0; c < k; c++) {
        dot += x[r * k + c]! * values[i * k + c]!;
        xx += x[r * k + c]! ** 2;
        ww += values[i * k + c]! ** 2;
      }
      worst = Math.max(worst, Math.abs(out[r * n + i]! - dot) / Math.sqrt(xx * ww));
    }
  return worst;
}

describe('matmul against float64 products of the unpacked weights', () => {
  // The worst of 512 dots of random vectors, divided by the norms.
  for (const [form, type, bound] of [
    ['f32', 'F32', 2e-7],
    ['q4_1', 'Q4_1', 2e-7],
    ['q8_0', 'Q8_0', 2e-7],
    // int8 activations: peak/127 steps, rms error 0.6 % of the activation, which a dot over 576 channels averages.
    ['q4r', 'Q4_1', 1e-3],
    ['q6h', 'Q8_0', 1e-3],
  ] as const)
    it(`${form}: within ${bound} of the norms`, () => {
      const error = relativeError(form, type);
      expect(error).toBeLessThan(bound);
      // An integer form that was as good as float would not be what it says.
      if (bound === 1e-3) expect(error).toBeGreaterThan(1e-6);
    });
});

describe('activations', () => {
  it('a NaN or an infinity reaches every output of its row, and no other row', () => {
    for (const form of ['q4r', 'q6h'] as const)
      for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
        const packed = packWeight(form, randomSource('F32', 16, 128, 5));
        const x = randomFloats(5 * 128, 6);
        x[2 * 128 + 77] = bad;
        const out = same((bench) => ({ ptr: product(bench, form, packed, x, 16, 128, 16), floats: 80 }));
        for (let i = 0; i < 80; i++) expect(Number.isFinite(out[i]!)).toBe(i < 32 || i >= 48);
      }
  });
  it('outliers of every size and place: the same bits everywhere, alone and in company', () => {
    const [n, k, rows] = [24, 1536, 9];
    const packed = packWeight('q4r', randomSource('Q4_1', n, k, 41));
    const x = randomFloats(rows * k, 42);
    const random = seeded(43);
    for (let g = 0; g < (rows * k) / 32; g++) {
      const size = [0, 2.4, 2.6, 9, 120, 5000, 1e6, 1e30][g % 8]!;
      if (size) x[g * 32 + Math.floor(random() * 32)] = random() < 0.5 ? -size * 3 : size * 3;
      // Two equal peaks are no outlier.
      if (g % 11 === 0) x[g * 32] = x[g * 32 + 9] = -77;
      // A channel alone in its group.
      if (g % 13 === 0) x.fill(0, g * 32 + 1, g * 32 + 32);
    }
    const all = same((bench) => ({ ptr: product(bench, 'q4r', packed, x, n, k, n), floats: rows * n }));
    for (const v of all) expect(Number.isFinite(v)).toBe(true);
    const alone = same((bench) => ({
      ptr: product(bench, 'q4r', packed, x.slice(8 * k), n, k, n),
      floats: n,
    }));
    expectSameBits(alone, all.slice(8 * n), 'the last row alone');
  });
  it('an outlier leaves the others their precision: within 1e-3 of their norms', () => {
    const [n, k] = [64, 576];
    const packed = packWeight('q4r', randomSource('Q4_1', n, k, 44));
    const values = unpackWeight('q4r', packed, n, k);
    const x = randomFloats(k, 45);
    const rest = Math.sqrt(x.reduce((sum, v) => sum + v * v, 0));
    for (let g = 0; g < k; g += 32) x[g + ((g * 7) % 32)] = g % 64 ? 60 : -60;
    const out = same((bench) => ({ ptr: product(bench, 'q4r', packed, x, n, k, n), floats: n }));
    for (let i = 0; i < n; i++) {
      const row = values.subarray(i * k, (i + 1) * k);
      const norm = Math.sqrt(row.reduce((sum, v) => sum + v * v, 0));
      const dot = row.reduce((sum, v, c) => sum + v * x[c]!, 0);
      expect(Math.abs(out[i]! - dot) / (norm * rest)).toBeLessThan(1e-3);
    }
  });
  it('zeros and the smallest numbers give zero, huge ones stay finite', () => {
    for (const [value, expected] of [
      [0, 0],
      [-0, 0],
      [1e-42, 0],
      [1e-31, 0],
    ] as const) {
      const packed = packWeight('q4r', randomSource('Q4_1', 8, 64, 5));
      const x = new Float32Array(64).fill(value);
      const out = same((bench) => ({ ptr: product(bench, 'q4r', packed, x, 8, 64, 8), floats: 8 }));
      for (const v of out) expect(Math.abs(v)).toBe(expected);
    }
    const packed = packWeight('q4r', randomSource('Q4_1', 8, 64, 5));
    const x = new Float32Array(64).fill(1e30);
    const out = same((bench) => ({ ptr: product(bench, 'q4r', packed, x, 8, 64, 8), floats: 8 }));
    for (const v of out) expect(Number.isFinite(v)).toBe(true);
  });
});

describe('embed: rows equal unpackWeight (q6h within 1e-6 of the row, others to the bit)', () => {
  for (const [form, type, n, k] of [
    ['f32', 'F32', 11, 172],
    ['q4_1', 'Q4_1', 11, 96],
    ['q8_0', 'Q8_0', 11, 96],
    ['q4r', 'Q4_1', 19, 96],
    ['q6h', 'Q8_0', 19, 192],
    ['q6h', 'Q8_0', 16389, 64],
  ] as const)
    it(`${form}, ${n} x ${k}`, () => {
      const packed = packWeight(form, randomSource(type, n, k, 8));
      const ids = Uint32Array.of(0, n - 1, 3, 3, 7);
      const out = same((bench) => {
        const ptr = bench.room(ids.length * k * 4);
        bench.kernels.embed(form, bench.put(packed), n, k, bench.put(ids), ids.length, ptr);
        return { ptr, floats: ids.length * k };
      });
      const values = unpackWeight(form, packed, n, k);
      const peak = values.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
      const bound = form === 'q6h' ? 1e-6 * peak : form === 'q4r' ? 2e-7 * peak : 0;
      ids.forEach((id, i) => {
        for (let c = 0; c < k; c++)
          expect(Math.abs(out[i * k + c]! - values[id * k + c]!)).toBeLessThanOrEqual(bound);
      });
    });
});

describe('row operations: reference, relaxed and plain SIMD agree to the bit', () => {
  for (const width of widths) {
    it(`rmsNorm, width ${width}; within 1e-6 of float64, in place too`, () => {
      const rows = 3;
      const x = randomFloats(rows * width, width, 3);
      const weight = randomFloats(width, width + 1);
      const out = same((bench) => {
        const ptr = bench.room(x.byteLength);
        bench.kernels.rmsNorm(bench.put(x), bench.put(weight), rows, width, 1e-5, ptr);
        return { ptr, floats: x.length };
      });
      for (let r = 0; r < rows; r++) {
        const row = x.subarray(r * width, (r + 1) * width);
        const norm = Math.sqrt(row.reduce((sum, v) => sum + v * v, 0) / width + 1e-5);
        row.forEach((v, i) => {
          const exact = (v / norm) * weight[i]!;
          expect(Math.abs(out[r * width + i]! - exact)).toBeLessThan(1e-6 * (1 + Math.abs(exact)));
        });
      }
      const again = same((bench) => {
        const ptr = bench.put(x);
        bench.kernels.rmsNorm(ptr, bench.put(weight), rows, width, 1e-5, ptr);
        return { ptr, floats: x.length };
      });
      expectSameBits(again, out, 'in place');
    });

    it(`add, mul, sigmoid, siluMul, width ${width}; sigmoid within 1e-6 relative`, () => {
      const a = randomFloats(width, 31, 8);
      const b = randomFloats(width, 32);
      const binary = (op: 'add' | 'mul' | 'siluMul') =>
        same((bench) => {
          const ptr = bench.room(width * 4);
          bench.kernels[op](bench.put(a), bench.put(b), width, ptr);
          return { ptr, floats: width };
        });
      const [sum, times, silu] = [binary('add'), binary('mul'), binary('siluMul')];
      const sigmoid = same((bench) => {
        const ptr = bench.room(width * 4);
        bench.kernels.sigmoid(bench.put(a), width, ptr);
        return { ptr, floats: width };
      });
      for (let i = 0; i < width; i++) {
        const s = 1 / (1 + Math.exp(-a[i]!));
        expect(sum[i]).toBe(Math.fround(a[i]! + b[i]!));
        expect(times[i]).toBe(Math.fround(a[i]! * b[i]!));
        expect(Math.abs(sigmoid[i]! / s - 1)).toBeLessThan(1e-6);
        expect(Math.abs(silu[i]! - a[i]! * s * b[i]!)).toBeLessThanOrEqual(
          1e-6 * Math.abs(a[i]! * s * b[i]!),
        );
      }
    });
  }

  it('sigmoid and siluMul at the ends: saturated, never NaN from a finite number; NaN stays NaN', () => {
    const x = Float32Array.of(-1e30, -200, -88, -87, -20, -0, 0, 20, 88, 200, 1e30, Number.NaN, 3);
    const ones = new Float32Array(x.length).fill(1);
    const s = same((bench) => {
      const ptr = bench.room(x.byteLength);
      bench.kernels.sigmoid(bench.put(x), x.length, ptr);
      return { ptr, floats: x.length };
    });
    const silu = same((bench) => {
      const ptr = bench.room(x.byteLength);
      bench.kernels.siluMul(bench.put(x), bench.put(ones), x.length, ptr);
      return { ptr, floats: x.length };
    });
    x.forEach((v, i) => {
      expect(Number.isNaN(s[i]!)).toBe(Number.isNaN(v));
      expect(Number.isNaN(silu[i]!)).toBe(Number.isNaN(v));
      if (Number.isNaN(v)) return;
      expect(s[i]).toBeGreaterThanOrEqual(0);
      expect(s[i]).toBeLessThanOrEqual(1);
      if (v > -1e9)
        expect(Math.abs(silu[i]! - v / (1 + Math.exp(-v)))).toBeLessThan(1e-5 * (1 + Math.abs(v)));
    });
  });

  for (const [headDim, heads] of [
    [64, 9],
    [8, 8],
    [6, 2],
    [12, 1],
  ] as const)
    it(`rope, ${heads} heads of ${headDim}: within 1e-6 of float64, rows apart, others untouched`, () => {
      const [rows, position] = [5, 3];
      const ldX = heads * headDim + 8;
      const half = headDim / 2;
      const x = randomFloats(rows * ldX, headDim);
      const angle = (p: number, i: number) => p * 10000 ** (-i / half);
      const table = (fn: (a: number) => number) =>
        Float32Array.from({ length: (position + rows) * half }, (_, j) =>
          fn(angle(Math.floor(j / half), j % half)),
        );
      const out = same((bench) => {
        const ptr = bench.put(x);
        const [cos, sin] = [bench.put(table(Math.cos)), bench.put(table(Math.sin))];
        bench.kernels.rope(ptr, ldX, rows, heads, headDim, cos, sin, position);
        return { ptr, floats: x.length };
      });
      for (let r = 0; r < rows; r++)
        for (let j = 0; j < ldX; j++) {
          const at = r * ldX + j;
          const i = j % headDim;
          let expected = x[at]!;
          if (j < heads * headDim) {
            const a = angle(position + r, i % half);
            expected =
              i < half
                ? x[at]! * Math.cos(a) - x[at + half]! * Math.sin(a)
                : x[at]! * Math.cos(a) + x[at - half]! * Math.sin(a);
          }
          expect(Math.abs(out[at]! - expected)).toBeLessThan(1e-6);
        }
    });
});

describe('select', () => {
  it('takes relaxed SIMD where it runs, plain SIMD where the module is refused, and says why', () => {
    const maxBytes = 1 << 20;
    expect(selectKernels({ modules: wasmModules, maxBytes }).variant).toBe('relaxed');
    const broken = {
      ...wasmModules,
      relaxed: () => new WebAssembly.Module(Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, 99)),
    };
    const { kernels, variant, reason } = selectKernels({ modules: broken, maxBytes });
    expect(variant).toBe('plain');
    expect(kernels.variant).toBe('simd');
    expect(reason).toMatch(/lacks relaxed SIMD/);
    expect(() => selectKernels({ modules: wasmModules, maxBytes: 1000 })).toThrow(/kernel memory/);
  });
});
