import { gridByte, gridFor, gridValue, readGrid } from './weights-grid.ts';

const BLOCK = 144;
const HEADER = 64;
const groupBytes = (k: number): number => HEADER + (k / 32) * BLOCK;
/** Reads block b of a row as scale, minimum and 4-bit codes; other types than Q4 are fitted. */
export type BlockReader = (row: number, b: number, codes: Uint8Array) => { scale: number; minimum: number };

/** Byte of a code within its block, and whether it is the high nibble. */
const codeAt = (row: number, c: number): number =>
  16 + (row >> 2) * 64 + (c >> 3) * 16 + (row & 3) * 4 + (c & 3);

/**
 * Keeps the 4-bit codes and puts scales and minima on per-row grids of 256. The scale's rounding error is mostly a shift of the
 * block's mean, so the minimum is chosen to take that shift up: what is left is (scale error)^2 * variance of the codes.
 */
export function packQ4r(read: BlockReader, n: number, k: number, out: Uint8Array): void {
  const view = new DataView(out.buffer, out.byteOffset, out.byteLength);
  const blocks = k / 32;
  const scales = new Float64Array(blocks);
  const minima = new Float64Array(blocks);
  const means = new Float64Array(blocks);
  const codes = Array.from({ length: blocks }, () => new Uint8Array(32));
  for (let row = 0; row < n; row++) {
    const lane = row & 7;
    const base = (row >> 3) * groupBytes(k);
    for (let b = 0; b < blocks; b++) {
      const block = read(row, b, codes[b]!);
      scales[b] = block.scale;
      minima[b] = block.minimum;
      means[b] = codes[b]!.reduce((sum, c) => sum + c, 0) / 32;
    }
    const scaleGrid = gridFor(Math.min(...scales), Math.max(...scales));
    const scaleBytes = Array.from(scales, (s) => gridByte(scaleGrid, s));
    const targets = Array.from(
      minima,
      (m, b) => m + (scales[b]! - gridValue(scaleGrid, scaleBytes[b]!)) * means[b]!,
    );
    const minimumGrid = gridFor(Math.min(...targets), Math.max(...targets));
    view.setUint32(base + lane * 4, scaleGrid.word, true);
    view.setUint32(base + 32 + lane * 4, minimumGrid.word, true);
    for (let b = 0; b < blocks; b++) {
      const at = base + HEADER + b * BLOCK;
      out[at + lane] = scaleBytes[b]!;
      out[at + 8 + lane] = gridByte(minimumGrid, targets[b]!);
      for (let c = 0; c < 32; c++) out[at + codeAt(lane, c)]! |= c & 4 ? codes[b]![c]! << 4 : codes[b]![c]!;
    }
  }
}

export function unpackQ4r(bytes: Uint8Array, n: number, k: number, out: Float32Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let row = 0; row < n; row++) {
    const lane = row & 7;
    const base = (row >> 3) * groupBytes(k);
    const scaleGrid = readGrid(view.getUint32(base + lane * 4, true));
    const minimumGrid = readGrid(view.getUint32(base + 32 + lane * 4, true));
    for (let b = 0; b < k / 32; b++) {
      const at = base + HEADER + b * BLOCK;
      const scale = gridValue(scaleGrid, bytes[at + lane]!);
      const minimum = gridValue(minimumGrid, bytes[at + 8 + lane]!);
      for (let c = 0; c < 32; c++) {
        const byte = bytes[at + codeAt(lane, c)]!;
        out[row * k + b * 32 + c] = scale * (c & 4 ? byte >> 4 : byte & 15) + minimum;
      }
    }
  }
}
