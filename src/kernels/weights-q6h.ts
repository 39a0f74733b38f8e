import { gridByte, gridFor, gridValue, readGrid } from './weights-grid.ts';

const BLOCK = 400;
const HEADER = 64;
const GROUP = 64;
/**
 * Rows of a vocabulary whose residual is coded too (12 bits in all). Vocabularies made by merging pairs list tokens by frequency: in
 * SmolLM2-135M the first 2,048 of 49,152 rows carry two thirds of the divergence that 6 bits cause (KL 0.0033 -> 0.0012), for
 * 4 % more bytes. A matrix of fewer rows than VOCABULARY_ROWS is no vocabulary and has none.
 */
const FINE_ROWS = 2048;
const VOCABULARY_ROWS = 16384;
export const fineRows = (n: number): number => (n >= VOCABULARY_ROWS ? FINE_ROWS : 0);

const rowsBytes = (n: number, k: number): number => Math.ceil(n / 8) * (HEADER + (k / GROUP) * BLOCK);
export const q6hBytes = (n: number, k: number): number => k * 4 + rowsBytes(n, k) + rowsBytes(fineRows(n), k);
/** Where the group of 8 rows that holds `row` starts, and that of its residual. */
export const q6hGroupAt = (row: number, k: number): number => k * 4 + (row >> 3) * rowsBytes(8, k);
export const q6hResidualAt = (row: number, n: number, k: number): number =>
  rowsBytes(n, k) + q6hGroupAt(row, k);
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
 * An embedding's rows share much of their energy (45 % in SmolLM2-135M, but frequent tokens little): each row first gives up its
 * projection on the mean row, which costs one number.
 */
export function packQ6h(
  readRow: (row: number, into: Float32Array) => void,
  n: number,
  k: number,
  out: Uint8Array,
): void {
  const view = new DataView(out.buffer, out.byteOffset, out.byteLength);
  const values = new Float32Array(k);
  const x = new Float64Array(k);
  const mean = rotatedMean(readRow, n, k);
  const energy = mean.reduce((sum, m) => sum + m * m, 0);
  for (let c = 0; c < k; c++) view.setFloat32(c * 4, mean[c]!, true);
  for (let row = 0; row < n; row++) {
    readRow(row, values);
    x.set(values);
    let projection = 0;
    for (let g = 0; g < k; g += GROUP) {
      hadamard64(x, g);
      for (let c = g; c < g + GROUP; c++) projection += x[c]! * mean[c]!;
    }
    const share = energy > 0 ? Math.fround(projection / energy) : 0;
    for (let c = 0; c < k; c++) x[c]! -= share * mean[c]!;
    packRow(x, k, row & 7, share, q6hGroupAt(row, k), out);
    if (row < fineRows(n)) packRow(x, k, row & 7, 1, q6hResidualAt(row, n, k), out);
  }
}

/** Codes x, and leaves in x what the codes miss. */
function packRow(
  x: Float64Array,
  k: number,
  lane: number,
  share: number,
  base: number,
  out: Uint8Array,
): void {
  const view = new DataView(out.buffer, out.byteOffset, out.byteLength);
  const ranges = Array.from({ length: k / GROUP }, (_, g) => {
    const group = x.subarray(g * GROUP, (g + 1) * GROUP);
    return { lo: Math.min(...group), hi: Math.max(...group) };
  });
  const widths = ranges.map(({ lo, hi }) => (hi - lo) / 63);
  // Room below the smallest range, since the search may clip.
  const grid = gridFor(Math.min(...widths) * SMALLEST, Math.max(...widths));
  view.setUint32(base + lane * 4, grid.word, true);
  view.setFloat32(base + 32 + lane * 4, share, true);
  ranges.forEach(({ lo, hi }, g) => {
    const { scaleByte, zero } = fitGroup(x, g * GROUP, lo, hi, grid);
    const at = base + HEADER + g * BLOCK;
    const scale = gridValue(grid, scaleByte);
    out[at + lane] = scaleByte;
    out[at + 8 + lane] = zero;
    for (let c = 0; c < GROUP; c++) {
      const code = encode(x[g * GROUP + c]!, scale, zero);
      x[g * GROUP + c]! -= scale * (code - zero / 4);
      const step = (c >> 2) & 3;
      if (step < 3) out[at + byteAt(lane, c, step)]! |= code;
      else for (let j = 0; j < 3; j++) out[at + byteAt(lane, c, j)]! |= ((code >> (4 - 2 * j)) & 3) << 6;
    }
  });
}

/** The mean of all rows, rotated. */
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
    const base = q6hGroupAt(row, k);
    const share = view.getFloat32(base + 32 + (row & 7) * 4, true);
    for (let c = 0; c < k; c++) x[c] = share * view.getFloat32(c * 4, true);
    addRow(bytes, view, base, row & 7, k, x);
    if (row < fineRows(n)) addRow(bytes, view, q6hResidualAt(row, n, k), row & 7, k, x);
    for (let g = 0; g < k; g += GROUP) hadamard64(x, g);
    out.set(x, row * k);
  }
}

function addRow(
  bytes: Uint8Array,
  view: DataView,
  base: number,
  lane: number,
  k: number,
  x: Float64Array,
): void {
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
      x[g * GROUP + c]! += scale * (code - zero);
    }
  }
}
