import type { Arena, Ptr } from '../core/arena.ts';
import { fromF16, levelOf, meanAt, readCode, TIER_MAP_AT, type TierGroup, tierGroups } from './cache-math.ts';
import { type Bits, halfBlockBytes } from './layout.ts';

/** What a record holds besides its cells. */
export interface ReadRecord {
  readonly groups: TierGroup[];
  readonly mean: Float32Array;
  /** Tier ids in position order. */
  readonly tiers: Uint8Array;
}

export type CacheReader = ReturnType<typeof cacheReader>;

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
  const vector = (half: 'k' | 'v', bits: Bits, blocks: Ptr, headDim: number, cell: number): Float32Array => {
    if (bits > 8) return floats(bits as 16 | 32, blocks + (cell * headDim * bits) / 8, headDim);
    const block = blocks + (cell >> 2) * halfBlockBytes(bits, headDim);
    const bytes = u8();
    const levels = new Float32Array(headDim);
    for (let c = 0; c < headDim; c++)
      levels[c] = levelOf(bits, readCode(bytes, block, half, bits, headDim, cell & 3, c));
    return levels;
  };

  const recordAt = (record: Ptr, tokens: number, headDim: number): ReadRecord => {
    const bytes = u8();
    return {
      groups: tierGroups(bytes.subarray(record, record + 16), tokens, headDim),
      mean: floats(16, record + meanAt(tokens), headDim),
      tiers: Uint8Array.from(
        { length: tokens },
        (_, t) => (bytes[record + TIER_MAP_AT + (t >> 1)]! >> ((t & 1) * 4)) & 15,
      ),
    };
  };

  return { u8, u16, u32, f32, floats, vector, recordAt };
}
