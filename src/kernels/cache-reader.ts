import type { Arena, Ptr } from '../core/arena.ts';
import { fromF16, levelOf, readCode, scaleOf, type TierGroup, tierGroups } from './cache-math.ts';
import { type Bits, halfBlockBytes, PLAIN_GROUP, recordCounts, recordParts, recordTiers } from './layout.ts';

const f = Math.fround;

export type Half = 'k' | 'v';

/** What a record holds besides its cells. */
export interface ReadRecord {
  readonly groups: TierGroup[];
  /** As decoded; zeros in a plain record. */
  readonly mean: Float32Array;
  readonly meanCodes: Int8Array;
  /** f16 bits. */
  readonly meanScale: number;
  /** f16 bits, and their values. */
  readonly bases: Readonly<Record<Half, number>>;
  readonly base: Readonly<Record<Half, number>>;
  /** Tier ids in position order. */
  readonly tiers: Uint8Array;
}

export type CacheReader = ReturnType<typeof cacheReader>;

export const bitsOf = (g: TierGroup, half: Half): Bits => (half === 'k' ? g.kBits : g.vBits);

/** Reads the cache's bytes for the reference kernels. Views are made anew at each call: growing memory detaches them. */
export function cacheReader(arena: Arena) {
  const u8 = () => new Uint8Array(arena.memory.buffer);
  const u16 = () => new Uint16Array(arena.memory.buffer);
  const u32 = () => new Uint32Array(arena.memory.buffer);
  const f32 = () => new Float32Array(arena.memory.buffer);

  const floats = (bits: 16 | 32, at: Ptr, count: number): Float32Array => {
    if (bits === 32) return f32().slice(at >> 2, (at >> 2) + count);
    const halves = u16().subarray(at >> 1, (at >> 1) + count);
    const values = new Float32Array(count);
    for (let i = 0; i < count; i++) values[i] = fromF16(halves[i]!);
    return values;
  };

  /** One token's vector in a half block: float values, or integer levels. */
  const vector = (record: Ptr, g: TierGroup, half: Half, headDim: number, cell: number): Float32Array => {
    const bits = bitsOf(g, half);
    const blocks = record + g[half];
    if (bits > 8) return floats(bits as 16 | 32, blocks + (cell * headDim * bits) / 8, headDim);
    const block = blocks + (cell >> 2) * halfBlockBytes(bits, headDim);
    const bytes = u8();
    const levels = new Float32Array(headDim);
    for (let c = 0; c < headDim; c++)
      levels[c] = levelOf(g, bits, readCode(bytes, block, half, bits, headDim, cell & 3, c));
    return levels;
  };

  /** Bytes of a cell's scale as they are stored. */
  const scaleBits = (record: Ptr, g: TierGroup, half: Half, cell: number): Uint8Array => {
    const [at, bytes] = half === 'k' ? [g.kScale, g.kScaleBytes] : [g.vScale, g.vScaleBytes];
    return u8().slice(record + at + cell * bytes, record + at + (cell + 1) * bytes);
  };
  /** Scale of a channel of a cell; of all channels unless the tier is plain. 1 where there is none. */
  const scale = (record: Ptr, g: TierGroup, half: Half, cell: number, base: number, channel = 0): number => {
    const stored = scaleBits(record, g, half, cell);
    const bits = bitsOf(g, half);
    if (stored.length === 0) return 1;
    if (!g.plain && bits < 8) return scaleOf(bits as 1 | 2 | 3 | 4, stored[0]!, base);
    const at = g.plain ? Math.floor(channel / PLAIN_GROUP) * 2 : 0;
    return fromF16(stored[at]! | (stored[at + 1]! << 8));
  };
  /** One token's decoded vector; keys of quantised tiers plus `mean`, which 0 leaves out. */
  const decoded = (
    record: Ptr,
    { base, mean }: Pick<ReadRecord, 'base' | 'mean'>,
    g: TierGroup,
    half: Half,
    cell: number,
  ): Float32Array => {
    const x = vector(record, g, half, mean.length, cell);
    const bits = bitsOf(g, half);
    if (bits > 8) return x;
    for (let c = 0; c < x.length; c++) {
      const y = f(scale(record, g, half, cell, base[half], c) * x[c]!);
      x[c] = half === 'k' && !g.plain ? f(y + mean[c]!) : y;
    }
    return x;
  };

  const recordAt = (record: Ptr, tokens: number, headDim: number): ReadRecord => {
    const bytes = u8();
    const counts = recordCounts(bytes, record);
    const parts = recordParts(tokens, counts, headDim);
    const [k, v, meanScale] = [1, 2, 3].map((i) => u16()[(record >> 1) + i]!) as [number, number, number];
    const meanCodes = new Int8Array(headDim);
    if (!parts.plain) meanCodes.set(bytes.subarray(record + parts.mean, record + parts.mean + headDim));
    const mean = Float32Array.from(meanCodes, (code) => f(fromF16(meanScale) * code));
    const tiers = new Uint8Array(tokens);
    recordTiers(bytes, record, tokens, headDim, tiers);
    return {
      groups: tierGroups(counts, tokens, headDim),
      mean,
      meanCodes,
      meanScale,
      bases: { k, v },
      base: { k: fromF16(k), v: fromF16(v) },
      tiers,
    };
  };

  return { u8, u16, u32, f32, floats, vector, scaleBits, scale, decoded, recordAt };
}
