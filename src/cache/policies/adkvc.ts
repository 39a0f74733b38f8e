import { EPOCH, type ModelConfig } from '../../core/config.ts';
import { InvalidInputError } from '../../core/errors.ts';
import { cellBytes, DROP, TIERS, tierNamed } from '../../kernels/layout.ts';
import type { PlanInstances } from '../../kernels/wasm-plan.ts';
import { allocateSteps, lastOf } from '../allocate.ts';
import { MAX_OPTIONS } from '../fill-groups.ts';
import type { TierOption } from '../hull.ts';
import {
  type ByteBudget,
  type CacheConfig,
  type CacheView,
  type Plan,
  type Policy,
  TRACKER_NAMES,
} from '../policy.ts';
import type { HeadProfile } from '../profile.ts';
import { blockMean, byHead, maxPool, overMean } from '../relevance.ts';
import { TRACKERS } from '../trackers/registry.ts';
import type { Tracker } from '../trackers/tracker.ts';

/** Few tiers do as well as ten (docs/evaluation.md, "Constants"), and each costs re-encodings, and padding in every record that uses it. */
const LADDER = ['8,8', '8,4', '4,4', '4,2', '3,2', '2,1', 'drop'].map(tierNamed);
/** Without a profile all heads take the same steps, and 8,4 wins nothing (there too). */
const UNPROFILED_LADDER = LADDER.filter((tier) => tier !== tierNamed('8,4'));

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
/** One head that drops its past while all others keep theirs does more harm than where many drop (docs/evaluation.md, "Constants"). */
const DROP_WEIGHT = 0.5;
/** Dropping is never cheaper than this many times keys and values at 2 bits. */
const LEAST_DROP = 0.75;
/** Weight of the loss on needle prompts, relative to that on text. */
const NEEDLE_WEIGHT = 0.05;
/** Means over the heads of SmolLM2-135M: every head counts alike where no profile was measured. */
const WITHOUT_PROFILE = { keys: 4.65e-4, values: 1.02e-4, drop: 2.68e-3 };

/** Share of the head's mean relevance that every token has at least: what keeps needles. */
export const RELEVANCE_FLOOR = 0.3;
/** Attention mass decays by this factor an epoch. */
export const MASS_DECAY = 0.8;
/** A decaying mass has smeared relevance over time already: neighbours add nothing (docs/evaluation.md, "Constants"). */
export const POOL = 1;
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
      if (tier === DROP) return Math.max(DROP_WEIGHT * drop * factor, LEAST_DROP * (keys + values));
      const { kBits, vBits } = TIERS[tier]!;
      return keys * KEY_DIVERGENCE[kBits]! + values * VALUE_DIVERGENCE[vBits]!;
    });
  });
}

/** Share of a head's tokens whose attention is compared with all of it. */
const TOP = 0.05;
/** Between heads of SmolLM2-135M, harm when a head drops its past rises with about this power of the share (docs/evaluation.md). */
const CONCENTRATION_POWER = 1.5;

/**
 * How sensitive a head is, without a profile and up to a factor: heads whose attention on the past is concentrated on few tokens lose more when these
 * are held badly than heads that look at everything a little.
 */
export function concentration(relevance: Float32Array): number {
  const sorted = relevance.toSorted();
  let all = 0;
  for (const x of sorted) all += x;
  let top = 0;
  for (const x of sorted.subarray(Math.floor(sorted.length * (1 - TOP)))) top += x;
  return (all > 0 ? top / all : TOP) ** CONCENTRATION_POWER;
}

export interface AdkvcOptions {
  readonly name: string;
  readonly tiers: readonly number[];
  readonly tracker: Tracker;
  readonly pool: number;
  readonly block: number;
  readonly floor: number;
  /** Without a profile, heads' sensitivity follows from their attention. */
  readonly estimate: boolean;
}

/** What the configuration says, completed by the defaults. @throws InvalidInputError naming the field */
export function adkvcOptions(config: CacheConfig, profile?: HeadProfile): Omit<AdkvcOptions, 'name'> {
  const { decay = MASS_DECAY, lastQueries = 32, pool = POOL, block = 1, floor = RELEVANCE_FLOOR } = config;
  const check = (name: keyof CacheConfig, right: boolean, what: string): void => {
    if (!right) throw new InvalidInputError(`${name} must be ${what}, not ${config[name]}`, name);
  };
  const whole = (n: number, most: number): boolean => Number.isInteger(n) && n >= 1 && n <= most;
  check('decay', decay >= 0 && decay <= 1, 'a number from 0 to 1');
  check('lastQueries', whole(lastQueries, EPOCH), `a whole number from 1 to ${EPOCH}`);
  check('pool', whole(pool, 127) && pool % 2 === 1, 'an odd number from 1 to 127');
  check('block', whole(block, EPOCH), `a whole number from 1 to ${EPOCH}`);
  check('floor', Number.isFinite(floor) && floor >= 0, 'a number from 0');
  const name = config.tracker ?? 'ema';
  check('tracker', Object.hasOwn(TRACKERS, name), `one of ${TRACKER_NAMES.join(', ')}`);
  const ladder = profile ? LADDER : UNPROFILED_LADDER;
  const tiers = config.tiers === undefined ? ladder : tiersNamed(config.tiers);
  const tracker = TRACKERS[name]({ decay, lastQueries });
  return { tiers, tracker, pool, block, floor, estimate: config.estimate ?? false };
}

function tiersNamed(text: string): number[] {
  const names = [...TIERS.filter((t) => t.kBits <= 8).map((t) => t.name), 'drop'];
  const tiers = text.split(' ').map((name) => {
    if (!names.includes(name))
      throw new InvalidInputError(
        `tiers names "${name}": use ${names.join(' | ')}, separated by spaces`,
        'tiers',
      );
    return tierNamed(name);
  });
  if (tiers.some((tier, i) => i > 0 && tier <= tiers[i - 1]!))
    throw new InvalidInputError('tiers must be named from the finest to the coarsest, each once', 'tiers');
  if (tiers.length > MAX_OPTIONS)
    throw new InvalidInputError(
      `tiers names ${tiers.length}: an allocation chooses among ${MAX_OPTIONS} at most`,
      'tiers',
    );
  return tiers;
}

/** Relevance pooled over neighbours, over the head's mean, with a floor. */
export function relativeRelevance(
  view: CacheView,
  o: Pick<AdkvcOptions, 'tracker' | 'pool' | 'block' | 'floor'>,
): Float32Array[] {
  const relevance = o.tracker.read(view);
  byHead(view, relevance, (tokens) => prepare(tokens, o));
  return relevance;
}

/** The same head by head, as Tracker's `lines`. @param seen is shown the tracker's own relevance */
export function relativeLines(
  view: CacheView,
  o: Pick<AdkvcOptions, 'tracker' | 'pool' | 'block' | 'floor'>,
  seen?: (line: Float32Array, head: number) => void,
): (line: Float32Array, head: number) => void {
  const read = o.tracker.lines(view);
  return (line, head) => {
    read(line, head);
    seen?.(line, head);
    prepare(line, o);
  };
}

function prepare(tokens: Float32Array, o: Pick<AdkvcOptions, 'pool' | 'block' | 'floor'>): void {
  if (o.pool > 1) maxPool(tokens, o.pool);
  if (o.block > 1) blockMean(tokens, o.block);
  overMean(tokens, o.floor);
}

/** One allocation over all layers and heads under the byte budget: relevance times what the head's errors cost. */
export function profiledPolicy(
  o: AdkvcOptions,
  model: ModelConfig,
  profile: HeadProfile | undefined,
  instances?: PlanInstances,
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
    finest: o.tiers[0]!,
    plan: (view, budget) => lastOf(planSteps(view, budget)),
    planSteps,
  };

  /** Every head's harm times its sensitivity over the mean. */
  function relativeTo(sensitivity: Float64Array): Float64Array[] {
    const mean = sensitivity.reduce((a, b) => a + b, 0) / sensitivity.length;
    return harm.map((d, head) => d.map((x) => (x * sensitivity[head]!) / mean));
  }

  function* planSteps(view: CacheView, budget: ByteBudget): Generator<number, Plan> {
    const sensitivity = profile || !o.estimate ? undefined : new Float64Array(view.layers * view.kvHeads);
    const input = {
      view,
      relevance: relativeLines(view, o, (line, head) => {
        if (sensitivity) sensitivity[head] = concentration(line);
      }),
      options,
      distortions: () => (sensitivity ? relativeTo(sensitivity) : harm),
      budgetBytes: budget.recordBytes,
      mass: true,
    };
    return yield* allocateSteps(input, instances);
  }
}

/**
 * Attention-guided dynamic compression: decayed attention mass and the heads' measured sensitivity decide, over all layers and heads at once,
 * who keeps how many bits and who is dropped (quantisation and eviction combined).
 */
export function adkvc(
  config: CacheConfig,
  model: ModelConfig,
  profile?: HeadProfile,
  instances?: PlanInstances,
): Policy {
  return profiledPolicy({ name: 'adkvc', ...adkvcOptions(config, profile) }, model, profile, instances);
}
