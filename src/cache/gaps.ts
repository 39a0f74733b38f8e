import { EPOCH, type ModelConfig } from '../core/config.ts';
import { CorruptDataError } from '../core/errors.ts';
import { DROP } from '../kernels/layout.ts';
import { quotedSpans } from './policies/quotas.ts';
import type { CacheConfig, CacheView } from './policy.ts';
import { epochOf, SETTLE_POSITIONS, spansAt } from './schedule.ts';
import type { SegmentSpan } from './segments.ts';

/**
 * Conversations longer than the model was trained for. Keys keep the rotation of the position at which they were read. Past the trained length
 * each epoch's plan evicts whole segments, in all layers and heads, and the gap that one leaves is closed: what lies before it moves towards the
 * present by its tokens. Queries move instead of keys: RoPE scores depend on distances alone, so that a query rotated at position t - offset sees
 * the keys of a segment as if `offset` tokens after it had never been. Positions that are compared stay within the trained length.
 */

/** Positions that a conversation may have: its closed segments' headers stay, and an answer must be able to go on for years of talk. */
export const MAX_POSITIONS = 2 ** 17;
/** The newest segments are never closed: they have hardly been asked for yet. */
const NEWEST = 4;
/** A segment beside a closed one goes first when it is about as irrelevant: runs of gaps need fewer different queries. */
const NEAR = 1.2;

/** Newest segments that stay open; 0: the trained length is too short to go past it. */
const keptOpen = (model: Pick<ModelConfig, 'contextLength'>, config: CacheConfig): number => {
  const room = model.contextLength - config.sinks - config.window - EPOCH - SETTLE_POSITIONS;
  return Math.max(0, Math.min(NEWEST, Math.floor(room / EPOCH)));
};

/** Tokens that a conversation may have under a configuration: the trained length where nothing is ever evicted. */
export const positionLimit = (model: Pick<ModelConfig, 'contextLength'>, config: CacheConfig): number =>
  config.policy === 'full' || keptOpen(model, config) === 0
    ? model.contextLength
    : Math.max(MAX_POSITIONS, model.contextLength);

/** Segments that may be open at a time. */
export const openSegments = (model: Pick<ModelConfig, 'contextLength'>): number =>
  Math.ceil(model.contextLength / EPOCH) + 4;

/** Which segments are closed, and since which epoch's plan. */
export class Gaps {
  readonly #limit: number;
  readonly #newest: number;
  readonly #quotas: string | undefined;
  readonly #epochs = new Map<number, number>();
  /** Of all closed segments. */
  tokens = 0;

  constructor(model: Pick<ModelConfig, 'contextLength'>, config: CacheConfig) {
    this.#newest = keptOpen(model, config);
    this.#quotas = config.quotas;
    const isBounded = config.policy === 'full' || this.#newest === 0;
    this.#limit = isBounded ? Number.POSITIVE_INFINITY : model.contextLength;
  }

  get count(): number {
    return this.#epochs.size;
  }
  /** In the order in which they were closed; from it and the position all else follows. */
  get order(): number[] {
    return [...this.#epochs.keys()];
  }
  /** Whether a layer that waits for the plan of `waiting` (undefined: for none) has the segment closed. */
  has(segment: number, waiting?: number): boolean {
    const epoch = this.#epochs.get(segment);
    return epoch !== undefined && epoch !== waiting;
  }

  /** Whether positions up to the end of the next epoch's plan would leave the trained length. Nothing is closed before they are needed. */
  #isTooLong(epoch: number): boolean {
    return epoch + EPOCH > this.#limit && epoch + EPOCH + SETTLE_POSITIONS - this.tokens > this.#limit;
  }
  #add(segment: number, tokens: number, epoch: number): void {
    this.#epochs.set(segment, epoch);
    this.tokens += tokens;
  }

  /** Closes as many segments of the view as its position asks for: the least relevant first, never the newest. */
  close(view: CacheView): number[] {
    if (!this.#isTooLong(view.position)) return [];
    const candidates = view.segments.slice(0, -this.#newest);
    const relevance = segmentRelevance(view);
    const spans = this.#quotas === undefined ? [] : quotedSpans(view, this.#quotas);
    const guarded = (index: number): boolean => {
      const { start, tokens } = view.segments.find((s) => s.index === index)!;
      return spans.some((span) => span.start < start + tokens && span.end > start);
    };
    const closed: number[] = [];
    while (candidates.length > 0 && this.#isTooLong(view.position)) {
      const cost = candidates.map(({ index }) => {
        const beside = index === 0 || this.has(index - 1) || this.has(index + 1);
        // Messages that a quota speaks for go when nothing else is left.
        return relevance.get(index)! / (beside ? NEAR : 1) + (guarded(index) ? 1e9 : 0);
      });
      const [next] = candidates.splice(cost.indexOf(Math.min(...cost)), 1);
      this.#add(next!.index, next!.tokens, view.position);
      closed.push(next!.index);
    }
    return closed;
  }

  /** @throws CorruptDataError when these segments cannot have been closed in this order */
  restore(order: readonly number[], position: number, config: CacheConfig): void {
    let made = 0;
    const spans: SegmentSpan[] = spansAt(position, config);
    let at = 0;
    for (let epoch = EPOCH; epoch <= epochOf(position) && at < order.length; epoch += EPOCH) {
      while (made < spans.length && spans[made]!.start + spans[made]!.tokens <= epoch - config.window) made++;
      for (; at < order.length && this.#isTooLong(epoch); at++) {
        const segment = order[at]!;
        if (!Number.isInteger(segment) || segment < 0 || segment >= made - this.#newest || this.has(segment))
          throw new CorruptDataError(`segment ${segment} cannot have been closed at position ${epoch}`);
        this.#add(segment, spans[segment]!.tokens, epoch);
      }
    }
    if (at < order.length || this.#isTooLong(epochOf(position)))
      throw new CorruptDataError(`${order.length} closed segments do not fit position ${position}`);
  }

  /**
   * The tokens that are closed after each open segment of a layer, and all that are closed; undefined: none are.
   * @param held segments that the layer holds
   */
  offsets(
    spans: readonly SegmentSpan[],
    held: number,
    waiting: number | undefined,
  ): { segments: number[]; sinks: number } | undefined {
    if (this.tokens === 0) return undefined;
    const segments: number[] = [];
    let sinks = 0;
    for (let s = held - 1; s >= 0; s--)
      if (this.has(s, waiting)) sinks += spans[s]!.tokens;
      else segments.push(sinks);
    return sinks === 0 ? undefined : { segments: segments.reverse(), sinks };
  }
}

/** The share of each head's attention that a segment's tokens have, summed over heads and divided by its tokens; without history 1 or, where all are dropped, 0. */
function segmentRelevance(view: CacheView): Map<number, number> {
  const heads = view.layers * view.kvHeads;
  const totals = new Float64Array(heads);
  const sums = view.segments.map(({ tokens, mass }) => {
    const sum = new Float64Array(heads);
    if (mass)
      for (let head = 0; head < heads; head++) {
        let of = 0;
        for (let i = head * tokens; i < (head + 1) * tokens; i++) of += mass[i]!;
        sum[head] = of;
        totals[head]! += of;
      }
    return sum;
  });
  return new Map(
    view.segments.map(({ index, tokens, tiers, mass }, s) => {
      if (!mass) return [index, tiers.every((tier) => tier === DROP) ? 0 : 1];
      let share = 0;
      for (let head = 0; head < heads; head++) share += sums[s]![head]! / Math.max(totals[head]!, 1);
      return [index, share / tokens];
    }),
  );
}

/** The view with these segments dropped: what is left for a policy to plan. */
export const withoutSegments = (view: CacheView, closed: readonly number[]): CacheView =>
  closed.length === 0
    ? view
    : {
        ...view,
        segments: view.segments.map((segment) =>
          closed.includes(segment.index)
            ? {
                ...segment,
                tiers: new Uint8Array(segment.tiers.length).fill(DROP),
                mass: segment.mass && new Uint16Array(segment.mass.length),
              }
            : segment,
        ),
      };
