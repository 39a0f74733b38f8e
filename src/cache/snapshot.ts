import type { ModelConfig } from '../core/config.ts';
import type { Kernels } from '../kernels/kernels.ts';
import {
  DROP,
  massBytes,
  pad4,
  readTiers,
  recordCounts,
  recordMap,
  SEGMENT_HEADER_BYTES,
  TIER_IDS,
  TIERS,
} from '../kernels/layout.ts';
import type { ExactPart } from './exact-part.ts';
import type { MessageSpan } from './messages.ts';
import { type CacheConfig, type CacheView, FRESH } from './policy.ts';
import type { SegmentBlock, SegmentSpan } from './segments.ts';

/** What of a cache a plan looks at. */
export interface Snapped {
  readonly context: { readonly model: ModelConfig; readonly kernels: Pick<Kernels, 'arena'> };
  readonly config: Pick<CacheConfig, 'sinks' | 'seed'>;
  readonly position: number;
  readonly tracksMass: boolean;
  readonly spans: readonly SegmentSpan[];
  readonly blocks: readonly (readonly SegmentBlock[])[];
  readonly exact: ExactPart;
  /** Closed segments hold nothing: plans do not see them. */
  readonly gaps: { has(segment: number): boolean };
  /** Where messages begin; undefined: no policy asks. */
  readonly messages: { spans(end: number): readonly MessageSpan[] } | undefined;
}

/** Copies what a plan is made from: tiers and mass of all segments, and of `fresh`, which still lies in the exact part. */
export function snapshot(cache: Snapped, fresh: SegmentSpan | null): CacheView {
  const { layers, kvHeads, headDim } = cache.context.model;
  const { arena } = cache.context.kernels;
  const heads = layers * kvHeads;
  const { buffer } = arena.memory;
  const bytes = new Uint8Array(buffer);
  const halves = new Uint16Array(buffer, 0, buffer.byteLength >> 1);
  const words = new Uint32Array(buffer, 0, buffer.byteLength >> 2);
  const counts = new Uint8Array(TIER_IDS);
  const next = new Int32Array(TIER_IDS);
  const held = fresh ? cache.spans.slice(0, -1) : cache.spans;
  const segments = held.flatMap((span, index) => {
    if (cache.gaps.has(index)) return [];
    const tiers = new Uint8Array(heads * span.tokens);
    const mass = cache.tracksMass ? new Uint16Array(tiers.length) : undefined;
    for (let layer = 0; layer < layers; layer++) {
      const block = arena.ptr(cache.blocks[layer]![index]!.id);
      // As SegmentReader reads. Masses follow what is stored of a block, in the order of heads.
      let massAt = (block + words[(block >> 2) + 2]!) / 2;
      for (let h = 0; h < kvHeads; h++) {
        const to = (layer * kvHeads + h) * span.tokens;
        const at = words[(block + SEGMENT_HEADER_BYTES) / 4 + h]!;
        if (at === 0) {
          tiers.fill(DROP, to, to + span.tokens);
          continue;
        }
        const record = block + at;
        const map = recordMap(span.tokens, recordCounts(bytes, record, counts), headDim);
        readTiers(bytes, record, map, counts, tiers, to, span.tokens);
        if (mass) massAt += readMass(halves, massAt, counts, next, tiers, mass, to, span.tokens);
      }
    }
    return { index, ...span, tiers, mass };
  });
  if (fresh) {
    const tiers = new Uint8Array(heads * fresh.tokens).fill(FRESH);
    const mass = cache.tracksMass ? new Uint16Array(tiers.length) : undefined;
    if (mass)
      for (let layer = 0; layer < layers; layer++)
        for (let h = 0; h < kvHeads; h++)
          mass.set(
            new Uint16Array(
              arena.memory.buffer,
              cache.exact.massPtr(layer, h) + cache.config.sinks * 2,
              fresh.tokens,
            ),
            (layer * kvHeads + h) * fresh.tokens,
          );
    segments.push({ index: held.length, ...fresh, tiers, mass });
  }
  const { position, messages } = cache;
  return {
    ...{ layers, kvHeads, headDim, position, segments, seed: cache.config.seed },
    ...(messages ? { messages: messages.spans(position) } : {}),
  };
}

/**
 * Brings a record's masses, at `from`, into position order, at `to` of `out` as their tiers.
 * @param counts tokens by tier
 * @param next scratch by tier
 * @returns the masses that the record has
 */
function readMass(
  halves: Uint16Array,
  from: number,
  counts: Uint8Array,
  next: Int32Array,
  tiers: Uint8Array,
  out: Uint16Array,
  to: number,
  tokens: number,
): number {
  let cells = 0;
  for (let id = 0; id < TIERS.length; id++) {
    next[id] = from + cells;
    cells += pad4(counts[id]!);
  }
  for (let i = to; i < to + tokens; i++) {
    const id = tiers[i]!;
    if (id < TIERS.length) out[i] = halves[next[id]!++]!;
  }
  return massBytes(cells) / 2;
}
