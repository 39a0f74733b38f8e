import { align } from '../core/arena.ts';
import { EPOCH } from '../core/config.ts';
import {
  type ExactLayout,
  exactBytes,
  SEGMENT_TOKENS,
  segmentHeaderBytes,
  tierNamed,
} from '../kernels/layout.ts';
import { planBytes } from './allocate.ts';
import { byteBudget } from './byte-budget.ts';
import type { CacheContext } from './cache.ts';
import { EXACT_STEP } from './exact-part.ts';
import type { CacheConfig } from './policy.ts';
import { createPolicy } from './registry.ts';
import { SETTLE_POSITIONS } from './schedule.ts';

/** Upper bound of the kernel bytes that a cache holds at any moment up to `tokens`, transient copies included; what a scheduler admits by. */
export function worstCaseBytes(
  context: Pick<CacheContext, 'model'>,
  config: CacheConfig,
  tokens: number,
): number {
  const { model } = context;
  const policy = createPolicy(config, model);
  const mass = policy.needs.mass !== undefined;
  const waiting = EPOCH + SETTLE_POSITIONS;
  const capacity = Math.min(tokens, config.sinks + config.window + waiting) + EXACT_STEP;
  const layout: ExactLayout = {
    kvHeads: model.kvHeads,
    headDim: model.headDim,
    capacity,
    bits: config.exactBits,
    mass,
  };
  // A layer that takes over a plan in the middle of a chunk holds the rows before that; growing holds it twice; the new segment stands beside
  // the exact tokens it came from.
  const chunk = { ...layout, capacity: capacity + EPOCH };
  const exact = model.layers * align(exactBytes(layout)) + align(exactBytes(chunk));
  // Past the trained length segments are closed: their headers stay.
  const past = config.policy === 'full' ? 0 : Math.max(0, tokens - model.contextLength);
  const held = past > 0 ? model.contextLength + waiting : tokens;
  const headers = Math.ceil(past / SEGMENT_TOKENS + 3) * model.layers * segmentHeaderBytes(model.kvHeads);
  const deep = Math.max(0, held - config.sinks - config.window);
  const segments = Math.ceil(deep / SEGMENT_TOKENS) + 1;
  const finest = policy.finest ?? tierNamed(config.exactBits === 32 ? 'f32' : 'f16');
  const spans = Array.from({ length: segments }, (_, index) => {
    const n = Math.min(SEGMENT_TOKENS, Math.max(deep - index * SEGMENT_TOKENS, 0));
    return { index, start: 0, tokens: n, tiers: new Uint8Array(0), mass: undefined };
  });
  const records = planBytes(
    {
      layers: model.layers,
      kvHeads: model.kvHeads,
      headDim: model.headDim,
      position: tokens,
      segments: spans,
      seed: 0,
    },
    { tiers: spans.map((s) => new Uint8Array(model.layers * model.kvHeads * s.tokens).fill(finest)) },
    mass,
  );
  const unbudgeted = records + (past > 0 ? headers : 0);
  const transient = 2 * model.kvHeads * SEGMENT_TOKENS * (model.headDim * 4 + 16);
  if (config.policy === 'full' || policy.bounded === false) return exact + unbudgeted + transient;
  const budget = byteBudget(config, model, tokens);
  // uniform's budget is reached deep in the cache only: its early segments may stand above it.
  const slack = config.policy === 'uniform' ? unbudgeted / 4 : 0;
  return Math.ceil(Math.min(exact + unbudgeted, exact + budget + slack) + transient);
}
