import type { ModelConfig } from '../../core/config.ts';
import { cellBytes, DROP, TIERS, tierNamed } from '../../kernels/layout.ts';
import { allocateSteps, lastOf, type TierOption } from '../allocate.ts';
import type { ByteBudget, CacheConfig, CacheView, Plan, Policy } from '../policy.ts';
import type { HeadProfile } from '../profile.ts';
import { byHead, headSteps, maxPool, overMean } from '../relevance.ts';
import { emaTracker } from '../trackers/ema.ts';
import type { Tracker } from '../trackers/tracker.ts';

/** Few tiers do as well as ten (README, "The method"), and each costs padding in every record that uses it. */
const LADDER = ['8,8', '8,4', '4,4', '4,2', '3,2', '2,2', '2,1', 'drop'].map(tierNamed);

/**
 * Divergence of a uniform run at b bits relative to 2 bits, measured on SmolLM2-135M (KL of the last half of 8k tokens; keys centred,
 * values unbiased), and what such a run's 2 bits cost relative to the calibration's.
 */
const KEY_DIVERGENCE: Readonly<Record<number, number>> = {
  2: 1,
  3: 0.146,
  4: 0.035,
  8: 0.0003,
  16: 0,
  32: 0,
};
const VALUE_DIVERGENCE: Readonly<Record<number, number>> = {
  1: 7.2,
  2: 1,
  3: 0.196,
  4: 0.05,
  8: 0.0004,
  16: 0,
  32: 0,
};
const KEY_WEIGHT = 0.6;
const VALUE_WEIGHT = 0.33;
/** Dropping is never cheaper than this many times keys and values at 2 bits. */
const LEAST_DROP = 1.5;
/** Weight of the loss on needle prompts, relative to that on text. */
const NEEDLE_WEIGHT = 0.05;
/** Means over the heads of SmolLM2-135M: every head counts alike where no profile was measured. */
const WITHOUT_PROFILE = { keys: 4.65e-4, values: 1.02e-4, drop: 2.68e-3 };

/** Share of the head's mean relevance that every token has at least: what keeps needles. */
export const RELEVANCE_FLOOR = 0.3;
/** Attention mass decays by this factor an epoch. */
export const MASS_DECAY = 0.8;
export const POOL = 5;
export const DEFAULT_RATIO = 4;

/** Expected harm when all of a head's tokens are held in a tier: nats, per head and tier of `tiers`. */
export function distortions(
  tiers: readonly number[],
  heads: number,
  profile: HeadProfile | undefined,
): Float64Array[] {
  return Array.from({ length: heads }, (_, head) => {
    const drop = profile ? Math.max(profile.drop[head]!, 1e-6) : WITHOUT_PROFILE.drop;
    const factor = profile ? 1 + (NEEDLE_WEIGHT * profile.needle[head]!) / drop : 1;
    const keys = (profile ? profile.keys[head]! : WITHOUT_PROFILE.keys) * factor;
    const values = (profile ? profile.values[head]! : WITHOUT_PROFILE.values) * factor;
    return Float64Array.from(tiers, (tier) => {
      if (tier === DROP) return Math.max(drop * factor, LEAST_DROP * (keys + values));
      const { kBits, vBits } = TIERS[tier]!;
      return KEY_WEIGHT * keys * KEY_DIVERGENCE[kBits]! + VALUE_WEIGHT * values * VALUE_DIVERGENCE[vBits]!;
    });
  });
}

export interface AdkvcOptions {
  readonly name: string;
  readonly tiers: readonly number[];
  readonly tracker: Tracker;
  readonly pool: number;
  readonly floor: number;
}

/** Relevance pooled over neighbours, over the head's mean, with a floor. */
export function relativeRelevance(
  view: CacheView,
  o: Pick<AdkvcOptions, 'tracker' | 'pool' | 'floor'>,
): Float32Array[] {
  const relevance = o.tracker.read(view);
  byHead(view, relevance, (tokens) => prepare(tokens, o));
  return relevance;
}

function prepare(tokens: Float32Array, o: Pick<AdkvcOptions, 'pool' | 'floor'>): void {
  if (o.pool > 1) maxPool(tokens, o.pool);
  overMean(tokens, o.floor);
}

/** How much of a plan is the reading of relevance. */
const READING = 0.4;

/** One allocation over all layers and heads under the byte budget: relevance times what the head's errors cost. */
export function profiledPolicy(
  o: AdkvcOptions,
  model: ModelConfig,
  profile: HeadProfile | undefined,
): Policy {
  const options: TierOption[] = o.tiers.map((tier) => ({
    tier,
    bytes: cellBytes(tier, model.headDim, true),
  }));
  const harm = distortions(o.tiers, model.layers * model.kvHeads, profile);
  return {
    name: o.name,
    needs: { mass: o.tracker.mass },
    profile: profile?.fingerprint ?? 'none',
    plan: (view, budget) => lastOf(planSteps(view, budget)),
    planSteps,
  };

  function* planSteps(view: CacheView, budget: ByteBudget): Generator<number, Plan> {
    const relevance = o.tracker.read(view);
    yield READING / 4;
    const heads = view.layers * view.kvHeads;
    for (const done of headSteps(view, relevance, (tokens) => prepare(tokens, o)))
      yield READING * (0.25 + (0.75 * done) / heads);
    const input = {
      view,
      relevance,
      options,
      distortions: harm,
      budgetBytes: budget.recordBytes,
      mass: true,
    };
    const steps = allocateSteps(input);
    for (;;) {
      const step = steps.next();
      if (step.done) return step.value;
      yield READING + (1 - READING) * step.value;
    }
  }
}

export const ADKVC: Omit<AdkvcOptions, 'name'> = {
  tiers: LADDER,
  tracker: emaTracker(MASS_DECAY),
  pool: POOL,
  floor: RELEVANCE_FLOOR,
};

/**
 * Attention-guided dynamic compression: decayed attention mass and the heads' measured sensitivity decide, over all layers and heads at once,
 * who keeps how many bits and who is dropped (quantisation and eviction combined).
 */
export function adkvc(_config: CacheConfig, model: ModelConfig, profile?: HeadProfile): Policy {
  return profiledPolicy({ name: 'adkvc', ...ADKVC }, model, profile);
}
