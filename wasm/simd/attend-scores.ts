import {
  chunks, FLOAT_PIECE, floatRows, GROUPS, headDim, integer, ldBytes, ldInteger, ldScores, mean, panel, params, qBytes,
  qFloat, qInteger, readsPacked, scales, scores, tile,
} from './attend-tile';
import { FINISH, SPREAD, SPREAD_FINE } from './attend-queries';
import { scoresF32, scoresI16 } from './dots';
import { scoresI8 } from './dots-i8';
import { Group, groupAt, halfBlockBytes, isPlain, kBitsOf, recordCells } from './groups';
import { scoresBytes3, scoresPacked } from './packed-keys';
import { loadScales } from './scales';
import { decodePlainRows, decodeRows, unpackLevels } from './unpack';
import { unpackBytes } from './unpack-i8';

/** Scores of n cells held as f32 or f16 rows. */
export function scoreFloats(bits: i32, rows: usize, n: i32, cell: i32): void {
  for (let first = 0; first < n; first += FLOAT_PIECE) {
    const count = min(FLOAT_PIECE, n - first);
    const from = floatRows(bits, rows, first, count);
    scoresF32(tile, from, count, headDim, qFloat, scores + (<usize>(cell + first) << 2), ldScores);
  }
}

/** The open record's scores: groups of finer keys one by one; those of 1 to 4 bits, which come last, in one go. @param kBase of the key scales */
export function scoreRecord(found: i32, kBase: f32, cell: i32): void {
  let g = 0;
  for (; g < found; g++) {
    const part = groupAt(GROUPS, g);
    if (integer && kBitsOf(part.id) <= 4 && !isPlain(part.id)) break;
    scoreGroup(part, kBase, cell + part.cell);
  }
  if (g == found) return;
  if (readsPacked()) {
    for (; g < found; g++) {
      const part = groupAt(GROUPS, g);
      const to = scores + (<usize>(cell + part.cell) << 2);
      loadScales(kBitsOf(part.id), part.kScale, part.n4, kBase, scales);
      scoresPacked(tile, kBitsOf(part.id), part.k, part.n4 >> 2, chunks, SPREAD, to, ldScores, scales, FINISH);
      hidePadding(part, cell + part.cell);
    }
    return;
  }
  const first = groupAt(GROUPS, g).cell;
  for (let i = g; i < found; i++) {
    const part = groupAt(GROUPS, i);
    const bits = kBitsOf(part.id);
    const from = <usize>(part.cell - first);
    loadScales(bits, part.kScale, part.n4, kBase, scales + (from << 2));
    unpackBytes(true, bits, part.k, part.n4 >> 2, headDim, panel + from * <usize>headDim, 16, <usize>chunks << 4);
  }
  const to = scores + (<usize>(cell + first) << 2);
  scoresI8(tile, panel, (recordCells - first) >> 2, chunks, qBytes, ldBytes, to, ldScores, scales, params);
  for (; g < found; g++) {
    const part = groupAt(GROUPS, g);
    hidePadding(part, cell + part.cell);
  }
}

function scoreGroup(g: Group, kBase: f32, cell: i32): void {
  const bits = kBitsOf(g.id);
  if (bits > 8) scoreFloats(bits, g.k, g.n, cell);
  else if (isPlain(g.id)) {
    const blockBytes = <usize>halfBlockBytes(bits, headDim);
    const perCell = <usize>((headDim + 31) >> 5) << 1;
    for (let first = 0; first < g.n; first += FLOAT_PIECE) {
      const count = min(FLOAT_PIECE, g.n - first);
      const from = g.k + <usize>(first >> 2) * blockBytes;
      decodePlainRows(true, bits, from, count, headDim, g.kScale + <usize>first * perCell, panel);
      scoresF32(tile, panel, count, headDim, qFloat, scores + (<usize>(cell + first) << 2), ldScores);
    }
  } else {
    loadScales(bits, g.kScale, g.n4, kBase, scales);
    const blockBytes = <usize>halfBlockBytes(bits, headDim);
    if (integer) {
      const blocks = g.n4 >> 2;
      const to = scores + (<usize>cell << 2);
      if (tile == 3) {
        scoresBytes3(g.k, blocks, chunks, SPREAD_FINE, to, ldScores, scales, params);
        hidePadding(g, cell);
        return;
      }
      unpackLevels(bits, g.k, blocks, headDim, panel, 32, <usize>chunks << 5);
      scoresI16(tile, panel, blocks, chunks, qInteger, ldInteger, to, ldScores, scales, params);
    } else
      for (let first = 0; first < g.n; first += FLOAT_PIECE) {
        const count = min(FLOAT_PIECE, g.n - first);
        const from = g.k + <usize>(first >> 2) * blockBytes;
        decodeRows(true, bits, from, count, headDim, scales + (<usize>first << 2), mean, panel);
        scoresF32(tile, panel, count, headDim, qFloat, scores + (<usize>(cell + first) << 2), ldScores);
      }
  }
  hidePadding(g, cell);
}

function hidePadding(g: Group, cell: i32): void {
  if (g.n == g.n4) return;
  for (let i = 0; i < tile; i++) {
    const row = scores + <usize>i * ldScores;
    for (let c = cell + g.n; c < cell + g.n4; c++) store<f32>(row + (<usize>c << 2), -Infinity);
  }
}
