import type { Ptr } from '../core/arena.ts';
import {
  baseOf,
  checkNeverFiner,
  checkNotMixed,
  fromF16,
  nearest,
  quantise,
  quantisePlain,
  readCode,
  sumOfSquares,
  type TierGroup,
  tierGroups,
  toF16,
  writeCode,
} from './cache-math.ts';
import { bitsOf, type CacheReader, type Half, type ReadRecord } from './cache-reader.ts';
import type { Kernels } from './kernels.ts';
import {
  countTiers,
  DROP,
  exactKAt,
  exactMassAt,
  exactVAt,
  halfBlockBytes,
  PLAIN_GROUP,
  recordParts,
} from './layout.ts';

const f = Math.fround;

/** One half of a token before it is written: float values (keys with the mean), or what a record held. */
type Source =
  | { readonly bits: 16 | 32; readonly values: Float32Array }
  | {
      readonly bits: 1 | 2 | 3 | 4 | 8;
      /** Decoded, keys without the mean. */
      readonly values: Float32Array;
      readonly codes: Uint8Array;
      readonly scale: Uint8Array;
    };
/** What the first encoding fixed. */
type Fixed = Pick<ReadRecord, 'mean' | 'meanCodes' | 'meanScale' | 'bases' | 'base'>;

/** Packing of the reference: records are written from exact rows, or from another record. */
export function referenceRecords({
  u8,
  u16,
  f32,
  floats,
  vector,
  scaleBits,
  scale,
  decoded,
  recordAt,
}: CacheReader): Pick<Kernels, 'encodeRecord' | 'recodeRecord' | 'decodeRecord'> {
  /** Writes a record whose halves come from `source`; a half of unchanged bits keeps its bits. */
  const build = (
    headDim: number,
    tiers: Uint8Array,
    fixed: Fixed,
    source: (half: Half, token: number) => Source,
    out: Ptr,
  ): number => {
    const tokens = tiers.length;
    const counts = countTiers(tiers);
    const parts = recordParts(tokens, counts, headDim);
    if (parts.bytes === 0) return 0;
    const groups = tierGroups(counts, tokens, headDim);
    const bytes = u8();
    const halves = u16();
    const words = f32();
    bytes.fill(0, out, out + parts.bytes);
    halves.set([groups.reduce((mask, g) => mask | (1 << g.id), 0)], out >> 1);
    if (!parts.plain) {
      halves.set([fixed.bases.k, fixed.bases.v, fixed.meanScale], (out >> 1) + 1);
      bytes.set(new Uint8Array(fixed.meanCodes.buffer), out + parts.mean);
    }
    groups.forEach((g, i) => {
      bytes[out + 8 + i] = g.n;
    });
    if (parts.map)
      for (let t = 0; t < tokens; t++) bytes[out + parts.map + (t >> 1)]! |= tiers[t]! << ((t & 1) * 4);

    const place = (g: TierGroup, half: Half, cell: number, token: number): void => {
      const from = source(half, token);
      const bits = bitsOf(g, half);
      if (bits > 8) {
        const to = out + g[half] + (cell * headDim * bits) / 8;
        for (let c = 0; c < headDim; c++)
          if (bits === 32) words[(to >> 2) + c] = from.values[c]!;
          else halves[(to >> 1) + c] = toF16(from.values[c]!);
        return;
      }
      const scaleAt =
        out + (half === 'k' ? g.kScale + cell * g.kScaleBytes : g.vScale + cell * g.vScaleBytes);
      let codes = new Uint8Array(headDim);
      if ('codes' in from && from.bits === bits) {
        codes = from.codes.slice();
        bytes.set(from.scale, scaleAt);
      } else if (g.plain) {
        for (let c = 0; c < headDim; c += PLAIN_GROUP) {
          const part = codes.subarray(c, c + PLAIN_GROUP);
          const d = quantisePlain(bits as 4 | 8, from.values.subarray(c, c + PLAIN_GROUP), part);
          bytes.set([d & 255, d >> 8], scaleAt + (c / PLAIN_GROUP) * 2);
        }
      } else {
        const centred = half === 'k' && from.bits > 8;
        const x = from.values.map((y, c) => (centred ? f(y - fixed.mean[c]!) : y));
        const s = quantise(bits as 1 | 2 | 3 | 4 | 8, x, codes, fixed.base[half]);
        bytes.set(bits === 8 ? [s & 255, s >> 8] : [s], scaleAt);
      }
      const block = out + g[half] + (cell >> 2) * halfBlockBytes(bits, headDim);
      for (let c = 0; c < headDim; c++) writeCode(bytes, block, half, bits, headDim, cell & 3, c, codes[c]!);
    };
    for (const g of groups) {
      let cell = 0;
      for (let t = 0; t < tokens; t++) {
        if (tiers[t] !== g.id) continue;
        place(g, 'k', cell, t);
        place(g, 'v', cell, t);
        cell++;
      }
    }
    return parts.bytes;
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

  /** Masses in the new record's cell order; `from` says where a token's mass was, 0 for none. */
  const moveMass = (headDim: number, tiers: Uint8Array, massOut: Ptr, from: (token: number) => Ptr): void => {
    const groups = tierGroups(countTiers(tiers), tiers.length, headDim);
    const words = u16();
    words.fill(0, massOut >> 1, (massOut >> 1) + groups.reduce((n, g) => n + g.n4, 0));
    cellsOf(groups, tiers).forEach((cell, t) => {
      const at = cell < 0 ? 0 : from(t);
      if (at) words[(massOut >> 1) + cell] = words[at >> 1]!;
    });
  };

  /** Mean of all keys in 8 bits, and the bases: twice the largest rms. */
  const fix = (tokens: number, headDim: number, k: Float32Array, v: Float32Array): Fixed => {
    const sums = new Float32Array(headDim);
    for (let t = 0; t < tokens; t++)
      for (let c = 0; c < headDim; c++) sums[c] = sums[c]! + k[t * headDim + c]!;
    let largest = 0;
    for (let c = 0; c < headDim; c++) {
      sums[c] = f(sums[c]! / tokens);
      largest = Math.max(largest, Math.abs(sums[c]!));
    }
    const meanScale = toF16(f(largest / 127));
    const inverse = meanScale === 0 ? 0 : f(1 / fromF16(meanScale));
    const meanCodes = Int8Array.from(sums, (x) =>
      Math.max(-127, Math.min(127, nearest(Math.max(-1e6, Math.min(1e6, f(x * inverse)))))),
    );
    const mean = Float32Array.from(meanCodes, (code) => f(fromF16(meanScale) * code));
    const most = { k: 0, v: 0 };
    for (let t = 0; t < tokens; t++) {
      const [x, y] = [k, v].map((rows) => rows.subarray(t * headDim, (t + 1) * headDim)) as [
        Float32Array,
        Float32Array,
      ];
      most.k = Math.max(most.k, sumOfSquares(x.map((value, c) => f(value - mean[c]!))));
      most.v = Math.max(most.v, sumOfSquares(y));
    }
    const bases = { k: baseOf(most.k, headDim), v: baseOf(most.v, headDim) };
    return { mean, meanCodes, meanScale, bases, base: { k: fromF16(bases.k), v: fromF16(bases.v) } };
  };

  return {
    encodeRecord(e, kvHead, slot, tokens, tiersAt, out, massOut) {
      const { headDim } = e;
      const tiers = u8().slice(tiersAt, tiersAt + tokens);
      checkNotMixed(tiers);
      const held = (half: Ptr) =>
        floats(e.bits, e.ptr + half + (slot * headDim * e.bits) / 8, tokens * headDim);
      const rows = { k: held(exactKAt(e, kvHead)), v: held(exactVAt(e, kvHead)) };
      const size = build(
        headDim,
        tiers,
        fix(tokens, headDim, rows.k, rows.v),
        (half, t) => ({ bits: 32, values: rows[half].subarray(t * headDim, (t + 1) * headDim) }),
        out,
      );
      if (massOut)
        moveMass(headDim, tiers, massOut, (t) =>
          e.mass ? e.ptr + exactMassAt(e, kvHead) + (slot + t) * 2 : 0,
        );
      return size;
    },

    recodeRecord(record, tokens, headDim, tiersAt, out, mass, massOut) {
      const tiers = u8().slice(tiersAt, tiersAt + tokens);
      const before = recordAt(record, tokens, headDim);
      checkNeverFiner(before.tiers, tiers);
      const cells = cellsOf(before.groups, before.tiers);
      const groupOf = new Map(before.groups.map((g) => [g.id, g]));
      const size = build(
        headDim,
        tiers,
        before,
        (half, t) => {
          const g = groupOf.get(before.tiers[t]!)!;
          const cell = cells[t]! - g.cell;
          const bits = bitsOf(g, half);
          const values = vector(record, g, half, headDim, cell);
          if (bits > 8) return { bits: bits as 16 | 32, values };
          const block = record + g[half] + (cell >> 2) * halfBlockBytes(bits, headDim);
          const bytes = u8();
          const by = scale(record, g, half, cell, before.base[half]);
          return {
            bits: bits as 1 | 2 | 3 | 4 | 8,
            values: values.map((x) => f(by * x)),
            codes: Uint8Array.from({ length: headDim }, (_, c) =>
              readCode(bytes, block, half, bits, headDim, cell & 3, c),
            ),
            scale: scaleBits(record, g, half, cell),
          };
        },
        out,
      );
      if (massOut) moveMass(headDim, tiers, massOut, (t) => (mass ? mass + cells[t]! * 2 : 0));
      return size;
    },

    decodeRecord(record, tokens, headDim, k, v) {
      const read = recordAt(record, tokens, headDim);
      const cells = cellsOf(read.groups, read.tiers);
      const groupOf = new Map(read.groups.map((g) => [g.id, g]));
      const out = f32();
      for (let t = 0; t < tokens; t++) {
        const g = groupOf.get(read.tiers[t]!);
        for (const half of ['k', 'v'] as const) {
          const to = ((half === 'k' ? k : v) >> 2) + t * headDim;
          if (g) out.set(decoded(record, read, g, half, cells[t]! - g.cell), to);
          else out.fill(0, to, to + headDim);
        }
      }
    },
  };
}
