import { gridByte, gridFor, gridValue, readGrid } from './weights-grid.ts';

const BLOCK = 400;
const HEADER = 32;
const GROUP = 64;
/** Where the group of 8 rows that holds `row` starts. */
const groupAt = (row: number, k: number): number => k * 4 + (row >> 3) * (HEADER + (k / GROUP) * BLOCK);
/** The byte of channel c in vector j of its set. */
const byteAt = (row: number, c: number, j: number): number =>
  16 + (row >> 2) * 192 + (c >> 4) * 48 + j * 16 + (row & 3) * 4 + (c & 3);

/** Orthonormal Hadamard matrix of 64 (Sylvester's order) times x[at..at+63], in place; its own inverse. */
export function hadamard64(x: Float64Array | Float32Array, at: number): void {
  for (let half = 1; half < GROUP; half *= 2)
    for (let i = 0; i < GROUP; i += 2 * half)
      for (let j = at + i; j < at + i + half; j++) {
        const a = x[j]!;
        const b = x[j + half]!;
        x[j] = a + b;
        x[j + half] = a - b;
      }
  for (let i = at; i < at + GROUP; i++) x[i]! *= 0.125;
}

/**
 * Six-bit uniform codes of the rotated rows. The rotation makes a group nearly Gaussian, whose extremes lie at about 2.4 deviations:
 * a uniform grid fitted to them is finer than a Lloyd-Max codebook that must also serve the tails (and needs no look-up).
 * For each group the scale is searched downwards from the full range, for the smallest squared error.
 */
export function packQ6h(
  readRow: (row: number, into: Float32Array) => void,
  n: number,
  k: number,
  out: Uint8Array,
): void {
  const view = new DataView(out.buffer, out.byteOffset, out.byteLength);
  const groups = k / GROUP;
  const values = new Float32Array(k);
  const x = new Float64Array(k);
  const lows = new Float64Array(groups);
  const highs = new Float64Array(groups);
  const mean = rotatedMean(readRow, n, k);
  for (let c = 0; c < k; c++) view.setFloat32(c * 4, mean[c]!, true);
  for (let row = 0; row < n; row++) {
    const lane = row & 7;
    const base = groupAt(row, k);
    readRow(row, values);
    x.set(values);
    let least = Number.POSITIVE_INFINITY;
    let most = 0;
    for (let g = 0; g < groups; g++) {
      hadamard64(x, g * GROUP);
      for (let c = g * GROUP; c < (g + 1) * GROUP; c++) x[c]! -= mean[c]!;
      let lo = x[g * GROUP]!;
      let hi = lo;
      for (let i = g * GROUP; i < (g + 1) * GROUP; i++) {
        if (x[i]! < lo) lo = x[i]!;
        if (x[i]! > hi) hi = x[i]!;
      }
      lows[g] = lo;
      highs[g] = hi;
      least = Math.min(least, (hi - lo) / 63);
      most = Math.max(most, (hi - lo) / 63);
    }
    // Room below the smallest range, since the search may clip.
    const grid = gridFor(least * SMALLEST, most);
    view.setUint32(base + lane * 4, grid.word, true);
    for (let g = 0; g < groups; g++) {
      const { scaleByte, zero } = fitGroup(x, g * GROUP, lows[g]!, highs[g]!, grid);
      const at = base + HEADER + g * BLOCK;
      const scale = gridValue(grid, scaleByte);
      out[at + lane] = scaleByte;
      out[at + 8 + lane] = zero;
      for (let c = 0; c < GROUP; c++) {
        const code = encode(x[g * GROUP + c]!, scale, zero);
        const step = (c >> 2) & 3;
        if (step < 3) out[at + byteAt(lane, c, step)]! |= code;
        else for (let j = 0; j < 3; j++) out[at + byteAt(lane, c, j)]! |= ((code >> (4 - 2 * j)) & 3) << 6;
      }
    }
  }
}

/**
 * The mean of all rows, rotated. An embedding's rows share a large part (45 % of the energy in SmolLM2-135M); as a row of its own it
 * costs no precision, and what is left is quantised with nearly half the error.
 */
function rotatedMean(readRow: (row: number, into: Float32Array) => void, n: number, k: number): Float32Array {
  const sum = new Float64Array(k);
  const values = new Float32Array(k);
  for (let row = 0; row < n; row++) {
    readRow(row, values);
    for (let c = 0; c < k; c++) sum[c]! += values[c]!;
  }
  for (let c = 0; c < k; c++) sum[c]! /= n;
  for (let c = 0; c < k; c += GROUP) hadamard64(sum, c);
  return Float32Array.from(sum);
}

/** Steps of the search, as a share of the scale that covers the whole range. */
const CANDIDATES = [1, 0.97, 0.94, 0.91, 0.88, 0.85, 0.81, 0.77];
const SMALLEST = 0.77;
const encode = (value: number, scale: number, zero: number): number =>
  scale === 0 ? 0 : Math.min(63, Math.max(0, Math.round(value / scale + zero / 4)));

function fitGroup(x: Float64Array, at: number, lo: number, hi: number, grid: ReturnType<typeof gridFor>) {
  let best = { error: Number.POSITIVE_INFINITY, scaleByte: 0, zero: 126 };
  let last = -1;
  for (const share of CANDIDATES) {
    const scaleByte = gridByte(grid, (share * (hi - lo)) / 63);
    if (scaleByte === last) continue;
    last = scaleByte;
    const scale = gridValue(grid, scaleByte);
    if (scale <= 0) continue;
    const zero = Math.min(252, Math.max(0, Math.round(4 * (31.5 - (lo + hi) / 2 / scale))));
    let error = 0;
    for (let i = at; i < at + GROUP && error < best.error; i++) {
      const difference = x[i]! - scale * (encode(x[i]!, scale, zero) - zero / 4);
      error += difference * difference;
    }
    if (error < best.error) best = { error, scaleByte, zero };
  }
  return best;
}

export function unpackQ6h(bytes: Uint8Array, n: number, k: number, out: Float32Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const x = new Float64Array(k);
  for (let row = 0; row < n; row++) {
    const lane = row & 7;
    const base = groupAt(row, k);
    const grid = readGrid(view.getUint32(base + lane * 4, true));
    for (let g = 0; g < k / GROUP; g++) {
      const at = base + HEADER + g * BLOCK;
      const scale = gridValue(grid, bytes[at + lane]!);
      const zero = bytes[at + 8 + lane]! / 4;
      for (let c = 0; c < GROUP; c++) {
        const step = (c >> 2) & 3;
        let code = 0;
        if (step < 3) code = bytes[at + byteAt(lane, c, step)]! & 63;
        else for (let j = 0; j < 3; j++) code = code * 4 + (bytes[at + byteAt(lane, c, j)]! >> 6);
        x[g * GROUP + c] = view.getFloat32((g * GROUP + c) * 4, true) + scale * (code - zero);
      }
      hadamard64(x, g * GROUP);
    }
    out.set(x, row * k);
  }
}
