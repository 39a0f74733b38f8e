/**
 * The byte layout of the compressed cache, version 2. One place: every kernel, the store and the session
 * files are parameterised from here. All integers little-endian.
 *
 * Keys and values are stored *rotated*: post-RoPE key and value vectors times the orthonormal Hadamard matrix
 * of `hadamardSize(headDim)` (block-diagonal where headDim is no power of two). Queries are rotated alike, so scores
 * are unchanged; the attention output is un-rotated by the caller (the matrix is its own inverse). Plain tiers hold them as they are.
 *
 * SEGMENT BLOCK, one per (layer, segment), one arena block:
 *   u32 start         first position
 *   u32 tokens        positions in the segment, 1..128
 *   u32 storedBytes   bytes from the block's start to the mass sections: what is persisted as an extent
 *   u32 recordAt[kvHeads]   byte offset of each kvHead's record from the block's start, 0 if all its tokens are dropped; then padded to 16
 *   records, kvHead by kvHead, each a multiple of 16 bytes
 *   u16 massCells[kvHead][cells]   only if the policy needs mass; kvHead by kvHead, in the record's cell order; saturating units, AttendArgs.mass
 *
 * RECORD, one per (layer, kvHead, segment); a record without tokens takes no bytes:
 *   u16 present       bit id: the record holds tokens of that tier
 *   f16 kBase, vBase  what key and value scale codes are relative to: twice the largest rms of the segment's vectors as they are
 *                     quantised (keys centred), rounded up; fixed when the record is first encoded, also for dropped tokens' sake
 *   f16 meanScale
 *   u8 counts[]       tokens of each present tier, ascending ids; padded to 4
 *   i8 mean[headDim]  times meanScale: mean of the segment's keys (all its tokens, also dropped ones); keys are centred by this decoded mean.
 *                     Not in a plain record
 *   tierMap           4 bits a token in position order, low nibble first; ceil(tokens / 2) bytes, padded to 4; only if the tokens differ
 *   scales            for each present tier, n4 = its count rounded up to a multiple of 4: K scales [n4], then V scales [n4];
 *                       16, 32 bits  none
 *                       8 bits       f16
 *                       1 to 4 bits  u8 code: one standard deviation is base * SCALE_TABLE[code]; 0 stands for a zero vector
 *                       plain        f16 [ceil(headDim / 32)] a cell, one for each 32 channels
 *   padded to 16, then for each present tier:
 *     K codes         n4 / 4 blocks of halfBlockBytes(kBits, headDim)
 *     V codes         n4 / 4 blocks of halfBlockBytes(vBits, headDim)
 *   Cells of a tier stand in position order. Padding cells hold zeros and are never visible.
 *   The record's *cells*, in order, are the padded cells of all its tiers: sum of n4.
 *   A plain record holds tokens of plain tiers alone.
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
 * 8-bit codes are the integers themselves; codes of 1 to 4 bits index CODEBOOKS[bits], plain 4-bit codes stand for code - 8.
 * A decoded element is scale * level, keys plus the mean (plain ones not). The scale of a code of 1 to 4 bits is
 * (base * SCALE_TABLE[code]) * UNIT_INVERSE[bits], two float32 products.
 */
export const LAYOUT_VERSION = 2;
export const SEGMENT_TOKENS = 128;
/** Before the records' places. */
export const SEGMENT_HEADER_BYTES = 12;
/** Before a record's counts. */
export const RECORD_HEADER_BYTES = 8;
/** Channels that share a scale in plain tiers. */
export const PLAIN_GROUP = 32;

export type Bits = 1 | 2 | 3 | 4 | 8 | 16 | 32;
export interface Tier {
  /** Index in TIERS and the nibble stored in tier maps. */
  readonly id: number;
  readonly name: string;
  readonly kBits: Bits;
  readonly vBits: Bits;
  /**
   * Symmetric absolute-maximum codes with an f16 scale for 32 channels, of vectors that were not rotated: GGML's blocks q8_0 and q4_0
   * (ggml-quants.c, quantize_row_q8_0_ref and quantize_row_q4_0_ref), for comparison. Tokens only leave such a tier to be dropped.
   */
  readonly plain: boolean;
}

const ROTATED: readonly Tier[] = (
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
).map(([kBits, vBits], id) => ({
  id,
  name: kBits > 8 ? `f${kBits}` : `${kBits},${vBits}`,
  kBits,
  vBits,
  plain: false,
}));
/** Finest first: a plan may only move a token to a higher id. */
export const TIERS: readonly Tier[] = [
  ...ROTATED,
  { id: 11, name: 'q8_0', kBits: 8, vBits: 8, plain: true },
  { id: 12, name: 'q4_0', kBits: 4, vBits: 4, plain: true },
];
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
 * 0.4 % of the distortion at 4 bits, less below. The encoder normalises a vector to rms 1 and takes the nearest level.
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

/** 1 / CODEBOOK_UNIT in float32. */
export const UNIT_INVERSE: Readonly<Record<1 | 2 | 3 | 4, number>> = {
  1: Math.fround(1 / CODEBOOK_UNIT[1]),
  2: Math.fround(1 / CODEBOOK_UNIT[2]),
  3: Math.fround(1 / CODEBOOK_UNIT[3]),
  4: Math.fround(1 / CODEBOOK_UNIT[4]),
};
/** Scale codes step by 2^(1/SCALE_STEPS): the nearest is off by 0.63 % rms, far below what codes of 4 bits lose (10 %). */
export const SCALE_STEPS = 32;
/** float32 of 2^((code - 255) / SCALE_STEPS); code 0: zero. */
export const SCALE_TABLE: Float32Array = Float32Array.from({ length: 256 }, (_, code) =>
  code === 0 ? 0 : 2 ** ((code - 255) / SCALE_STEPS),
);

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

/** Bytes of a cell's scale in one half. */
export function scaleBytes({ plain }: Tier, bits: Bits, headDim: number): number {
  if (plain) return 2 * Math.ceil(headDim / PLAIN_GROUP);
  return bits > 8 ? 0 : bits === 8 ? 2 : 1;
}

/** Where the parts of a record lie, in bytes from its start. */
export interface RecordParts {
  /** Offsets: counts follow the header, then these; `map` 0 where all tokens share a tier. */
  readonly mean: number;
  readonly map: number;
  readonly scales: number;
  readonly codes: number;
  readonly bytes: number;
  readonly cells: number;
  readonly plain: boolean;
}

/** The parts of a record whose tokens fall into tiers as `counts[tierId]`; all 0 without tokens. */
export function recordParts(tokens: number, counts: ArrayLike<number>, headDim: number): RecordParts {
  let present = 0;
  let kept = 0;
  let cells = 0;
  let scaled = 0;
  let coded = 0;
  let plain = false;
  for (let id = 0; id < TIERS.length; id++) {
    const n = counts[id] ?? 0;
    if (n === 0) continue;
    const tier = TIERS[id]!;
    const n4 = pad4(n);
    const code = (halfBlockBytes(tier.kBits, headDim) + halfBlockBytes(tier.vBits, headDim)) / 4;
    const scale = scaleBytes(tier, tier.kBits, headDim) + scaleBytes(tier, tier.vBits, headDim);
    present++;
    kept += n;
    cells += n4;
    scaled += n4 * scale;
    coded += n4 * code;
    plain ||= tier.plain;
  }
  if (kept === 0) return { mean: 0, map: 0, scales: 0, codes: 0, bytes: 0, cells: 0, plain };
  const mean = pad4(RECORD_HEADER_BYTES + present);
  const map = mean + (plain ? 0 : headDim);
  const mapped = isMapped(present, kept, tokens);
  const scales = map + (mapped ? pad4((tokens + 1) >> 1) : 0);
  const codes = pad16(scales + scaled);
  return { mean, map: mapped ? map : 0, scales, codes, bytes: codes + coded, cells, plain };
}

/** Whether a record of `tokens` positions that holds `kept` of them in so many tiers says which has which. */
export const isMapped = (tiers: number, kept: number, tokens: number): boolean => tiers > 1 || kept < tokens;

/** Bytes of a record; mass not included. */
export const recordBytes = (tokens: number, counts: ArrayLike<number>, headDim: number): number =>
  recordParts(tokens, counts, headDim).bytes;

/** `recordBytes` for searches that ask it a million times: counts come by index in a list of tiers, and no object is made. */
export class RecordSizes {
  /** Of a cell, by index in the tiers: 0 where it drops. */
  readonly #scales: Float64Array;
  readonly #codes: Float64Array;
  readonly #plain: readonly boolean[];
  readonly #headDim: number;

  constructor(tiers: readonly number[], headDim: number) {
    const tier = (id: number): Tier | undefined => (id === DROP ? undefined : TIERS[id]!);
    const both = (of: (t: Tier, bits: Bits) => number) =>
      Float64Array.from(tiers, (id) => {
        const t = tier(id);
        return t ? of(t, t.kBits) + of(t, t.vBits) : 0;
      });
    this.#scales = both((t, bits) => scaleBytes(t, bits, headDim));
    this.#codes = both((_, bits) => halfBlockBytes(bits, headDim) / 4);
    this.#plain = tiers.map((id) => tier(id)?.plain ?? false);
    this.#headDim = headDim;
  }

  /** Cells of the record that was asked for last. */
  cells = 0;

  /** @param counts tokens by index in the tiers; what stands at the index of a tier that drops is not read */
  bytes(tokens: number, counts: ArrayLike<number>): number {
    const scales = this.#scales;
    const codes = this.#codes;
    let present = 0;
    let kept = 0;
    let cells = 0;
    let scaled = 0;
    let coded = 0;
    let plain = false;
    for (let i = 0; i < codes.length; i++) {
      const n = counts[i]!;
      if (n === 0 || codes[i] === 0) continue;
      const n4 = (n + 3) & ~3;
      present++;
      kept += n;
      cells += n4;
      scaled += n4 * scales[i]!;
      coded += n4 * codes[i]!;
      plain ||= this.#plain[i]!;
    }
    this.cells = cells;
    if (kept === 0) return 0;
    const map = isMapped(present, kept, tokens) ? pad4((tokens + 1) >> 1) : 0;
    return pad16(pad4(RECORD_HEADER_BYTES + present) + (plain ? 0 : this.#headDim) + map + scaled) + coded;
  }
}

/** Tokens by tier id of a record in memory. @param counts takes them: room of TIER_IDS, whose last ones stay */
export function recordCounts(
  bytes: Uint8Array,
  record: number,
  counts = new Uint8Array(TIER_IDS),
): Uint8Array {
  const present = bytes[record]! | (bytes[record + 1]! << 8);
  let at = record + RECORD_HEADER_BYTES;
  for (let id = 0; id < TIERS.length; id++) counts[id] = (present >> id) & 1 ? bytes[at++]! : 0;
  return counts;
}

/** Where the tier map of a record with these counts lies, from its start; 0: all its tokens share a tier. */
export function recordMap(tokens: number, counts: Uint8Array, headDim: number): number {
  let present = 0;
  let kept = 0;
  let plain = false;
  for (let id = 0; id < TIERS.length; id++) {
    const n = counts[id]!;
    if (n === 0) continue;
    present++;
    kept += n;
    plain ||= TIERS[id]!.plain;
  }
  return isMapped(present, kept, tokens) ? pad4(RECORD_HEADER_BYTES + present) + (plain ? 0 : headDim) : 0;
}

/** Tier ids of a record in memory, in position order, into out[at ...]. */
export function recordTiers(
  bytes: Uint8Array,
  record: number,
  tokens: number,
  headDim: number,
  out: Uint8Array,
  at = 0,
): void {
  const counts = recordCounts(bytes, record);
  readTiers(bytes, record, recordMap(tokens, counts, headDim), counts, out, at, tokens);
}

/** The tier of a record that has no map. */
export function onlyTier(counts: Uint8Array): number {
  let only = 0;
  while (counts[only] === 0) only++;
  return only;
}

/** The i-th of the 4-bit numbers that begin at `at`, low half first: tier maps, and tiers in the journal of plans. */
export const nibble = (bytes: Uint8Array, at: number, i: number): number =>
  (bytes[at + (i >> 1)]! >> ((i & 1) * 4)) & 15;

/** `recordTiers` where the record's counts and the place of its map are known. */
export function readTiers(
  bytes: Uint8Array,
  record: number,
  map: number,
  counts: Uint8Array,
  out: Uint8Array,
  at: number,
  tokens: number,
): void {
  if (map === 0) {
    out.fill(onlyTier(counts), at, at + tokens);
    return;
  }
  let from = record + map;
  const even = at + (tokens & ~1);
  for (let to = at; to < even; to += 2) {
    const two = bytes[from++]!;
    out[to] = two & 15;
    out[to + 1] = two >> 4;
  }
  if (tokens & 1) out[even] = bytes[from]! & 15;
}

/** Tokens by tier id, of `tokens` from `from` on; what is no tier (dropped) is not counted. */
export function countTiers(tiers: Uint8Array, from = 0, tokens = tiers.length - from): Uint8Array {
  const counts = new Uint8Array(TIER_IDS);
  for (let i = from; i < from + tokens; i++) {
    const id = tiers[i]!;
    if (id < TIERS.length) counts[id]!++;
  }
  return counts;
}

/** Cells (padded tokens) of a record. */
export function recordCells(counts: ArrayLike<number>): number {
  let cells = 0;
  for (let id = 0; id < TIERS.length; id++) cells += pad4(counts[id] ?? 0);
  return cells;
}

/** Bytes of the u16 mass of so many cells. */
export const massBytes = (cells: number): number => pad4(cells) * 2;
export const segmentHeaderBytes = (kvHeads: number): number => pad16(SEGMENT_HEADER_BYTES + kvHeads * 4);

/** A record's share that a token costs, in bytes, without fixed parts and padding: what an allocator sums. */
export function cellBytes(tierId: number, headDim: number, mass: boolean): number {
  if (tierId === DROP) return 0;
  const tier = TIERS[tierId]!;
  return (
    (halfBlockBytes(tier.kBits, headDim) + halfBlockBytes(tier.vBits, headDim)) / 4 +
    scaleBytes(tier, tier.kBits, headDim) +
    scaleBytes(tier, tier.vBits, headDim) +
    (mass ? 2 : 0)
  );
}

/**
 * EXACT PART, one block per layer: sinks, window and current epoch, in slot order (sinks first, then the
 * other uncompressed tokens in position order).
 *   per kvHead: K [capacity][headDim], then V [capacity][headDim], f32 or f16, rotated, K post-RoPE; each padded to 16
 *   then per kvHead: u16 mass[capacity], padded to 8; only if the policy needs mass
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
