/**
 * The byte layout of the compressed cache, version 1. One place: every kernel, the store and the session
 * files are parameterised from here. All integers little-endian; every section starts 16-byte aligned.
 *
 * Keys and values are stored *rotated*: post-RoPE key and value vectors times the orthonormal Hadamard matrix
 * of `hadamardSize(headDim)` (block-diagonal where headDim is no power of two). Queries are rotated alike, so scores
 * are unchanged; the attention output is un-rotated by the caller (the matrix is its own inverse).
 *
 * SEGMENT BLOCK, one per (layer, segment), one arena block:
 *   u32 start         first position
 *   u32 tokens        positions in the segment, 1..128
 *   u32 storedBytes   bytes from the block's start to the mass sections: what is persisted as an extent
 *   i32 offset        position offset (0 until a conversation outgrows the trained length)
 *   u32 recordAt[kvHeads]   byte offset of each kvHead's record from the block's start; then padded to 16
 *   records, kvHead by kvHead
 *   u32 massCells[kvHead][cells padded to 4]   only if the policy needs mass; kvHead by kvHead, each
 *                     section padded to 16; in the record's cell order; fixed point, MASS_ONE = 1.0
 *
 * RECORD, one per (layer, kvHead, segment):
 *   u8 counts[16]     tokens of the record by tier id; the last entry (drop) is implied, stored as 0
 *   tierMap           4 bits a token in position order, low nibble first; ceil(tokens / 2) bytes, padded to 16
 *   f16 mean[headDim] mean of the segment's rotated keys (all its tokens, also dropped ones); padded to 16
 *   then for each tier id in ascending order with n = counts[id] > 0 tokens, n4 = n rounded up to a multiple of 4:
 *     f16 kScale[n4]  padded to 16; only if kBits <= 8
 *     f16 vScale[n4]  padded to 16; only if vBits <= 8
 *     K codes         n4 / 4 blocks of halfBlockBytes(kBits, headDim)
 *     V codes         n4 / 4 blocks of halfBlockBytes(vBits, headDim)
 *   Cells of a tier stand in position order. Padding cells hold zeros and are never visible.
 *   The record's *cells*, in order, are the padded cells of all its tiers: sum of n4.
 *
 * A HALF BLOCK holds 4 tokens x headDim channels of keys or of values.
 *   32, 16 bits: [4 tokens][headDim] f32 or f16, keys not centred (no scale, the mean is not subtracted).
 *   8 bits:  headDim/4 chunks of 16 signed bytes.  A chunk holds 4 channels x 4 tokens:
 *              keys    byte = token * 4 + channel  (an i32 lane is a token: a dot over channels gives 4 scores)
 *              values  byte = channel * 4 + token  (an i32 lane is a channel: a dot over tokens gives 4 sums)
 *   4 bits:  ceil(chunks/2) vectors of 16 bytes; vector v holds chunk 2v in the low and 2v+1 in the high nibbles.
 *   2 bits:  ceil(chunks/4) vectors; vector v holds chunks 4v..4v+3 at bit 0, 2, 4, 6.
 *   1 bit:   ceil(chunks/8) vectors; vector v holds chunks 8v..8v+7 at bit 0..7.
 *   3 bits:  the 2-bit vectors (code & 3), then the 1-bit vectors (code >> 2).
 * 8-bit codes are the integers themselves; codes of 1 to 4 bits index CODEBOOKS[bits].
 * A decoded element is scale * level, keys plus the record's mean.
 */
export const LAYOUT_VERSION = 1;
export const SEGMENT_TOKENS = 128;
export const SEGMENT_HEADER_BYTES = 16;
/** Fixed point of attention mass: one query's probability 1.0 adds this much. With decay 0.8 an epoch and three heads a group, sums stay below 2^32. */
export const MASS_ONE = 1 << 20;

export type Bits = 1 | 2 | 3 | 4 | 8 | 16 | 32;
export interface Tier {
  /** Index in TIERS and the nibble stored in tier maps. */
  readonly id: number;
  readonly name: string;
  readonly kBits: Bits;
  readonly vBits: Bits;
}

/** Finest first: a plan may only move a token to a higher id. */
export const TIERS: readonly Tier[] = (
  [
    [32, 32],
    [16, 16],
    [8, 8],
    [8, 4],
    [4, 4],
    [4, 3],
    [4, 2],
    [3, 3],
    [3, 2],
    [2, 2],
    [2, 1],
  ] as const
).map(([kBits, vBits], id) => ({ id, name: kBits > 8 ? `f${kBits}` : `${kBits},${vBits}`, kBits, vBits }));
/** The token's bytes are gone. */
export const DROP = 15;
export const TIER_IDS = 16;
export const tierNamed = (name: string): number => {
  if (name === 'drop') return DROP;
  const tier = TIERS.find((t) => t.name === name);
  if (!tier) throw new Error(`no tier named ${name}`);
  return tier.id;
};

/** Largest power of two that divides headDim: the size of the Hadamard blocks. */
export const hadamardSize = (headDim: number): number => headDim & -headDim;

/**
 * Lloyd-Max levels of N(0,1) as integers within -63..63 (source: J. Max, "Quantizing for minimum distortion", 1960):
 * a level is integer / CODEBOOK_UNIT standard deviations. Integers, so that scores and weighted values are integer
 * dots; 63 at most, so that integer + 64 fits the relaxed dot's 7-bit operand. Rounding the levels costs
 * 0.4 % of the distortion at 4 bits, less below. The f16 scale absorbs the unit: a decoded element is
 * scale * integer. The encoder normalises a vector to rms 1 and takes the nearest level.
 */
export const CODEBOOKS: Readonly<Record<1 | 2 | 3 | 4, readonly number[]>> = {
  1: [-40, 40],
  2: [-40, -12, 12, 40],
  3: [-62, -39, -22, -7, 7, 22, 39, 62],
  4: [-61, -46, -36, -28, -21, -15, -9, -3, 3, 9, 15, 21, 28, 36, 46, 61],
};
/** The integer that stands for one standard deviation. */
export const CODEBOOK_UNIT: Readonly<Record<1 | 2 | 3 | 4, number>> = {
  1: 40 / 0.7978846,
  2: 26.4831,
  3: 28.8825,
  4: 22.312,
};

const pad16 = (n: number): number => (n + 15) & ~15;
export const pad4 = (n: number): number => (n + 3) & ~3;

/** Bytes of 4 tokens' keys or values. */
export function halfBlockBytes(bits: Bits, headDim: number): number {
  const chunks = headDim / 4;
  switch (bits) {
    case 32:
    case 16:
      return pad16((4 * headDim * bits) / 8);
    case 8:
      return chunks * 16;
    case 4:
      return Math.ceil(chunks / 2) * 16;
    case 3:
      return (Math.ceil(chunks / 4) + Math.ceil(chunks / 8)) * 16;
    case 2:
      return Math.ceil(chunks / 4) * 16;
    case 1:
      return Math.ceil(chunks / 8) * 16;
  }
}

export const recordFixedBytes = (tokens: number, headDim: number): number =>
  16 + pad16(Math.ceil(tokens / 2)) + pad16(headDim * 2);

/** Bytes of one tier's group of n tokens within a record. */
export function groupBytes(tierId: number, n: number, headDim: number): number {
  if (n === 0 || tierId === DROP) return 0;
  const { kBits, vBits } = TIERS[tierId]!;
  const n4 = pad4(n);
  return (
    (kBits <= 8 ? pad16(n4 * 2) : 0) +
    (vBits <= 8 ? pad16(n4 * 2) : 0) +
    (n4 / 4) * (halfBlockBytes(kBits, headDim) + halfBlockBytes(vBits, headDim))
  );
}

/** Bytes of a record whose tokens fall into tiers as `counts[tierId]`; mass not included. */
export function recordBytes(tokens: number, counts: ArrayLike<number>, headDim: number): number {
  let bytes = recordFixedBytes(tokens, headDim);
  for (let id = 0; id < TIERS.length; id++) bytes += groupBytes(id, counts[id] ?? 0, headDim);
  return bytes;
}

/** Cells (padded tokens) of a record. */
export function recordCells(counts: ArrayLike<number>): number {
  let cells = 0;
  for (let id = 0; id < TIERS.length; id++) cells += pad4(counts[id] ?? 0);
  return cells;
}

export const massBytes = (cells: number): number => pad16(cells * 4);
export const segmentHeaderBytes = (kvHeads: number): number => SEGMENT_HEADER_BYTES + pad16(kvHeads * 4);

/** A record's share that a token costs, in bytes, without fixed parts and padding: what an allocator sums. */
export function cellBytes(tierId: number, headDim: number, mass: boolean): number {
  if (tierId === DROP) return 0;
  const { kBits, vBits } = TIERS[tierId]!;
  return (
    (halfBlockBytes(kBits, headDim) + halfBlockBytes(vBits, headDim)) / 4 +
    (kBits <= 8 ? 2 : 0) +
    (vBits <= 8 ? 2 : 0) +
    (mass ? 4 : 0)
  );
}

/**
 * EXACT PART, one block per layer: sinks, window and current epoch, in slot order (sinks first, then the
 * other uncompressed tokens in position order).
 *   per kvHead: K [capacity][headDim], then V [capacity][headDim], f32 or f16, rotated, K post-RoPE; each padded to 16
 *   then per kvHead: u32 mass[capacity], padded to 16; only if the policy needs mass
 */
export interface ExactLayout {
  readonly kvHeads: number;
  readonly headDim: number;
  readonly capacity: number;
  readonly bits: 16 | 32;
  readonly mass: boolean;
}
export const exactHalfBytes = (e: ExactLayout): number => pad16((e.capacity * e.headDim * e.bits) / 8);
export const exactKAt = (e: ExactLayout, kvHead: number): number => kvHead * 2 * exactHalfBytes(e);
export const exactVAt = (e: ExactLayout, kvHead: number): number => exactKAt(e, kvHead) + exactHalfBytes(e);
export const exactMassAt = (e: ExactLayout, kvHead: number): number =>
  e.kvHeads * 2 * exactHalfBytes(e) + kvHead * massBytes(e.capacity);
export const exactBytes = (e: ExactLayout): number =>
  e.kvHeads * 2 * exactHalfBytes(e) + (e.mass ? e.kvHeads * massBytes(e.capacity) : 0);
