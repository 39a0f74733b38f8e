import { cellToFloats } from './cells';
import { CODES, CODES_PITCH, gatherCells, NO_CELL, packCodes, readCodes } from './codes';
import {
  DROP,
  Group,
  groupAt,
  halfBlockBytes,
  isPlain,
  kBitsOf,
  openRecord,
  recordCells,
  recordEnd,
  recordMap,
  recordMean,
  scaleBytes,
  vBitsOf,
} from './groups';
import { fromF16, halvesToFloats, largestLane, loadFloats, MAGIC, pad16, storeHalves, TINY, toF16, toF16Up, toF16x4 } from './half';
import { quantise, quantisePlain, sumOfSquares } from './quantise';
import { loadMean, scaleOf } from './scales';
import { levelTable, lookUp } from './unpack';

/** Scratch; headDim <= 512, tokens <= 255. */
const X: usize = memory.data(2048, 16);
const MEAN: usize = memory.data(2048, 16);
const MEAN_CODES: usize = memory.data(512, 16);
const COUNTS: usize = memory.data(16, 16);
const OLD_GROUPS: usize = memory.data(512, 16);
const NEW_GROUPS: usize = memory.data(512, 16);
/** For each token: its tier, index of its old group, its cell within that group. */
const OLD_TIER: usize = memory.data(256, 16);
const OLD_GROUP: usize = memory.data(256, 16);
const OLD_CELL: usize = memory.data(256, 16);
const NEXT: usize = memory.data(16, 16);
/** Tokens in the order of the new record's cells, and where each tier's next one goes. */
const ORDER: usize = memory.data(512, 16);
const PLACE: usize = memory.data(32, 16);
/** Of the 4 cells being written: where the half block of each lies that holds its codes, and which of its cells it is. */
const FROM: usize = memory.data(32, 16);
const AT: usize = memory.data(16, 16);
const INDEX: usize = memory.data(16, 16);
/** What the first encoding fixed: binary16 bits of the bases and of the mean's scale, and the bases' values. */
let kBaseBits: u32 = 0;
let vBaseBits: u32 = 0;
let meanScale: u32 = 0;
let kBase: f32 = 0;
let vBase: f32 = 0;

/**
 * See kernels.ts. k, v: the kvHead's first row of the segment in the exact part; massIn: its first slot's mass or 0.
 */
export function encodeRecord(
  k: usize,
  v: usize,
  bits: i32,
  tokens: i32,
  headDim: i32,
  tiers: usize,
  out: usize,
  massIn: usize,
  massOut: usize,
): i32 {
  // Channels past headDim, up to the next multiple of 16, stay zero for the quantiser.
  memory.fill(X, 0, <usize>pad16(headDim) << 2);
  meanOfKeys(k, bits, tokens, headDim);
  kBaseBits = baseOfRows(true, k, bits, tokens, headDim);
  vBaseBits = baseOfRows(false, v, bits, tokens, headDim);
  kBase = fromF16(kBaseBits);
  vBase = fromF16(vBaseBits);
  // The exact rows look like a group of tier f32 or f16 that holds every token in order.
  const g = groupAt(OLD_GROUPS, 0);
  g.id = bits == 32 ? 0 : 1;
  g.cell = 0;
  g.kScale = 0;
  g.vScale = 0;
  g.k = k;
  g.v = v;
  for (let t = 0; t < tokens; t++) {
    store<u8>(OLD_GROUP + <usize>t, 0);
    store<u8>(OLD_CELL + <usize>t, t);
  }
  return build(tokens, headDim, tiers, out, massIn, massOut);
}

/** See kernels.ts. @returns -1 if a token's tier would become finer, or plain alone before or after: nothing is written then */
export function recodeRecord(
  record: usize,
  tokens: i32,
  headDim: i32,
  tiers: usize,
  out: usize,
  massIn: usize,
  massOut: usize,
): i32 {
  locate(record, tokens, headDim);
  let moved = 0;
  for (let t = 0; t < tokens; t++) {
    const was = <i32>load<u8>(OLD_TIER + <usize>t);
    const now = <i32>load<u8>(tiers + <usize>t);
    if (now == was) continue;
    if (now < was || (now != DROP && (isPlain(now) || isPlain(was)))) return -1;
    moved++;
  }
  if (moved == 0) {
    const bytes = recordEnd - record;
    memory.copy(out, record, bytes);
    if (massOut) {
      if (massIn) memory.copy(massOut, massIn, <usize>recordCells << 1);
      else memory.fill(massOut, 0, <usize>recordCells << 1);
    }
    return <i32>bytes;
  }
  memory.copy(MEAN_CODES, recordMean, headDim);
  memory.fill(X, 0, <usize>pad16(headDim) << 2);
  return build(tokens, headDim, tiers, out, massIn, massOut);
}

/** Old groups of a record, each token's tier, group and cell, and what the record's first encoding fixed. */
function locate(record: usize, tokens: i32, headDim: i32): void {
  const found = openRecord(record, tokens, headDim, OLD_GROUPS);
  const map = recordMap;
  kBaseBits = load<u16>(record, 2);
  vBaseBits = load<u16>(record, 4);
  meanScale = load<u16>(record, 6);
  kBase = fromF16(kBaseBits);
  vBase = fromF16(vBaseBits);
  const only = groupAt(OLD_GROUPS, 0).id;
  if (!isPlain(only)) loadMean(record, recordMean, headDim, MEAN);
  memory.fill(NEXT, 0, 16);
  for (let i = 0; i < found; i++) store<u8>(INDEX + <usize>groupAt(OLD_GROUPS, i).id, i);
  for (let t = 0; t < tokens; t++) {
    const id = map ? <i32>((load<u8>(map + <usize>(t >> 1)) >> (<u8>(t & 1) << 2)) & 15) : only;
    store<u8>(OLD_TIER + <usize>t, id);
    store<u8>(OLD_GROUP + <usize>t, load<u8>(INDEX + <usize>id));
    const cell = load<u8>(NEXT + <usize>id);
    store<u8>(OLD_CELL + <usize>t, cell);
    store<u8>(NEXT + <usize>id, cell + 1);
  }
}

/** MEAN and its codes: f32 sums in token order, divided, held as 8 bits under one scale. */
function meanOfKeys(k: usize, bits: i32, tokens: i32, headDim: i32): void {
  const rowBytes = <usize>(headDim * bits) >> 3;
  const step = <usize>bits >> 1;
  const count = f32x4.splat(<f32>tokens);
  const absolute = i32x4.splat(0x7fffffff);
  const end = <usize>headDim << 2;
  let top = f32x4.splat(0);
  for (let c: usize = 0; c < end; c += 16) {
    let sum = f32x4.splat(0);
    let p = k;
    for (let t = 0; t < tokens; t++) {
      sum = f32x4.add(sum, loadFloats(p, bits));
      p += rowBytes;
    }
    sum = f32x4.div(sum, count);
    top = f32x4.max(top, v128.and(sum, absolute));
    v128.store(MEAN + c, sum);
    k += step;
  }
  meanScale = toF16(largestLane(top) / 127);
  const scale = fromF16(meanScale);
  const inverse = f32x4.splat(meanScale == 0 ? 0 : <f32>1 / scale);
  const magic = v128.load(MAGIC);
  for (let c: usize = 0; c < end; c += 16) {
    const ratio = f32x4.max(f32x4.min(f32x4.mul(v128.load(MEAN + c), inverse), f32x4.splat(1e6)), f32x4.splat(-1e6));
    let x = i32x4.sub(f32x4.add(ratio, magic), magic);
    x = i32x4.max_s(i32x4.min_s(x, i32x4.splat(127)), i32x4.splat(-127));
    v128.store(MEAN + c, f32x4.mul(f32x4.splat(scale), f32x4.convert_i32x4_s(x)));
    x = i16x8.narrow_i32x4_s(x, x);
    v128.store32_lane(MEAN_CODES + (c >> 2), i8x16.narrow_i16x8_s(x, x), 0);
  }
}

/** Twice the largest rms of the rows, keys minus MEAN, as binary16 rounded up. */
function baseOfRows(keys: bool, rows: usize, bits: i32, tokens: i32, headDim: i32): u32 {
  const rowBytes = <usize>(headDim * bits) >> 3;
  let most: f32 = 0;
  for (let t = 0; t < tokens; t++) {
    readFloats(rows, bits, headDim, keys);
    most = max(most, sumOfSquares(X, headDim));
    rows += rowBytes;
  }
  return most >= TINY && most < Infinity ? toF16Up(<f32>2 * sqrt<f32>(most / <f32>headDim)) : 0;
}

/** Writes the record of `tiers` from MEAN and the old groups. */
function build(tokens: i32, headDim: i32, tiers: usize, out: usize, massIn: usize, massOut: usize): i32 {
  memory.fill(COUNTS, 0, 16);
  let present = 0;
  for (let t = 0; t < tokens; t++) {
    const id = <usize>load<u8>(tiers + <usize>t);
    if (id == DROP) continue;
    present |= 1 << <i32>id;
    store<u8>(COUNTS + id, load<u8>(COUNTS + id) + 1);
  }
  if (present == 0) return 0;
  store<u16>(out, <u16>present);
  let count = out + 8;
  for (let left = present; left != 0; left &= left - 1) store<u8>(count++, load<u8>(COUNTS + <usize>ctz(left)));
  const found = openRecord(out, tokens, headDim, NEW_GROUPS);
  const size = recordEnd - out;
  const cells = recordCells;
  const map = recordMap;
  memory.fill(count, 0, recordEnd - count);
  store<u16>(out, 0, 2);
  store<u32>(out, 0, 4);
  if (!isPlain(groupAt(NEW_GROUPS, 0).id)) {
    store<u16>(out, <u16>kBaseBits, 2);
    store<u16>(out, <u16>vBaseBits, 4);
    store<u16>(out, <u16>meanScale, 6);
    memory.copy(recordMean, MEAN_CODES, headDim);
  }
  if (map)
    for (let t = 0; t < tokens; t += 2) {
      const low = load<u8>(tiers + <usize>t);
      const high = t + 1 < tokens ? load<u8>(tiers + <usize>t, 1) : 0;
      store<u8>(map + <usize>(t >> 1), low | (high << 4));
    }
  if (massOut) memory.fill(massOut, 0, <usize>cells << 1);

  for (let i = 0; i < found; i++) {
    const g = groupAt(NEW_GROUPS, i);
    store<u16>(PLACE + (<usize>g.id << 1), <u16>g.cell);
  }
  for (let t = 0; t < tokens; t++) {
    const id = <usize>load<u8>(tiers + <usize>t);
    if (id == DROP) continue;
    const cell = <usize>load<u16>(PLACE + (id << 1));
    store<u16>(PLACE + (id << 1), <u16>(cell + 1));
    store<u8>(ORDER + cell, t);
    if (massOut && massIn) {
      const old = groupAt(OLD_GROUPS, load<u8>(OLD_GROUP + <usize>t)).cell + <i32>load<u8>(OLD_CELL + <usize>t);
      store<u16>(massOut + (cell << 1), load<u16>(massIn + (<usize>old << 1)));
    }
  }
  for (let i = 0; i < found; i++) {
    const g = groupAt(NEW_GROUPS, i);
    writeHalf(true, kBitsOf(g.id), g, g.k, g.kScale, headDim);
    writeHalf(false, vBitsOf(g.id), g, g.v, g.vScale, headDim);
  }
  return <i32>size;
}

function writeHalf(keys: bool, bits: i32, g: Group, to: usize, scaleAt: usize, headDim: i32): void {
  if (bits > 8) {
    writeFloats(keys, bits, g, to, headDim);
    return;
  }
  const blockBytes = <usize>halfBlockBytes(bits, headDim);
  const perCell = <usize>scaleBytes(g.id, bits, headDim);
  const base = keys ? kBase : vBase;
  const wide = (headDim & 63) == 0;
  for (let cell = 0; cell < g.n; cell += 4) {
    const count = min(4, g.n - cell);
    // Bit masks of the cells that keep their codes, and of those that get new ones.
    let kept = 0;
    let made = 0;
    for (let j = 0; j < 4; j++) {
      const place = <usize>j;
      store<usize>(FROM + (place << 3), NO_CELL);
      store<u8>(AT + place, 0);
      const codes = CODES + place * CODES_PITCH;
      if (j >= count) continue;
      const t = <usize>load<u8>(ORDER + <usize>(g.cell + cell + j));
      const old = groupAt(OLD_GROUPS, load<u8>(OLD_GROUP + t));
      const oldCell = <i32>load<u8>(OLD_CELL + t);
      const oldBits = keys ? kBitsOf(old.id) : vBitsOf(old.id);
      const from = keys ? old.k : old.v;
      const oldScale =
        (keys ? old.kScale : old.vScale) + <usize>oldCell * <usize>scaleBytes(old.id, oldBits, headDim);
      if (bits == oldBits) {
        kept |= 1 << j;
        store<usize>(FROM + (place << 3), from + <usize>(oldCell >> 2) * blockBytes);
        store<u8>(AT + place, oldCell & 3);
        for (let i: usize = 0; i < perCell; i++) store<u8>(scaleAt + i, load<u8>(oldScale + i));
      } else {
        made |= 1 << j;
        if (oldBits > 8) {
          const row = from + <usize>oldCell * (<usize>(headDim * oldBits) >> 3);
          readFloats(row, oldBits, headDim, keys && !isPlain(g.id));
        } else {
          const scale = scaleAtBits(oldBits, oldScale, base);
          if (wide && oldBits > 1)
            cellToFloats(
              keys,
              oldBits,
              from + <usize>(oldCell >> 2) * <usize>halfBlockBytes(oldBits, headDim),
              oldCell & 3,
              headDim,
              scale,
              X,
            );
          else {
            readCodes(keys, oldBits, from, oldCell, headDim, codes);
            levelsToFloats(oldBits, codes, headDim, scale);
          }
        }
        if (isPlain(g.id))
          for (let c = 0; c < headDim; c += 32) {
            const d = quantisePlain(bits, X + (<usize>c << 2), min(32, headDim - c), codes + <usize>c);
            store<u16>(scaleAt + (<usize>c >> 4), <u16>d);
          }
        else {
          const scale = quantise(bits, X, headDim, codes, base);
          if (bits == 8) store<u16>(scaleAt, <u16>scale);
          else store<u8>(scaleAt, <u8>scale);
        }
      }
      scaleAt += perCell;
    }
    if (made) {
      for (let j = 0; j < 4; j++)
        if (!((made >> j) & 1)) memory.fill(CODES + <usize>j * CODES_PITCH, 0, headDim);
      packCodes(keys, bits, headDim, to);
    }
    if (kept)
      gatherCells(
        keys,
        blockBytes,
        load<usize>(FROM),
        load<u8>(AT),
        load<usize>(FROM, 8),
        load<u8>(AT, 1),
        load<usize>(FROM, 16),
        load<u8>(AT, 2),
        load<usize>(FROM, 24),
        load<u8>(AT, 3),
        to,
        made != 0,
      );
    to += blockBytes;
  }
}

/** Cells of 16 and 32 bits. */
function writeFloats(keys: bool, bits: i32, g: Group, to: usize, headDim: i32): void {
  const rowBytes = <usize>(headDim * bits) >> 3;
  for (let cell = 0; cell < g.n; cell++) {
    const t = <usize>load<u8>(ORDER + <usize>(g.cell + cell));
    const old = groupAt(OLD_GROUPS, load<u8>(OLD_GROUP + t));
    const oldBits = keys ? kBitsOf(old.id) : vBitsOf(old.id);
    const row = (keys ? old.k : old.v) + <usize>load<u8>(OLD_CELL + t) * (<usize>(headDim * oldBits) >> 3);
    if (bits == oldBits) memory.copy(to, row, rowBytes);
    else if (bits == 32) halvesToFloats(row, headDim, to);
    else
      for (let c: usize = 0; c < <usize>headDim; c += 4)
        storeHalves(to + (c << 1), toF16x4(v128.load(row + (c << 2))));
    to += rowBytes;
  }
}

/** X = a row of floats, keys minus MEAN. */
function readFloats(row: usize, bits: i32, headDim: i32, centre: bool): void {
  const step = <usize>bits >> 1;
  for (let c: usize = 0; c < <usize>headDim << 2; c += 16) {
    let x = loadFloats(row, bits);
    if (centre) x = f32x4.sub(x, v128.load(MEAN + c));
    v128.store(X + c, x);
    row += step;
  }
}

// @ts-ignore: decorator
@inline
function scaleAtBits(bits: i32, at: usize, base: f32): f32 {
  return bits == 8 ? fromF16(load<u16>(at)) : scaleOf(bits, load<u8>(at), base);
}
/** X = scale * level, keys without the mean. */
function levelsToFloats(bits: i32, codes: usize, headDim: i32, scale: f32): void {
  const by = f32x4.splat(scale);
  const table = levelTable(min(bits, 4));
  for (let c: usize = 0; c < <usize>headDim; c += 4) {
    let x = v128.load32_zero(codes + c);
    if (bits != 8) x = lookUp(table, x);
    const level = f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(i16x8.extend_low_i8x16_s(x)));
    v128.store(X + (c << 2), f32x4.mul(by, level));
  }
}
/** See kernels.ts. */
export function decodeRecord(record: usize, tokens: i32, headDim: i32, k: usize, v: usize): void {
  locate(record, tokens, headDim);
  const bytes = <usize>headDim << 2;
  for (let t = 0; t < tokens; t++) {
    if (load<u8>(OLD_TIER + <usize>t) == DROP) {
      memory.fill(k, 0, bytes);
      memory.fill(v, 0, bytes);
    } else {
      const g = groupAt(OLD_GROUPS, load<u8>(OLD_GROUP + <usize>t));
      const cell = <i32>load<u8>(OLD_CELL + <usize>t);
      decodeHalf(true, kBitsOf(g.id), g, g.k, g.kScale, cell, headDim, k);
      decodeHalf(false, vBitsOf(g.id), g, g.v, g.vScale, cell, headDim, v);
    }
    k += bytes;
    v += bytes;
  }
}
function decodeHalf(
  keys: bool,
  bits: i32,
  g: Group,
  from: usize,
  scales: usize,
  cell: i32,
  headDim: i32,
  to: usize,
): void {
  const bytes = <usize>headDim << 2;
  if (bits > 8) {
    readFloats(from + <usize>cell * (<usize>(headDim * bits) >> 3), bits, headDim, false);
    memory.copy(to, X, bytes);
    return;
  }
  const scaleAt = scales + <usize>cell * <usize>scaleBytes(g.id, bits, headDim);
  readCodes(keys, bits, from, cell, headDim, CODES);
  if (isPlain(g.id)) {
    for (let c = 0; c < headDim; c++) {
      const code = <i32>load<i8>(CODES + <usize>c);
      const d = fromF16(load<u16>(scaleAt + (<usize>(c >> 5) << 1)));
      store<f32>(to + (<usize>c << 2), d * <f32>(bits == 8 ? code : code - 8));
    }
    return;
  }
  levelsToFloats(bits, CODES, headDim, scaleAtBits(bits, scaleAt, keys ? kBase : vBase));
  for (let c: usize = 0; c < bytes; c += 16) {
    let x = v128.load(X + c);
    if (keys) x = f32x4.add(x, v128.load(MEAN + c));
    v128.store(to + c, x);
  }
}
