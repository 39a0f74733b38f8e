import {
  chunks, FLOAT_PIECE, floatRows, GROUPS, headDim, integer, largestMass, ldScores, ldSums, panel, params, PIECE,
  readsPacked, scales, scores, sums, tile, weights,
} from './attend-tile';
import { addMass, floatWeights, integerWeights } from './attend-weights';
import { weighF32, weighI16 } from './dots';
import { weighI8 } from './dots-i8';
import { spreadWeightsOf3, spreadWeightsOf4, weightsOf } from './few-weights';
import { Group, groupAt, halfBlockBytes, isPlain, recordCells, vBitsOf } from './groups';
import { pad4 } from './half';
import { clearPacked, finishPacked, touch, weighPacked, weighsPacked } from './packed-values';
import { loadScales } from './scales';
import { decodePlainRows, decodeRows, unpackLevels } from './unpack';
import { unpackBytes } from './unpack-i8';

/** Adds n cells of the exact part, and their mass where massAt is not 0. */
export function weighExact(bits: i32, rows: usize, n: i32, cell: i32, massAt: usize): void {
  floatWeights(cell, n, massAt != 0);
  weighFloats(bits, rows, n);
  if (massAt) addMass(massAt, pad4(n));
}

/** Adds n cells held as f32 or f16 rows, weighed by `weights`. */
function weighFloats(bits: i32, rows: usize, n: i32): void {
  for (let first = 0; first < n; first += FLOAT_PIECE) {
    const count = min(FLOAT_PIECE, n - first);
    const from = floatRows(bits, rows, first, count);
    weighF32(tile, from, count, headDim, weights + (<usize>first << 4), PIECE * 16, sums, ldSums);
  }
}

/** As scoreRecord. @param vBase of the value scales; massAt of the record's first cell; 0: no mass */
export function weighRecord(found: i32, vBase: f32, cell: i32, massAt: usize): void {
  let g = 0;
  for (; g < found; g++) {
    const part = groupAt(GROUPS, g);
    if (integer && vBitsOf(part.id) <= 4 && !isPlain(part.id)) break;
    weighGroup(part, vBase, cell + part.cell, massAt ? massAt + (<usize>part.cell << 1) : 0);
  }
  if (g == found) return;
  const first = groupAt(GROUPS, g).cell;
  const blocks = (recordCells - first) >> 2;
  if (readsPacked() && weighRecordPacked(g, found, vBase, cell + first, blocks, massAt ? massAt + (<usize>first << 1) : 0)) return;
  for (; g < found; g++) {
    const part = groupAt(GROUPS, g);
    const bits = vBitsOf(part.id);
    const from = <usize>(part.cell - first);
    loadScales(bits, part.vScale, part.n4, vBase, scales + (from << 2));
    unpackBytes(false, bits, part.v, part.n4 >> 2, headDim, panel + (from << 2), <usize>blocks << 4, 16);
  }
  const massFrom = massAt ? massAt + (<usize>first << 1) : 0;
  for (let i = 0; i < tile; i += 4) {
    const from = scores + <usize>i * ldScores + (<usize>(cell + first) << 2);
    const to = weights + <usize>i * PIECE;
    weightsOf(min(4, tile - i), from, ldScores, blocks, scales, params + (<usize>i << 5), to, massFrom, largestMass);
  }
  weighI8(tile, panel, chunks, blocks, weights, PIECE * 4, sums, ldSums, params);
}

/** Weighs groups `g` and following of 1 to 4 bits as they are packed. @returns whether it could */
function weighRecordPacked(g: i32, found: i32, vBase: f32, cell: i32, blocks: i32, massAt: usize): bool {
  for (let i = g; i < found; i++) {
    const part = groupAt(GROUPS, i);
    const bits = vBitsOf(part.id);
    if (!weighsPacked(bits)) return false;
    touch(part.v, part.v + <usize>halfBlockBytes(bits, headDim) * <usize>(part.n4 >> 2));
  }
  if (massAt) touch(massAt, massAt + (<usize>blocks << 3));
  const first = groupAt(GROUPS, g).cell;
  for (let i = g; i < found; i++) {
    const part = groupAt(GROUPS, i);
    loadScales(vBitsOf(part.id), part.vScale, part.n4, vBase, scales + (<usize>(part.cell - first) << 2));
  }
  const from = scores + (<usize>cell << 2);
  if (tile == 3) spreadWeightsOf3(from, ldScores, blocks, scales, params, weights, massAt, largestMass);
  else spreadWeightsOf4(from, ldScores, blocks, scales, params, weights, massAt, largestMass);
  // Sums i32x4 [chunk][4 queries] take the panel's place.
  clearPacked(panel, chunks);
  for (; g < found; g++) {
    const part = groupAt(GROUPS, g);
    const b = weights + (<usize>(part.cell - first) << 4);
    weighPacked(tile, vBitsOf(part.id), part.v, part.n4 >> 2, chunks, b, panel);
  }
  finishPacked(tile, panel, chunks, sums, ldSums, params);
  return true;
}

function weighGroup(g: Group, vBase: f32, cell: i32, massAt: usize): void {
  const bits = vBitsOf(g.id);
  const blocks = g.n4 >> 2;
  if (bits > 8) {
    floatWeights(cell, g.n4, massAt != 0);
    weighFloats(bits, g.v, g.n);
  } else if (isPlain(g.id)) {
    floatWeights(cell, g.n4, massAt != 0);
    const blockBytes = <usize>halfBlockBytes(bits, headDim);
    const perCell = <usize>((headDim + 31) >> 5) << 1;
    for (let first = 0; first < g.n; first += FLOAT_PIECE) {
      const count = min(FLOAT_PIECE, g.n - first);
      const from = g.v + <usize>(first >> 2) * blockBytes;
      decodePlainRows(false, bits, from, count, headDim, g.vScale + <usize>first * perCell, panel);
      weighF32(tile, panel, count, headDim, weights + (<usize>first << 4), PIECE * 16, sums, ldSums);
    }
  } else {
    loadScales(bits, g.vScale, g.n4, vBase, scales);
    if (integer) {
      integerWeights(cell, blocks, massAt != 0);
      unpackLevels(bits, g.v, blocks, headDim, panel, <usize>blocks << 5, 32);
      weighI16(tile, panel, chunks, blocks, weights, PIECE * 8, sums, ldSums, params);
    } else {
      floatWeights(cell, g.n4, massAt != 0);
      const blockBytes = <usize>halfBlockBytes(bits, headDim);
      for (let first = 0; first < g.n; first += FLOAT_PIECE) {
        const count = min(FLOAT_PIECE, g.n - first);
        const from = g.v + <usize>(first >> 2) * blockBytes;
        decodeRows(false, bits, from, count, headDim, scales + (<usize>first << 2), 0, panel);
        weighF32(tile, panel, count, headDim, weights + (<usize>first << 4), PIECE * 16, sums, ldSums);
      }
    }
  }
  if (massAt) addMass(massAt, g.n4);
}
