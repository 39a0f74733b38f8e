import type { ModelConfig } from '../core/config.ts';
import type { Kernels } from '../kernels/kernels.ts';
import type { ExactPart } from './exact-part.ts';
import type { MessageSpan } from './messages.ts';
import { type CacheConfig, type CacheView, FRESH } from './policy.ts';
import { cellIndex, type SegmentBlock, type SegmentReader, type SegmentSpan } from './segments.ts';

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
  const held = fresh ? cache.spans.slice(0, -1) : cache.spans;
  const segments = held.flatMap((span, index) => {
    if (cache.gaps.has(index)) return [];
    const tiers = new Uint8Array(heads * span.tokens);
    const mass = cache.tracksMass ? new Uint32Array(tiers.length) : undefined;
    const cells = new Int32Array(span.tokens);
    for (let layer = 0; layer < layers; layer++) {
      const block = cache.blocks[layer]![index]!;
      const reader = cache.reader(block);
      const address = arena.ptr(block.id);
      for (let h = 0; h < kvHeads; h++) {
        const at = (layer * kvHeads + h) * span.tokens;
        reader.tiers(h, tiers, at);
        if (!mass) continue;
        cellIndex(tiers, at, span.tokens, cells);
        const from = new Uint16Array(arena.memory.buffer, address + reader.massAt(h), reader.cells(h));
        for (let i = 0; i < span.tokens; i++) if (cells[i]! >= 0) mass[at + i] = from[cells[i]!]!;
      }
    }
    return { index, ...span, tiers, mass };
  });
  if (fresh) {
    const tiers = new Uint8Array(heads * fresh.tokens).fill(FRESH);
    const mass = cache.tracksMass ? new Uint32Array(tiers.length) : undefined;
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
