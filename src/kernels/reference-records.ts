import type { Ptr } from '../core/arena.ts';
import {
  checkNeverFiner,
  countTiers,
  fromF16,
  meanAt,
  quantise,
  readCode,
  TIER_MAP_AT,
  type TierGroup,
  tierGroups,
  toF16,
  writeCode,
} from './cache-math.ts';
import type { CacheReader } from './cache-reader.ts';
import type { Kernels } from './kernels.ts';
import { type Bits, DROP, exactKAt, exactMassAt, exactVAt, halfBlockBytes, recordBytes } from './layout.ts';

const f = Math.fround;

/** Packing of the reference: records are written from exact rows, or from another record. */
export function referenceRecords({
  u8,
  u16,
  u32,
  f32,
  floats,
  vector,
  recordAt,
}: CacheReader): Pick<Kernels, 'encodeRecord' | 'recodeRecord' | 'decodeRecord'> {
  interface Source {
    readonly bits: Bits;
    /** Float values (keys with the mean), or integer levels. */
    readonly values: Float32Array;
    readonly codes: Uint8Array | undefined;
    readonly scale: number;
  }

  /** Writes a record whose halves come from `source`; a half of unchanged bits keeps its bits. */
  const build = (
    tokens: number,
    headDim: number,
    tiers: Uint8Array,
    mean: Float32Array,
    source: (half: 'k' | 'v', token: number) => Source,
    out: Ptr,
  ): number => {
    const counts = countTiers(tiers);
    const size = recordBytes(tokens, counts, headDim);
    const bytes = u8();
    const halves = u16();
    const words = f32();
    bytes.fill(0, out, out + size);
    bytes.set(counts, out);
    for (let t = 0; t < tokens; t++) bytes[out + TIER_MAP_AT + (t >> 1)]! |= tiers[t]! << ((t & 1) * 4);
    for (let c = 0; c < headDim; c++) halves[((out + meanAt(tokens)) >> 1) + c] = toF16(mean[c]!);

    const place = (half: 'k' | 'v', bits: Bits, at: Ptr, scaleAt: Ptr, cell: number, token: number): void => {
      const from = source(half, token);
      const value = (c: number) =>
        from.bits > 8 ? from.values[c]! : f(fromF16(from.scale) * from.values[c]!);
      if (bits > 8) {
        const to = at + (cell * headDim * bits) / 8;
        for (let c = 0; c < headDim; c++)
          if (bits === 32) words[(to >> 2) + c] = value(c);
          else halves[(to >> 1) + c] = toF16(value(c));
        return;
      }
      let { codes, scale } = from;
      if (from.bits !== bits) {
        const centred = half === 'k' && from.bits > 8;
        const x = Float32Array.from({ length: headDim }, (_, c) =>
          centred ? f(value(c) - mean[c]!) : value(c),
        );
        codes = new Uint8Array(headDim);
        scale = quantise(bits as 1 | 2 | 3 | 4 | 8, x, codes);
      }
      halves[(scaleAt >> 1) + cell] = scale;
      const block = at + (cell >> 2) * halfBlockBytes(bits, headDim);
      for (let c = 0; c < headDim; c++) writeCode(bytes, block, half, bits, headDim, cell & 3, c, codes![c]!);
    };
    for (const g of tierGroups(counts, tokens, headDim)) {
      let cell = 0;
      for (let t = 0; t < tokens; t++) {
        if (tiers[t] !== g.id) continue;
        place('k', g.kBits, out + g.k, out + g.kScale, cell, t);
        place('v', g.vBits, out + g.v, out + g.vScale, cell, t);
        cell++;
      }
    }
    return size;
  };

  /** Cell index of each token within a record, -1 where dropped. */
  const cellsOf = (groups: readonly TierGroup[], tiers: Uint8Array): Int32Array => {
    const next = new Map(groups.map((g) => [g.id, g.cell]));
    return Int32Array.from(tiers, (id) => {
      if (id === DROP) return -1;
      const cell = next.get(id)!;
      next.set(id, cell + 1);
      return cell;
    });
  };

  return {
    encodeRecord(e, kvHead, slot, tokens, tiersAt, out, massOut) {
      const { headDim } = e;
      const tiers = u8().slice(tiersAt, tiersAt + tokens);
      const held = (half: Ptr) =>
        floats(e.bits, e.ptr + half + (slot * headDim * e.bits) / 8, tokens * headDim);
      const k = held(exactKAt(e, kvHead));
      const v = held(exactVAt(e, kvHead));
      const mean = new Float32Array(headDim);
      for (let t = 0; t < tokens; t++)
        for (let c = 0; c < headDim; c++) mean[c] = mean[c]! + k[t * headDim + c]!;
      for (let c = 0; c < headDim; c++) mean[c] = fromF16(toF16(f(mean[c]! / tokens)));

      const size = build(
        tokens,
        headDim,
        tiers,
        mean,
        (half, t) => ({
          bits: 32,
          values: (half === 'k' ? k : v).subarray(t * headDim, (t + 1) * headDim),
          codes: undefined,
          scale: 0,
        }),
        out,
      );
      if (massOut) {
        const groups = tierGroups(countTiers(tiers), tokens, headDim);
        const words = u32();
        words.fill(0, massOut >> 2, (massOut >> 2) + groups.reduce((n, g) => n + g.n4, 0));
        if (e.mass)
          cellsOf(groups, tiers).forEach((cell, t) => {
            if (cell >= 0)
              words[(massOut >> 2) + cell] = words[((e.ptr + exactMassAt(e, kvHead)) >> 2) + slot + t]!;
          });
      }
      return size;
    },

    recodeRecord(record, tokens, headDim, tiersAt, out, mass, massOut) {
      checkNeverFiner(u8(), record, tokens, tiersAt);
      const tiers = u8().slice(tiersAt, tiersAt + tokens);
      const before = recordAt(record, tokens, headDim);
      const cells = cellsOf(before.groups, before.tiers);
      const groupOf = new Map(before.groups.map((g) => [g.id, g]));
      const size = build(
        tokens,
        headDim,
        tiers,
        before.mean,
        (half, t) => {
          const g = groupOf.get(before.tiers[t]!)!;
          const cell = cells[t]! - g.cell;
          const bits = half === 'k' ? g.kBits : g.vBits;
          const blocks = record + (half === 'k' ? g.k : g.v);
          const values = vector(half, bits, blocks, headDim, cell);
          if (bits > 8) return { bits, values, codes: undefined, scale: 0 };
          const block = blocks + (cell >> 2) * halfBlockBytes(bits, headDim);
          const bytes = u8();
          const codes = Uint8Array.from({ length: headDim }, (_, c) =>
            readCode(bytes, block, half, bits, headDim, cell & 3, c),
          );
          const scale = u16()[((record + (half === 'k' ? g.kScale : g.vScale)) >> 1) + cell]!;
          return { bits, values, codes, scale };
        },
        out,
      );
      if (massOut) {
        const groups = tierGroups(countTiers(tiers), tokens, headDim);
        const words = u32();
        words.fill(0, massOut >> 2, (massOut >> 2) + groups.reduce((n, g) => n + g.n4, 0));
        if (mass)
          cellsOf(groups, tiers).forEach((cell, t) => {
            if (cell >= 0) words[(massOut >> 2) + cell] = words[(mass >> 2) + cells[t]!]!;
          });
      }
      return size;
    },

    decodeRecord(record, tokens, headDim, k, v) {
      const { groups, mean, tiers } = recordAt(record, tokens, headDim);
      const cells = cellsOf(groups, tiers);
      const groupOf = new Map(groups.map((g) => [g.id, g]));
      const out = f32();
      for (let t = 0; t < tokens; t++) {
        const g = groupOf.get(tiers[t]!);
        for (const half of ['k', 'v'] as const) {
          const to = ((half === 'k' ? k : v) >> 2) + t * headDim;
          if (!g) {
            out.fill(0, to, to + headDim);
            continue;
          }
          const cell = cells[t]! - g.cell;
          const bits = half === 'k' ? g.kBits : g.vBits;
          const x = vector(half, bits, record + (half === 'k' ? g.k : g.v), headDim, cell);
          if (bits <= 8) {
            const scale = fromF16(u16()[((record + (half === 'k' ? g.kScale : g.vScale)) >> 1) + cell]!);
            for (let c = 0; c < headDim; c++)
              x[c] = half === 'k' ? f(f(scale * x[c]!) + mean[c]!) : f(scale * x[c]!);
          }
          out.set(x, to);
        }
      }
    },
  };
}
