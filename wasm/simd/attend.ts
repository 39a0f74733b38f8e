import { scoresF32, scoresI16, weighF32, weighI16 } from './dots';
import { scoresI8, weighI8 } from './dots-i8';
import { spreadWeightsOf3, spreadWeightsOf4, weightsOf } from './few-weights';
import { cellsOf, Group, groupAt, halfBlockBytes, isPlain, kBitsOf, openRecord, recordCells, recordMean, touchRecords, vBitsOf } from './groups';
import { COARSE_QUERY, FINE, fromF16, halvesToFloats, lanes, largestLane, MAGIC, MAGIC_BITS, pad4, TINY } from './half';
import { loadMean, loadScales } from './scales';
import { scoresBytes3, scoresPacked, spread, spreadFine } from './packed-keys';
import { clearPacked, finishPacked, touch, weighPacked, weighsPacked } from './packed-values';
import { powers } from './softmax';
import { decodePlainRows, decodeRows, unpackLevels } from './unpack';
import { KEY_OFFSET, unpackBytes } from './unpack-i8';

/** The most cells of a record (each tier's are padded to 4) and of a part of the exact slots: their weights are made at once. */
const PIECE = 160;
const EXACT_PIECE = 128;
/** Float values are summed by so many cells before they join the output; two such panels fill the first-level cache. */
const FLOAT_PIECE = 64;
/** Mass is summed as u32 over a tile before it is added: so many queries of at most 2^16 cannot wrap. */
const MAX_TILE = 2048;
const GROUPS: usize = memory.data(512, 16);
/** Bytes of queries, spread, and 15-bit integers of 3; headDim <= 512. */
const SPREAD: usize = memory.data(8192, 16);
const SPREAD_FINE: usize = memory.data(12288, 16);
/** Mass of one piece, as sums of MAGIC's bits and integers, modulo 2^32. */
const MASS: usize = memory.data(640, 16);
/** What is added to COARSE weights before they are rounded, so that small ones count in the mean: an even spread within -15/32 .. 15/32. */
const DITHER: usize = memory.data(896, 16);
for (let i = 0; i < 224; i++)
  store<f32>(DITHER + (<usize>i << 2), <f32>(i * <i32>0x9e3779b9) * <f32>2.3283064365386963e-10 * <f32>0.9375);

// The call's arguments and its tile. Set by attend, so that the steps below need not pass twenty arguments on.
let headDim: i32 = 0;
let chunks: i32 = 0;
/** Queries of the tile: query i is row floor((first + i) / group), head (first + i) mod group of the kvHead's group. */
let tile: i32 = 0;
let integer: bool = false;
/** Mass is the largest weight instead of the sum. */
let largestMass: bool = false;
/** Bases of the open record's scales. */
let kBase: f32 = 0;
let vBase: f32 = 0;
/** Areas of the workspace. */
let panel: usize = 0;
let scales: usize = 0;
let mean: usize = 0;
let params: usize = 0;
let qFloat: usize = 0;
let qInteger: usize = 0;
let qBytes: usize = 0;
let sums: usize = 0;
let weights: usize = 0;
let scores: usize = 0;
let ldScores: usize = 0;
/** Bytes of 4 queries in qInteger and in qBytes; of one query in qFloat and sums. */
let ldInteger: usize = 0;
let ldBytes: usize = 0;
let ldSums: usize = 0;

function padUp(n: usize): usize {
  return (n + 15) & ~15;
}
/** 64 cells of f32, 128 of i16, 160 of i8; bytes are unpacked by 8 chunks. */
function panelBytes(headDim: i32): usize {
  return <usize>((headDim + 31) & ~31) << 8;
}
export function attendFixedBytes(headDim: i32): usize {
  return panelBytes(headDim) + PIECE * 4 + padUp(<usize>headDim << 2) + 64;
}
export function attendQueryBytes(headDim: i32, cells: i32): usize {
  return (
    padUp(<usize>cells << 2) + 16 + padUp(<usize>headDim << 2) * 2 + padUp(<usize>headDim << 1) + padUp(headDim) + PIECE * 4 + 32
  );
}

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
  headDim = dim;
  chunks = dim >> 2;
  integer = integerArithmetic;
  largestMass = massLargest;
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

  panel = workspace;
  scales = panel + panelBytes(dim);
  mean = scales + PIECE * 4;
  params = mean + padUp(<usize>dim << 2);
  qFloat = params + (<usize>largestTile << 5);
  ldSums = <usize>dim << 2;
  qInteger = qFloat + <usize>largestTile * ldSums;
  ldInteger = <usize>dim << 3;
  qBytes = qInteger + padUp((<usize>largestTile >> 2) * ldInteger);
  ldBytes = padUp(dim) << 2;
  sums = qBytes + (<usize>largestTile >> 2) * ldBytes;
  weights = sums + <usize>largestTile * ldSums;
  scores = weights + <usize>largestTile * (PIECE * 4);
  ldScores = (<usize>cells << 2) + 16;

  for (let h = 0; h < kvHeads; h++) {
    const packed = recordCellsOf(segments, segmentCount, h);
    const keys = exact + <usize>h * 2 * exactHalf;
    const values = keys + exactHalf;
    const slotBytes = <usize>(dim * exactBits) >> 3;
    const headAt = <usize>(h * group) * (<usize>dim << 2);
    const outHead = out + headAt;
    for (let first = 0; first < queries; first += largestTile) {
      tile = min(largestTile, queries - first);
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
          kBase = fromF16(load<u16>(record, 2));
          loadMean(record, recordMean, dim, mean);
          if (integer) queryMeans();
        }
        scoreRecord(found, cell);
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
        const massAt = mass ? massOf(block, h) : 0;
        const found = openRecord(record, load<i32>(block, 4), dim, GROUPS);
        vBase = fromF16(load<u16>(record, 4));
        weighRecord(found, cell, massAt);
        cell += recordCells;
      }
      for (let slot = 0; slot < slots; slot += EXACT_PIECE) {
        const n = min(EXACT_PIECE, slots - slot);
        floatWeights(cell + slot, n, mass);
        weighFloats(exactBits, values + <usize>slot * slotBytes, n);
        if (mass) addMass(exactMass + <usize>h * ldExactMass + (<usize>slot << 1), pad4(n));
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

// @ts-ignore: decorator
@inline
function queryOffset(query: i32, group: i32, ld: i32): usize {
  return ((<usize>(query / group) * <usize>ld) << 2) + (<usize>(query % group) * (<usize>headDim << 2));
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

/** A record's mass section: after storedBytes, kvHead by kvHead. */
function massOf(block: usize, kvHead: i32): usize {
  let at = block + load<u32>(block, 8);
  for (let h = 0; h < kvHead; h++) {
    const offset = <usize>load<u32>(block + 12 + (<usize>h << 2));
    if (offset) at += <usize>cellsOf(block + offset) << 1;
  }
  return at;
}

/**
 * Scaled queries: f32 [query][headDim]; 15-bit integers [4 queries][chunk][query][0, 2, 1, 3]; bytes [4 queries][chunk][query][4].
 * params: [0] and [16] the integers' steps, [20] the sum of the latter times the offset of unpacked keys.
 */
function loadQueries(q: usize, ldQ: i32, group: i32, first: i32, scale: f32): void {
  const by = f32x4.splat(scale);
  const magic = v128.load(MAGIC);
  const absolute = i32x4.splat(0x7fffffff);
  for (let i = 0; i < tile; i++) {
    const from = q + queryOffset(first + i, group, ldQ);
    const floats = qFloat + <usize>i * ldSums;
    let top = f32x4.splat(0);
    for (let c: usize = 0; c < ldSums; c += 16) {
      const x = f32x4.mul(v128.load(from + c), by);
      top = f32x4.pmax(top, v128.and(x, absolute));
      v128.store(floats + c, x);
    }
    if (!integer) continue;
    const largest = largestLane(top);
    const some = largest >= TINY;
    const at = params + (<usize>i << 5);
    store<f32>(at, some ? largest / FINE : 0);
    store<f32>(at, some ? largest / COARSE_QUERY : 0, 16);
    const fine = f32x4.splat(some ? FINE / largest : 0);
    const coarse = f32x4.splat(some ? COARSE_QUERY / largest : 0);
    let p = qInteger + <usize>(i >> 2) * ldInteger + (<usize>(i & 3) << 3);
    let b = qBytes + <usize>(i >> 2) * ldBytes + (<usize>(i & 3) << 2);
    let sum = i32x4.splat(0);
    for (let c: usize = 0; c < ldSums; c += 16) {
      const y = v128.load(floats + c);
      const x = f32x4.add(f32x4.mul(y, fine), magic);
      v128.store64_lane(p, v128.shuffle<i16>(x, x, 0, 4, 2, 6, 0, 4, 2, 6), 0);
      p += 32;
      const z = f32x4.add(f32x4.mul(y, coarse), magic);
      sum = i32x4.add(sum, z);
      storeLowBytes(b, z);
      b += 16;
    }
    if (chunks & 1) store<i32>(b, 0);
    const total =
      i32x4.extract_lane(sum, 0) + i32x4.extract_lane(sum, 1) + i32x4.extract_lane(sum, 2) + i32x4.extract_lane(sum, 3);
    store<i32>(at, (total - headDim * MAGIC_BITS) * KEY_OFFSET, 20);
  }
  if (integer && readsPacked()) spread(qBytes, chunks, SPREAD);
  if (integer && tile == 3) spreadFine(qInteger, chunks, SPREAD_FINE);
}

/** The lowest byte of each i32 lane. */
// @ts-ignore: decorator
@inline
function storeLowBytes(at: usize, x: v128): void {
  v128.store32_lane(at, v128.shuffle<u8>(x, x, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12), 0);
}

/** params: [4] query . mean. */
function queryMeans(): void {
  for (let i = 0; i < tile; i++) {
    const q = qFloat + <usize>i * ldSums;
    let sum = f32x4.splat(0);
    for (let c: usize = 0; c < ldSums; c += 16)
      sum = f32x4.add(sum, f32x4.mul(v128.load(q + c), v128.load(mean + c)));
    store<f32>(params + (<usize>i << 5), lanes(sum), 4);
  }
}

/** Scores of n cells held as f32 or f16 rows. */
function scoreFloats(bits: i32, rows: usize, n: i32, cell: i32): void {
  const bytes = <usize>(headDim * bits) >> 3;
  for (let first = 0; first < n; first += FLOAT_PIECE) {
    const count = min(FLOAT_PIECE, n - first);
    let from = rows + <usize>first * bytes;
    if (bits == 16) {
      halvesToFloats(from, count * headDim, panel);
      from = panel;
    }
    scoresF32(tile, from, count, headDim, qFloat, scores + (<usize>(cell + first) << 2), ldScores);
  }
}

/** Whether so few queries meet cells of 1 to 4 bits as they are packed. */
// @ts-ignore: decorator
@inline
function readsPacked(): bool {
  return (tile == 3 || tile == 4) && (chunks & 3) == 0;
}

/** Groups of finer keys one by one; those of 1 to 4 bits, which come last, in one go. */
function scoreRecord(found: i32, cell: i32): void {
  let g = 0;
  for (; g < found; g++) {
    const part = groupAt(GROUPS, g);
    if (integer && kBitsOf(part.id) <= 4 && !isPlain(part.id)) break;
    scoreGroup(part, cell + part.cell);
  }
  if (g == found) return;
  if (readsPacked()) {
    for (; g < found; g++) {
      const part = groupAt(GROUPS, g);
      const to = scores + (<usize>(cell + part.cell) << 2);
      loadScales(kBitsOf(part.id), part.kScale, part.n4, kBase, scales);
      scoresPacked(tile, kBitsOf(part.id), part.k, part.n4 >> 2, chunks, SPREAD, to, ldScores, scales, params);
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

function scoreGroup(g: Group, cell: i32): void {
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

/** Adds n cells held as f32 or f16 rows, weighed by `weights`. */
function weighFloats(bits: i32, rows: usize, n: i32): void {
  const bytes = <usize>(headDim * bits) >> 3;
  for (let first = 0; first < n; first += FLOAT_PIECE) {
    const count = min(FLOAT_PIECE, n - first);
    let from = rows + <usize>first * bytes;
    if (bits == 16) {
      halvesToFloats(from, count * headDim, panel);
      from = panel;
    }
    weighF32(tile, from, count, headDim, weights + (<usize>first << 4), PIECE * 16, sums, ldSums);
  }
}

/** As scoreRecord. @param massAt of the record's first cell; 0: no mass */
function weighRecord(found: i32, cell: i32, massAt: usize): void {
  let g = 0;
  for (; g < found; g++) {
    const part = groupAt(GROUPS, g);
    if (integer && vBitsOf(part.id) <= 4 && !isPlain(part.id)) break;
    weighGroup(part, cell + part.cell, massAt ? massAt + (<usize>part.cell << 1) : 0);
  }
  if (g == found) return;
  const first = groupAt(GROUPS, g).cell;
  const blocks = (recordCells - first) >> 2;
  if (readsPacked() && weighRecordPacked(g, found, cell + first, blocks, massAt ? massAt + (<usize>first << 1) : 0)) return;
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
function weighRecordPacked(g: i32, found: i32, cell: i32, blocks: i32, massAt: usize): bool {
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

function weighGroup(g: Group, cell: i32, massAt: usize): void {
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

/** Weights of n cells, f32 [cell][4 queries]; n need not be a multiple of 4. */
function floatWeights(cell: i32, n: i32, mass: bool): void {
  const magic = v128.load(MAGIC);
  if (mass) clearMass(<usize>pad4(n) << 2);
  for (let i = 0; i < tile; i++) {
    let from = scores + <usize>i * ldScores + (<usize>cell << 2);
    let to = weights + <usize>(i >> 2) * (PIECE * 16) + (<usize>(i & 3) << 2);
    const toMass = v128.load32_splat(params + (<usize>i << 5), 4);
    const dither = v128.load32_splat(params + (<usize>i << 5), 12);
    for (let c = 0; c < n; c += 4) {
      const w = v128.load(from);
      v128.store32_lane(to, w, 0);
      v128.store32_lane(to, w, 1, 16);
      v128.store32_lane(to, w, 2, 32);
      v128.store32_lane(to, w, 3, 48);
      if (mass) countMass(MASS + (<usize>c << 2), w, toMass, dither, magic);
      from += 16;
      to += 64;
    }
  }
}

/** The largest weight times value scale of a query; its weights count as mass on the way. */
// @ts-ignore: decorator
@inline
function largestWeight(from: usize, bytes: usize, mass: bool, toMass: v128, dither: v128, magic: v128): f32 {
  let top = f32x4.splat(0);
  if (mass) {
    for (let c: usize = 0; c < bytes; c += 16) {
      const w = v128.load(from + c);
      top = f32x4.pmax(top, f32x4.mul(w, v128.load(scales + c)));
      countMass(MASS + c, w, toMass, dither, magic);
    }
  } else {
    for (let c: usize = 0; c < bytes; c += 16)
      top = f32x4.pmax(top, f32x4.mul(v128.load(from + c), v128.load(scales + c)));
  }
  return largestLane(top);
}

/** Weights times value scales as 15-bit integers of the group's largest, [block][4 queries][0, 2, 1, 3]; params: [8] their step. */
function integerWeights(cell: i32, blocks: i32, mass: bool): void {
  const magic = v128.load(MAGIC);
  const bytes = <usize>blocks << 4;
  if (mass) clearMass(bytes);
  for (let i = 0; i < tile; i++) {
    const from = scores + <usize>i * ldScores + (<usize>cell << 2);
    let to = weights + <usize>(i >> 2) * (PIECE * 8) + (<usize>(i & 3) << 3);
    const toMass = v128.load32_splat(params + (<usize>i << 5), 4);
    const dither = v128.load32_splat(params + (<usize>i << 5), 12);
    const largest = largestWeight(from, bytes, mass, toMass, dither, magic);
    const fine = largest >= TINY;
    const inverse = f32x4.splat(fine ? FINE / largest : 0);
    store<f32>(params + (<usize>i << 5), fine ? largest / FINE : 0, 8);
    for (let c: usize = 0; c < bytes; c += 16) {
      const w = f32x4.mul(f32x4.mul(v128.load(from + c), v128.load(scales + c)), inverse);
      const x = f32x4.add(w, magic);
      v128.store64_lane(to, v128.shuffle<i16>(x, x, 0, 4, 2, 6, 0, 4, 2, 6), 0);
      to += 32;
    }
  }
}

/** Not memory.fill, which calls out of the module. */
// @ts-ignore: decorator
@inline
function clearMass(bytes: usize): void {
  for (let c: usize = 0; c < bytes; c += 16) v128.store(MASS + c, i32x4.splat(0));
}
/** Units of a weight, with MAGIC's bits: summed, or the largest. */
// @ts-ignore: decorator
@inline
function countMass(at: usize, weight: v128, toMass: v128, dither: v128, magic: v128): void {
  const units = f32x4.add(f32x4.add(f32x4.mul(weight, toMass), dither), magic);
  const held = v128.load(at);
  v128.store(at, largestMass ? i32x4.max_s(held, units) : i32x4.add(held, units));
}

/** Adds a piece's mass of the tile's queries to the cells' u16, saturating; or raises them to it. */
function addMass(to: usize, cells: i32): void {
  const offset = i32x4.splat(largestMass ? -MAGIC_BITS : -tile * MAGIC_BITS);
  for (let c: usize = 0; c < <usize>cells << 1; c += 8) {
    const held = v128.load16x4_u(to + c);
    const units = i32x4.add(v128.load(MASS + (c << 1)), offset);
    const sum = largestMass ? i32x4.max_s(held, units) : i32x4.add(held, units);
    v128.store64_lane(to + c, i16x8.narrow_i32x4_u(sum, sum), 0);
  }
}
