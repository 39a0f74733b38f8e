import { InvalidInputError, UnsupportedModelError } from '../core/errors.ts';
import { floatToHalf, halfToFloat } from '../core/half.ts';
import type { WeightForm } from './kernels.ts';
import { type BlockReader, packQ4r, unpackQ4r } from './weights-q4r.ts';
import { packQ6h, q6hBytes, unpackQ6h } from './weights-q6h.ts';

/**
 * How each weight form lies in memory. A matrix is [n, k], row-major: output row r is the dot of weight row r with the
 * activation. All numbers little-endian; sizes are multiples of 16 bytes. Rows missing in the last group are zeros.
 *
 * f32: rows one after the other.
 *
 * q4_1, groups of 4 rows; a group holds k/32 blocks of 80 bytes (5 bits a weight):
 *   f16 scale[4], f16 minimum[4], one each per row
 *   4 vectors of 16 bytes; vector v: low nibbles channels 8v..8v+3, high nibbles 8v+4..8v+7; byte = (channel % 4) * 4 + row
 *   value = f32(f32(scale * code) + minimum), as GGUF defines it
 *
 * q8_0, groups of 4 rows; a group holds k/32 blocks of 136 bytes (8.5 bits a weight):
 *   f16 scale[4]; i8 code[32 channels][4 rows]; value = f32(scale * code)
 *
 * q4r, groups of 8 rows (4.5 bits a weight and 8 bytes a row):
 *   u32 scaleGrid[8], u32 minimumGrid[8]: upper half a bfloat16 `step`, lower half an i16 `origin`
 *   k/32 blocks of 144 bytes:
 *     u8 scale[8], u8 minimum[8]                         scale = step * (origin + byte), minimum likewise
 *     4 vectors of rows 0..3, then 4 of rows 4..7; vector v: low nibbles channels 8v..8v+3, high nibbles 8v+4..8v+7;
 *     byte = (row % 4) * 4 + channel % 4                 (an i32 lane is an output row)
 *   value = scale * code + minimum
 *
 * q6h (6.25 bits a weight, 8 bytes a row, 4 bytes a channel; of a vocabulary of at least 16,384 rows the
 * first 2,048 twice): rows are rotated by the orthonormal
 * Hadamard matrix of 64 along k, in groups of 64 channels.
 *   f32 mean[k]                                          mean of the rotated rows
 *   groups of 8 rows, then those of the residuals of the first 2,048 rows of a vocabulary, each:
 *     u32 scaleGrid[8] as in q4r
 *     f32 share[8]                                       part of the mean that is in the row; 1 for residuals, which have none
 *     k/64 blocks of 400 bytes:
 *     u8 scale[8], u8 zero[8]                            value = share * mean + scale * (code - zero / 4), code 0..63
 *     for rows 0..3, then for rows 4..7:
 *       4 sets of 3 vectors; set s holds channels 16s..16s+15, byte = (row % 4) * 4 + channel % 4.
 *       Vector j: low 6 bits channels 16s+4j..16s+4j+3, upper 2 bits two bits of channels 16s+12..16s+15:
 *       bits 5 and 4 in vector 0, 3 and 2 in vector 1, 1 and 0 in vector 2
 */
export type SourceType = 'F32' | 'F16' | 'Q8_0' | 'Q4_0' | 'Q4_1';

/** A matrix as GGUF stores it: `data` holds n rows of k elements. */
export interface SourceMatrix {
  readonly type: SourceType;
  readonly data: Uint8Array;
  readonly n: number;
  readonly k: number;
}

const pad16 = (bytes: number): number => Math.ceil(bytes / 16) * 16;
/** Elements and bytes of one block. Source: ggml-common.h (block_q4_0, block_q4_1, block_q8_0). */
export const SOURCE_BLOCK: Readonly<Record<SourceType, { elements: number; bytes: number }>> = {
  F32: { elements: 1, bytes: 4 },
  F16: { elements: 1, bytes: 2 },
  Q8_0: { elements: 32, bytes: 34 },
  Q4_0: { elements: 32, bytes: 18 },
  Q4_1: { elements: 32, bytes: 20 },
};

/** Channels that a form groups: k must be a multiple. */
export const weightGroup = (form: WeightForm): number => (form === 'f32' ? 1 : form === 'q6h' ? 64 : 32);

/** Bytes that `packWeight` returns. @throws InvalidInputError when the form cannot hold k channels. */
export function weightBytes(form: WeightForm, n: number, k: number): number {
  if (k % weightGroup(form) !== 0)
    throw new InvalidInputError(
      `form ${form} needs k to be a multiple of ${weightGroup(form)}, got ${k}`,
      'k',
    );
  switch (form) {
    case 'f32':
      return pad16(n * k * 4);
    case 'q4_1':
      return Math.ceil(n / 4) * (k / 32) * 80;
    case 'q8_0':
      return pad16(Math.ceil(n / 4) * (k / 32) * 136);
    case 'q4r':
      return Math.ceil(n / 8) * (64 + (k / 32) * 144);
    case 'q6h':
      return q6hBytes(n, k);
  }
}

/**
 * The matrix in a kernel's form.
 * q4_1 takes Q4_1 and Q4_0, q8_0 takes Q8_0 (both hold the stored values exactly); f32, q4r and q6h take every type, q4r keeping
 * the codes of Q4_1 and Q4_0. Deterministic.
 * @throws UnsupportedModelError for another pair; InvalidInputError when `data` has not n * k elements
 */
export function packWeight(form: WeightForm, source: SourceMatrix): Uint8Array {
  const { type, data, n, k } = source;
  const block = SOURCE_BLOCK[type];
  const expected = (n * k * block.bytes) / block.elements;
  if (data.byteLength !== expected)
    throw new InvalidInputError(
      `a ${type} matrix of ${n} x ${k} has ${expected} bytes, got ${data.byteLength}`,
      'data',
    );
  const out = new Uint8Array(weightBytes(form, n, k));
  if (form === 'f32') decodeSource(source, new Float32Array(out.buffer, 0, n * k));
  else if (form === 'q4_1' && (type === 'Q4_1' || type === 'Q4_0')) packQ41(source, out);
  else if (form === 'q8_0' && type === 'Q8_0') packQ80(source, out);
  else if (form === 'q4r') packQ4r(blocksOf(source), n, k, out);
  else if (form === 'q6h') packQ6h((row, into) => decodeRow(source, row, into), n, k, out);
  else throw new UnsupportedModelError(`form ${form} cannot hold ${type} weights exactly`, { form, type });
  return out;
}

/** The values that a form decodes to, f32 [n, k]: for tests and for lowering to other runtimes' inputs. Rotations are undone. */
export function unpackWeight(form: WeightForm, bytes: Uint8Array, n: number, k: number): Float32Array {
  const size = weightBytes(form, n, k);
  if (bytes.byteLength !== size)
    throw new InvalidInputError(
      `form ${form} of ${n} x ${k} has ${size} bytes, got ${bytes.byteLength}`,
      'bytes',
    );
  const out = new Float32Array(n * k);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  switch (form) {
    case 'f32':
      for (let i = 0; i < n * k; i++) out[i] = view.getFloat32(i * 4, true);
      break;
    case 'q4_1':
      for (let row = 0; row < n; row++)
        for (let b = 0; b < k / 32; b++) {
          const at = ((row >> 2) * (k / 32) + b) * 80;
          const scale = halfToFloat(view.getUint16(at + (row & 3) * 2, true));
          const minimum = halfToFloat(view.getUint16(at + 8 + (row & 3) * 2, true));
          for (let c = 0; c < 32; c++) {
            const byte = bytes[at + 16 + (c >> 3) * 16 + (c & 3) * 4 + (row & 3)]!;
            const code = c & 4 ? byte >> 4 : byte & 15;
            out[row * k + b * 32 + c] = Math.fround(scale * code) + minimum;
          }
        }
      break;
    case 'q8_0':
      for (let row = 0; row < n; row++)
        for (let b = 0; b < k / 32; b++) {
          const at = ((row >> 2) * (k / 32) + b) * 136;
          const scale = halfToFloat(view.getUint16(at + (row & 3) * 2, true));
          for (let c = 0; c < 32; c++)
            out[row * k + b * 32 + c] = scale * view.getInt8(at + 8 + c * 4 + (row & 3));
        }
      break;
    case 'q4r':
      unpackQ4r(bytes, n, k, out);
      break;
    case 'q6h':
      unpackQ6h(bytes, n, k, out);
      break;
  }
  return out;
}

/** Where row `row`, block `b` of a blocked source type starts. */
const sourceAt = ({ type, k }: SourceMatrix, row: number, b: number): number =>
  (row * (k / 32) + b) * SOURCE_BLOCK[type].bytes;
const viewOf = (data: Uint8Array): DataView => new DataView(data.buffer, data.byteOffset, data.byteLength);

/** GGUF's Q4 nibble order: byte i holds element i low and element i + 16 high. */
function nibbles(data: Uint8Array, at: number, codes: Uint8Array): void {
  for (let i = 0; i < 16; i++) {
    codes[i] = data[at + i]! & 15;
    codes[i + 16] = data[at + i]! >> 4;
  }
}

function packQ41(source: SourceMatrix, out: Uint8Array): void {
  const { type, data, n, k } = source;
  const from = viewOf(data);
  const to = viewOf(out);
  const codes = new Uint8Array(32);
  for (let row = 0; row < n; row++)
    for (let b = 0; b < k / 32; b++) {
      const src = sourceAt(source, row, b);
      const at = ((row >> 2) * (k / 32) + b) * 80;
      const scale = from.getUint16(src, true);
      to.setUint16(at + (row & 3) * 2, scale, true);
      // Q4_0 is scale * (code - 8); 8 * scale is exact in binary16 unless it overflows.
      const minimum = type === 'Q4_1' ? from.getUint16(src + 2, true) : floatToHalf(-8 * halfToFloat(scale));
      if ((minimum & 0x7c00) === 0x7c00)
        throw new UnsupportedModelError(`a ${type} block's minimum exceeds binary16`, { row, block: b });
      to.setUint16(at + 8 + (row & 3) * 2, minimum, true);
      nibbles(data, src + (type === 'Q4_1' ? 4 : 2), codes);
      for (let c = 0; c < 32; c++)
        out[at + 16 + (c >> 3) * 16 + (c & 3) * 4 + (row & 3)]! |= c & 4 ? codes[c]! << 4 : codes[c]!;
    }
}

function packQ80(source: SourceMatrix, out: Uint8Array): void {
  const { data, n, k } = source;
  for (let row = 0; row < n; row++)
    for (let b = 0; b < k / 32; b++) {
      const src = sourceAt(source, row, b);
      const at = ((row >> 2) * (k / 32) + b) * 136;
      out[at + (row & 3) * 2] = data[src]!;
      out[at + (row & 3) * 2 + 1] = data[src + 1]!;
      for (let c = 0; c < 32; c++) out[at + 8 + c * 4 + (row & 3)] = data[src + 2 + c]!;
    }
}

/** One row's values as GGUF defines them. */
export function decodeRow(source: SourceMatrix, row: number, into: Float32Array): void {
  const { type, data, k } = source;
  const view = viewOf(data);
  if (type === 'F32') for (let c = 0; c < k; c++) into[c] = view.getFloat32((row * k + c) * 4, true);
  else if (type === 'F16')
    for (let c = 0; c < k; c++) into[c] = halfToFloat(view.getUint16((row * k + c) * 2, true));
  else {
    const codes = new Uint8Array(32);
    for (let b = 0; b < k / 32; b++) {
      const at = sourceAt(source, row, b);
      const scale = halfToFloat(view.getUint16(at, true));
      if (type === 'Q8_0') for (let c = 0; c < 32; c++) into[b * 32 + c] = scale * view.getInt8(at + 2 + c);
      else {
        const minimum = type === 'Q4_1' ? halfToFloat(view.getUint16(at + 2, true)) : -8 * scale;
        nibbles(data, at + (type === 'Q4_1' ? 4 : 2), codes);
        for (let c = 0; c < 32; c++) into[b * 32 + c] = Math.fround(scale * codes[c]!) + minimum;
      }
    }
  }
}

/** All values of a source matrix, f32 [n, k]. */
export function decodeSource(source: SourceMatrix, out: Float32Array): void {
  for (let row = 0; row < source.n; row++)
    decodeRow(source, row, out.subarray(row * source.k, (row + 1) * source.k));
}

function blocksOf(source: SourceMatrix): BlockReader {
  const { type, data, k } = source;
  const view = viewOf(data);
  if (type === 'Q4_1' || type === 'Q4_0')
    return (row, b, codes) => {
      const at = sourceAt(source, row, b);
      const scale = halfToFloat(view.getUint16(at, true));
      nibbles(data, at + (type === 'Q4_1' ? 4 : 2), codes);
      return { scale, minimum: type === 'Q4_1' ? halfToFloat(view.getUint16(at + 2, true)) : -8 * scale };
    };
  const values = new Float32Array(k);
  let held = -1;
  return (row, b, codes) => {
    if (held !== row) decodeRow(source, (held = row), values);
    return fitBlock(values.subarray(b * 32, b * 32 + 32), codes);
  };
}

/** Scale, minimum and codes of 32 values: the range shrunk in steps, refitted by least squares, the smallest squared error kept. */
function fitBlock(x: Float32Array, codes: Uint8Array): { scale: number; minimum: number } {
  let lo = x[0]!;
  let hi = x[0]!;
  for (const v of x) {
    if (v < lo) lo = v;
    if (v > hi) hi = v;
  }
  let best = { error: Number.POSITIVE_INFINITY, scale: 0, minimum: lo };
  const trial = new Uint8Array(32);
  for (let step = 0; step <= 12 && hi > lo; step++) {
    const shrink = ((hi - lo) * step) / 60;
    const inverse = 15 / (hi - lo - shrink);
    let [sum, sumCC, sumX, sumCX, sumXX] = [0, 0, 0, 0, 0];
    for (let i = 0; i < 32; i++) {
      const c = Math.min(15, Math.max(0, Math.round((x[i]! - lo - shrink / 2) * inverse)));
      trial[i] = c;
      sum += c;
      sumCC += c * c;
      sumX += x[i]!;
      sumCX += c * x[i]!;
      sumXX += x[i]! * x[i]!;
    }
    const determinant = 32 * sumCC - sum * sum;
    if (determinant === 0) continue;
    const scale = (32 * sumCX - sum * sumX) / determinant;
    const minimum = (sumX - scale * sum) / 32;
    const error = sumXX - scale * sumCX - minimum * sumX;
    if (error < best.error) {
      best = { error, scale, minimum };
      codes.set(trial);
    }
  }
  if (best.error === Number.POSITIVE_INFINITY) codes.fill(0);
  return best;
}
