import {
  DROP,
  Group,
  groupAt,
  groupCells,
  groupEnd,
  halfBlockBytes,
  kBitsOf,
  meanOffset,
  openRecord,
  vBitsOf,
} from './groups';
import { fromF16, halvesToFloats, loadFloats, pad16, storeHalves, toF16x4 } from './half';
import { quantise } from './quantise';
import { levelTable, lookUp } from './unpack';

/** Scratch; headDim <= 512, tokens <= 255. */
const X: usize = memory.data(2048, 16);
const MEAN: usize = memory.data(2048, 16);
/** Codes of 4 tokens, one byte a channel. */
const CODES: usize = memory.data(2048, 16);
const CODES_PITCH: usize = 512;
const COUNTS: usize = memory.data(16, 16);
const OLD_GROUPS: usize = memory.data(512, 16);
const NEW_GROUPS: usize = memory.data(512, 16);
/** For each token: index of its old group, its cell within that group. */
const OLD_GROUP: usize = memory.data(256, 16);
const OLD_CELL: usize = memory.data(256, 16);
const NEXT: usize = memory.data(16, 16);
const INDEX: usize = memory.data(16, 16);
/** Reads a chunk of values by token: bytes (channel, token) -> (token, channel), and back. */
const TRANSPOSE: usize = memory.data<u8>([0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15], 16);

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
  meanOfKeys(k, bits, tokens, headDim);
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

/** See kernels.ts. */
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
  halvesToFloats(record + <usize>meanOffset(tokens), headDim, MEAN);
  return build(tokens, headDim, tiers, out, massIn, massOut);
}

/** Old groups of a record, and each token's group and cell. */
function locate(record: usize, tokens: i32, headDim: i32): void {
  const found = openRecord(record, record, tokens, headDim, OLD_GROUPS);
  memory.fill(NEXT, 0, 16);
  for (let i = 0; i < found; i++) store<u8>(INDEX + <usize>groupAt(OLD_GROUPS, i).id, i);
  for (let t = 0; t < tokens; t++) {
    const id = <usize>tierAt(record, t);
    store<u8>(OLD_GROUP + <usize>t, load<u8>(INDEX + id));
    const cell = load<u8>(NEXT + id);
    store<u8>(OLD_CELL + <usize>t, cell);
    store<u8>(NEXT + id, cell + 1);
  }
}
// @ts-ignore: decorator
@inline
function tierAt(record: usize, t: i32): i32 {
  return (load<u8>(record + 16 + <usize>(t >> 1)) >> (<u8>(t & 1) << 2)) & 15;
}

/** f32 sums in token order, divided, rounded to binary16. */
function meanOfKeys(k: usize, bits: i32, tokens: i32, headDim: i32): void {
  const rowBytes = <usize>(headDim * bits) >> 3;
  const step = <usize>bits >> 1;
  const count = f32x4.splat(<f32>tokens);
  let to = MEAN;
  for (let c = 0; c < headDim; c += 4) {
    let sum = f32x4.splat(0);
    let p = k;
    for (let t = 0; t < tokens; t++) {
      sum = f32x4.add(sum, loadFloats(p, bits));
      p += rowBytes;
    }
    storeHalves(X, toF16x4(f32x4.div(sum, count)));
    v128.store(to, loadFloats(X, 16));
    k += step;
    to += 16;
  }
}

/** Writes the record of `tiers` from MEAN and the old groups. */
function build(tokens: i32, headDim: i32, tiers: usize, out: usize, massIn: usize, massOut: usize): i32 {
  memory.fill(COUNTS, 0, 16);
  for (let t = 0; t < tokens; t++) {
    const id = <usize>load<u8>(tiers + <usize>t);
    if (id != DROP) store<u8>(COUNTS + id, load<u8>(COUNTS + id) + 1);
  }
  const found = openRecord(out, COUNTS, tokens, headDim, NEW_GROUPS);
  const size = groupEnd - out;
  const cells = groupCells;
  memory.fill(out, 0, size);
  memory.copy(out, COUNTS, 16);
  for (let t = 0; t < tokens; t++) {
    const at = out + 16 + <usize>(t >> 1);
    store<u8>(at, load<u8>(at) | (load<u8>(tiers + <usize>t) << (<u8>(t & 1) << 2)));
  }
  const meanAt = out + <usize>meanOffset(tokens);
  for (let c = 0; c < headDim; c += 4)
    storeHalves(meanAt + (<usize>c << 1), toF16x4(v128.load(MEAN + (<usize>c << 2))));
  // Channels past headDim, up to the next multiple of 16, stay zero for the quantiser.
  memory.fill(X, 0, <usize>pad16(headDim) << 2);
  if (massOut) memory.fill(massOut, 0, <usize>cells << 2);

  for (let i = 0; i < found; i++) {
    const g = groupAt(NEW_GROUPS, i);
    writeHalf(true, kBitsOf(g.id), g, g.k, g.kScale, tokens, headDim, tiers);
    writeHalf(false, vBitsOf(g.id), g, g.v, g.vScale, tokens, headDim, tiers);
    if (massOut && massIn) {
      let to = massOut + (<usize>g.cell << 2);
      for (let t = 0; t < tokens; t++) {
        if (load<u8>(tiers + <usize>t) != g.id) continue;
        const old = groupAt(OLD_GROUPS, load<u8>(OLD_GROUP + <usize>t));
        const cell = old.cell + <i32>load<u8>(OLD_CELL + <usize>t);
        store<u32>(to, load<u32>(massIn + (<usize>cell << 2)));
        to += 4;
      }
    }
  }
  return <i32>size;
}

function writeHalf(
  keys: bool,
  bits: i32,
  g: Group,
  to: usize,
  scaleAt: usize,
  tokens: i32,
  headDim: i32,
  tiers: usize,
): void {
  const blockBytes = <usize>halfBlockBytes(bits, headDim);
  const rowBytes = <usize>(headDim * bits) >> 3;
  let cell = 0;
  for (let t = 0; t < tokens; t++) {
    if (load<u8>(tiers + <usize>t) != g.id) continue;
    const old = groupAt(OLD_GROUPS, load<u8>(OLD_GROUP + <usize>t));
    const oldCell = <i32>load<u8>(OLD_CELL + <usize>t);
    const oldBits = keys ? kBitsOf(old.id) : vBitsOf(old.id);
    const from = keys ? old.k : old.v;
    const oldScale = (keys ? old.kScale : old.vScale) + (<usize>oldCell << 1);
    if (bits > 8) {
      const row = from + <usize>oldCell * (<usize>(headDim * oldBits) >> 3);
      if (bits == oldBits) memory.copy(to, row, rowBytes);
      else if (bits == 32) halvesToFloats(row, headDim, to);
      else
        for (let c: usize = 0; c < <usize>headDim; c += 4)
          storeHalves(to + (c << 1), toF16x4(v128.load(row + (c << 2))));
      to += rowBytes;
    } else {
      const codes = CODES + <usize>(cell & 3) * CODES_PITCH;
      if (bits == oldBits) {
        readCodes(keys, bits, from, oldCell, headDim, codes);
        store<u16>(scaleAt, load<u16>(oldScale));
      } else {
        if (oldBits > 8) {
          const row = from + <usize>oldCell * (<usize>(headDim * oldBits) >> 3);
          readFloats(row, oldBits, headDim, keys);
        } else {
          readCodes(keys, oldBits, from, oldCell, headDim, codes);
          levelsToFloats(oldBits, codes, headDim, load<u16>(oldScale));
        }
        store<u16>(scaleAt, <u16>quantise(bits, X, headDim, codes));
      }
      scaleAt += 2;
      cell++;
      if ((cell & 3) == 0) {
        packCodes(keys, bits, headDim, to);
        to += blockBytes;
      } else if (cell == g.n) {
        for (let pad = cell & 3; pad < 4; pad++) memory.fill(CODES + <usize>pad * CODES_PITCH, 0, headDim);
        packCodes(keys, bits, headDim, to);
      }
    }
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

/** X = scale * level, keys without the mean. */
function levelsToFloats(bits: i32, codes: usize, headDim: i32, scale: u32): void {
  const by = f32x4.splat(fromF16(scale));
  const table = levelTable(min(bits, 4));
  for (let c: usize = 0; c < <usize>headDim; c += 4) {
    let x = v128.load32_zero(codes + c);
    if (bits != 8) x = lookUp(table, x);
    const level = f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(i16x8.extend_low_i8x16_s(x)));
    v128.store(X + (c << 2), f32x4.mul(by, level));
  }
}
/** One token's codes, a byte a channel. */
function readCodes(keys: bool, bits: i32, blocks: usize, cell: i32, headDim: i32, to: usize): void {
  const block = blocks + <usize>(cell >> 2) * <usize>halfBlockBytes(bits, headDim);
  const chunks = headDim >> 2;
  if (bits == 3) {
    readPlane(keys, 2, 0, block, cell & 3, chunks, to);
    readPlane(keys, 1, 2, block + (<usize>((chunks + 3) >> 2) << 4), cell & 3, chunks, to);
  } else readPlane(keys, bits, 0, block, cell & 3, chunks, to);
}
/** `bits` bits of each code at `up`; the plane at 0 comes first and overwrites. */
function readPlane(keys: bool, bits: i32, up: i32, from: usize, token: i32, chunks: i32, to: usize): void {
  const per = 8 / bits;
  const mask: u32 = <u32>((1 << bits) - 1) * 0x01010101;
  for (let c = 0; c < chunks; c += per) {
    let x: u32;
    if (keys) x = load<u32>(from + (<usize>token << 2));
    else {
      const p = from + <usize>token;
      x = <u32>load<u8>(p) | (<u32>load<u8>(p, 4) << 8) | (<u32>load<u8>(p, 8) << 16) | (<u32>load<u8>(p, 12) << 24);
    }
    const n = min(per, chunks - c);
    for (let j = 0; j < n; j++) {
      const code = ((x >> (j * bits)) & mask) << up;
      store<u32>(to, up ? load<u32>(to) | code : code);
      to += 4;
    }
    from += 16;
  }
}

/** Packs CODES into a half block. */
function packCodes(keys: bool, bits: i32, headDim: i32, to: usize): void {
  const chunks = headDim >> 2;
  if (bits == 3) {
    packPlane(keys, 2, 0, chunks, to);
    packPlane(keys, 1, 2, chunks, to + (<usize>((chunks + 3) >> 2) << 4));
  } else packPlane(keys, bits, 0, chunks, to);
}
function packPlane(keys: bool, bits: i32, down: i32, chunks: i32, to: usize): void {
  const per = 8 / bits;
  const mask = i32x4.splat(((1 << bits) - 1) * 0x01010101);
  const transpose = v128.load(TRANSPOSE);
  let from = CODES;
  for (let c = 0; c < chunks; c += per) {
    let all = i32x4.splat(0);
    const n = min(per, chunks - c);
    for (let j = 0; j < n; j++) {
      let x = v128.load32_zero(from);
      x = v128.load32_lane(from + CODES_PITCH, x, 1);
      x = v128.load32_lane(from + CODES_PITCH * 2, x, 2);
      x = v128.load32_lane(from + CODES_PITCH * 3, x, 3);
      if (!keys) x = lookUp(x, transpose);
      all = v128.or(all, i32x4.shl(v128.and(i32x4.shr_u(x, down), mask), j * bits));
      from += 4;
    }
    v128.store(to, all);
    to += 16;
  }
}

/** See kernels.ts. */
export function decodeRecord(record: usize, tokens: i32, headDim: i32, k: usize, v: usize): void {
  locate(record, tokens, headDim);
  halvesToFloats(record + <usize>meanOffset(tokens), headDim, MEAN);
  const bytes = <usize>headDim << 2;
  for (let t = 0; t < tokens; t++) {
    if (tierAt(record, t) == DROP) {
      memory.fill(k, 0, bytes);
      memory.fill(v, 0, bytes);
    } else {
      const g = groupAt(OLD_GROUPS, load<u8>(OLD_GROUP + <usize>t));
      const cell = <i32>load<u8>(OLD_CELL + <usize>t);
      decodeHalf(true, kBitsOf(g.id), g.k, g.kScale, cell, headDim, k);
      decodeHalf(false, vBitsOf(g.id), g.v, g.vScale, cell, headDim, v);
    }
    k += bytes;
    v += bytes;
  }
}
function decodeHalf(keys: bool, bits: i32, from: usize, scaleAt: usize, cell: i32, headDim: i32, to: usize): void {
  if (bits > 8) {
    readFloats(from + <usize>cell * (<usize>(headDim * bits) >> 3), bits, headDim, false);
    memory.copy(to, X, <usize>headDim << 2);
    return;
  }
  readCodes(keys, bits, from, cell, headDim, CODES);
  levelsToFloats(bits, CODES, headDim, load<u16>(scaleAt + (<usize>cell << 1)));
  for (let c: usize = 0; c < <usize>headDim << 2; c += 16) {
    let x = v128.load(X + c);
    if (keys) x = f32x4.add(x, v128.load(MEAN + c));
    v128.store(to + c, x);
  }
}
