import type { ModelConfig } from '../core/config.ts';
import { SEGMENT_TOKENS } from '../kernels/layout.ts';
import { type ExactPart, stepped } from './exact-part.ts';
import type { PackedPart } from './packed-part.ts';
import type { PendingPlan } from './pending-plan.ts';
import type { CacheConfig } from './policy.ts';
import { dueAfter } from './schedule.ts';
import type { SegmentSpan } from './segments.ts';

/** What of a cache its growth is worked out from. */
export interface Growing {
  readonly context: { readonly model: ModelConfig };
  readonly config: Pick<CacheConfig, 'exactBits'>;
  readonly layers: number;
  readonly position: number;
  readonly spans: readonly SegmentSpan[];
  readonly exact: ExactPart;
  readonly packed: PackedPart;
  exactCount(layer: number): number;
}

/** Rows from now until the layer takes over the pending plan; negative: there is none for it. */
export function settlesAt(
  { layers, position }: Pick<Growing, 'layers' | 'position'>,
  pending: PendingPlan | undefined,
  layer: number,
): number {
  return pending?.isWaiting(layer) ? pending.epoch + dueAfter(layer, layers) - position : -1;
}

/**
 * The most bytes that are held beyond today's while `rows` tokens are appended. Layers are fed one after the other, and each that takes over
 * its plan gives back the exact tokens of an epoch before the next one grows. What replaces a block stands beside it for a moment.
 */
export function peakGrowth(cache: Growing, pending: PendingPlan | undefined, rows: number): number {
  const { exact, packed } = cache;
  let more = 0;
  let peak = 0;
  const replace = (old: number, bytes: number): number => {
    peak = Math.max(peak, more + bytes);
    more += bytes - old;
    return bytes;
  };
  for (let layer = 0; layer < cache.layers; layer++) {
    let held = exact.bytesOf(layer);
    let slots = cache.exactCount(layer);
    const grow = (by: number): void => {
      slots += by;
      const bytes = exact.bytesFor(stepped(slots));
      if (bytes > held) held = replace(held, bytes);
    };
    const at = settlesAt(cache, pending, layer);
    if (at < 0 || at >= rows) {
      grow(rows);
      continue;
    }
    grow(at);
    for (const change of pending!.changesOf(layer)) {
      const span = cache.spans[change.segment]!;
      const before = packed.bytesOf(layer, change.segment);
      const bytes = pending!.bytesOf(change, () => packed.bytesFor(span, change));
      replace(before, bytes);
      if (before > 0) continue;
      slots -= span.tokens;
      held = replace(held, exact.bytesFor(stepped(slots)));
    }
    grow(rows - at);
  }
  return peak;
}

/** At an epoch's end: the most by which a cache grows until its plan is applied everywhere, the copies of applying it included. */
export function epochGrowth(cache: Growing): number {
  const { kvHeads, headDim } = cache.context.model;
  let growth = 0;
  for (let layer = 0; layer < cache.layers; layer++) {
    const used = cache.exactCount(layer);
    const due = stepped(used + dueAfter(layer, cache.layers));
    growth += cache.exact.bytesFor(due) - cache.exact.bytesFor(stepped(used));
  }
  // Making the newest segment's block, before its tokens leave the exact part.
  return growth + kvHeads * SEGMENT_TOKENS * ((headDim * cache.config.exactBits) / 4 + 16);
}
