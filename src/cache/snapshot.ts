import type { ModelConfig } from '../core/config.ts';
import type { Kernels } from '../kernels/kernels.ts';
import { massBytes, pad4, TIER_IDS, TIERS } from '../kernels/layout.ts';
import type { ExactPart } from './exact-part.ts';
import type { MessageSpan } from './messages.ts';
import { type CacheConfig, type CacheView, FRESH } from './policy.ts';
import type { SegmentBlock, SegmentReader, SegmentSpan } from './segments.ts';

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
  reader(block: SegmentBlock): SegmentReader;
}

/** Copies what a plan is made from: tiers and mass of all segments, and of `fresh`, which still lies in the exact part. */
export function snapshot(cache: Snapped, fresh: SegmentSpan | null): CacheView {
  const { layers, kvHeads, headDim } = cache.context.model;
  const { arena } = cache.context.kernels;
  const heads = layers * kvHeads;
  const halves = new Uint16Array(arena.memory.buffer, 0, arena.memory.buffer.byteLength >> 1);
  const next = new Int32Array(TIER_IDS);
  const held = fresh ? cache.spans.slice(0, -1) : cache.spans;
  const segments = held.flatMap((span, index) => {
    if (cache.gaps.has(index)) return [];
    const tiers = new Uint8Array(heads * span.tokens);
    const mass = cache.tracksMass ? new Uint16Array(tiers.length) : undefined;
    for (let layer = 0; layer < layers; layer++) {
      const block = cache.blocks[layer]![index]!;
      const reader = cache.reader(block);
      // Masses follow what is stored of a block, in the order of heads.
      let massAt = (arena.ptr(block.id) + reader.storedBytes) / 2;
      for (let h = 0; h < kvHeads; h++) {
        const at = (layer * kvHeads + h) * span.tokens;
        reader.tiers(h, tiers, at);
        if (mass) massAt += readMass(halves, massAt, reader.counts(h), next, tiers, mass, at, span.tokens);
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
