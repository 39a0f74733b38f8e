import {
  attendFixedBytes, attendQueryBytes, EXACT_PIECE, GROUPS, integer, largestMass, layOut, ldScores, ldSums, mean,
  params, queryOffset, scores, sums, takeTile, tile,
} from './attend-tile';
import { loadQueries, queryMeans } from './attend-queries';
import { scoreFloats, scoreRecord } from './attend-scores';
import { weighExact, weighRecord } from './attend-values';
import { cellsOf, groupAt, isPlain, openRecord, recordCells, recordMean, touchRecords } from './groups';
import { fromF16, pad4 } from './half';
import { loadMean } from './scales';
import { powers } from './softmax';

/** Mass is summed as u32 over a tile before it is added: so many queries of at most 2^16 cannot wrap. */
const MAX_TILE = 2048;
/**
 * Where the mass of the head at hand lies, for so many segments: massOf asks the headers of earlier heads, which have left the nearest caches
 * when mass is added.
 */
const MASS_PLACES = 1024;
const MASS_AT: usize = memory.data(4096, 16);
/** What is added to COARSE weights before they are rounded, so that small ones count in the mean: an even spread within -15/32 .. 15/32. */
const DITHER: usize = memory.data(896, 16);
for (let i = 0; i < 224; i++)
  store<f32>(DITHER + (<usize>i << 2), <f32>(i * <i32>0x9e3779b9) * <f32>2.3283064365386963e-10 * <f32>0.9375);

/**
 * See kernels.ts. `exactMass` is the address of kvHead 0's mass in the exact part, `ldExactMass` the bytes a kvHead.
 * @returns 0, or the workspace bytes that the smallest tile needs when it does not fit (then nothing is written)
 */
export function attend(
  q: usize,
  ldQ: i32,
  rows: i32,
  heads: i32,
  kvHeads: i32,
  dim: i32,
  scale: f32,
  segments: usize,
  segmentCount: i32,
  segmentQueries: usize,
  sinkQueries: usize,
  sinks: i32,
  exact: usize,
  exactBits: i32,
  exactHalf: usize,
  exactMass: usize,
  ldExactMass: usize,
  visible: i32,
  out: usize,
  ldOut: i32,
  massUnit: f32,
  massLargest: bool,
  position: i32,
  integerArithmetic: bool,
  workspace: usize,
  workspaceBytes: usize,
): usize {
  // Scores are exponents of 2.
  const queryScale = scale * <f32>1.4426950408889634;
  const mass = massUnit > 0;
  const group = heads / kvHeads;
  const queries = rows * group;
  touchRecords(segments, segmentCount, kvHeads);
  let most = 0;
  for (let h = 0; h < kvHeads; h++) most = max(most, recordCellsOf(segments, segmentCount, h));
  const cells = pad4(most + visible + rows - 1);
  // Tiles of 4 queries share operands: a tile that is no multiple of 4 holds its last operands padded.
  const fixed = attendFixedBytes(dim);
  const each = attendQueryBytes(dim, cells);
  if (workspaceBytes < fixed + each * 4) return fixed + each * 4;
  const largestTile = <i32>min<usize>(<usize>min(MAX_TILE, pad4(queries)), ((workspaceBytes - fixed) / each) & ~3);

  layOut(dim, integerArithmetic, massLargest, workspace, largestTile, cells);

  if (mass) placeMass(segments, min(segmentCount, MASS_PLACES));
  for (let h = 0; h < kvHeads; h++) {
    const packed = recordCellsOf(segments, segmentCount, h);
    const keys = exact + <usize>h * 2 * exactHalf;
    const values = keys + exactHalf;
    const slotBytes = <usize>(dim * exactBits) >> 3;
    const headAt = <usize>(h * group) * (<usize>dim << 2);
    const outHead = out + headAt;
    for (let first = 0; first < queries; first += largestTile) {
      takeTile(min(largestTile, queries - first));
      const slots = visible + (first + tile - 1) / group;
      const end = packed + pad4(slots);

      // Scores.
      let loaded: usize = 0;
      let cell = 0;
      for (let s = 0; s < segmentCount; s++) {
        const at = <usize>s << 2;
        const block = <usize>load<u32>(segments + at);
        const offset = <usize>load<u32>(block + 12 + (<usize>h << 2));
        if (offset == 0) continue;
        let wanted = segmentQueries ? <usize>load<u32>(segmentQueries + at) : 0;
        if (wanted == 0) wanted = q;
        if (wanted != loaded) {
          loadQueries(wanted + headAt, ldQ, group, first, queryScale);
          loaded = wanted;
        }
        const record = block + offset;
        const found = openRecord(record, load<i32>(block, 4), dim, GROUPS);
        if (!isPlain(groupAt(GROUPS, 0).id)) {
          loadMean(record, recordMean, dim, mean);
          if (integer) queryMeans();
        }
        scoreRecord(found, fromF16(load<u16>(record, 2)), cell);
        cell += recordCells;
      }
      let before = 0;
      if (sinkQueries && sinks > 0) {
        before = min(sinks, slots);
        if (loaded != sinkQueries) loadQueries(sinkQueries + headAt, ldQ, group, first, queryScale);
        loaded = sinkQueries;
        scoreFloats(exactBits, keys, before, cell);
      }
      if (loaded != q) loadQueries(q + headAt, ldQ, group, first, queryScale);
      scoreFloats(exactBits, keys + <usize>before * slotBytes, slots - before, cell + before);

      // Softmax, unnormalised.
      for (let i = 0; i < tile; i++) {
        const row = scores + <usize>i * ldScores;
        for (let c = packed + visible + (first + i) / group; c < end; c++)
          store<f32>(row + (<usize>c << 2), -Infinity);
        const inverse = <f32>1 / powers(row, end);
        const query = first + i;
        const hash = ((position + query / group) * heads + h * group + (query % group)) * <i32>0x9e3779b9;
        const at = params + (<usize>i << 5);
        store<f32>(at, inverse);
        store<usize>(at, DITHER + (<usize>(<u32>hash >> 26) << 2), 28);
        if (!mass) continue;
        store<f32>(at, inverse * massUnit, 4);
        store<f32>(at, largestMass ? 0 : <f32>hash * <f32>2.3283064365386963e-10, 12);
      }

      // Weighted values and mass.
      memory.fill(sums, 0, <usize>tile * ldSums);
      cell = 0;
      for (let s = 0; s < segmentCount; s++) {
        const block = <usize>load<u32>(segments + (<usize>s << 2));
        const offset = <usize>load<u32>(block + 12 + (<usize>h << 2));
        if (offset == 0) continue;
        const record = block + offset;
        const massAt = mass ? (s < MASS_PLACES ? load<usize>(MASS_AT + (<usize>s << 2)) : massOf(block, h)) : 0;
        const found = openRecord(record, load<i32>(block, 4), dim, GROUPS);
        weighRecord(found, fromF16(load<u16>(record, 4)), cell, massAt);
        // The next head's begins where that of this head's last tile ends.
        if (mass && s < MASS_PLACES && first + tile == queries)
          store<usize>(MASS_AT + (<usize>s << 2), massAt + (<usize>recordCells << 1));
        cell += recordCells;
      }
      for (let slot = 0; slot < slots; slot += EXACT_PIECE) {
        const n = min(EXACT_PIECE, slots - slot);
        const massAt = mass ? exactMass + <usize>h * ldExactMass + (<usize>slot << 1) : 0;
        weighExact(exactBits, values + <usize>slot * slotBytes, n, cell + slot, massAt);
      }

      for (let i = 0; i < tile; i++) {
        const inverse = v128.load32_splat(params + (<usize>i << 5));
        const from = sums + <usize>i * ldSums;
        const to = outHead + queryOffset(first + i, group, ldOut);
        for (let c: usize = 0; c < ldSums; c += 16) v128.store(to + c, f32x4.mul(v128.load(from + c), inverse));
      }
    }
  }
  return 0;
}

function recordCellsOf(segments: usize, count: i32, kvHead: i32): i32 {
  let cells = 0;
  for (let s = 0; s < count; s++) {
    const block = <usize>load<u32>(segments + (<usize>s << 2));
    const offset = <usize>load<u32>(block + 12 + (<usize>kvHead << 2));
    if (offset) cells += cellsOf(block + offset);
  }
  return cells;
}

/** Where the mass of each segment's first record lies. */
function placeMass(segments: usize, count: i32): void {
  for (let s = 0; s < count; s++) {
    const at = <usize>s << 2;
    const block = <usize>load<u32>(segments + at);
    store<usize>(MASS_AT + at, block + load<u32>(block, 8));
  }
}

/** A record's mass section: after storedBytes, kvHead by kvHead. */
function massOf(block: usize, kvHead: i32): usize {
  let at = block + load<u32>(block, 8);
  for (let h = 0; h < kvHead; h++) {
    const offset = <usize>load<u32>(block + 12 + (<usize>h << 2));
    if (offset) at += <usize>cellsOf(block + offset) << 1;
  }
  return at;
}
