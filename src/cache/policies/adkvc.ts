import { EPOCH, type ModelConfig } from '../../core/config.ts';
import { cellBytes, DROP, TIERS, tierNamed } from '../../kernels/layout.ts';
import { allocate, type TierOption } from '../allocate.ts';
import type { CacheConfig, CacheView, Policy } from '../policy.ts';

/** Few tiers do as well as ten (README, "The method"); each is on the hull of bytes against distortion. */
const LADDER = ['8,8', '8,4', '4,4', '4,2', '3,2', 'drop'].map(tierNamed);

/**
 * Divergence of a uniform run at b bits relative to 2 bits, measured on SmolLM2-135M (KL of the last half of 8k tokens; keys centred,
 * values unbiased), and the weights of the two halves: a head's mean divergence when its old keys or values are at 2 bits, or dropped.
 */
const KEY_DIVERGENCE: Readonly<Record<number, number>> = { 2: 1, 3: 0.146, 4: 0.035, 8: 0.0003 };
const VALUE_DIVERGENCE: Readonly<Record<number, number>> = { 1: 7.2, 2: 1, 3: 0.196, 4: 0.05, 8: 0.0004 };
const KEY_WEIGHT = 0.6 * 4.65e-4;
const VALUE_WEIGHT = 0.33 * 1.02e-4;
const DROP_DIVERGENCE = 2.68e-3;

/** Share of the head's mean relevance that every token has at least: what keeps needles. */
export const RELEVANCE_FLOOR = 0.3;
/** Attention mass decays by this factor an epoch. */
export const MASS_DECAY = 0.8;
export const DEFAULT_RATIO = 4;

export function tierOptions(headDim: number): TierOption[] {
  return LADDER.map((tier) => ({
    tier,
    bytes: cellBytes(tier, headDim, true),
    distortion:
      tier === DROP
        ? DROP_DIVERGENCE
        : KEY_WEIGHT * KEY_DIVERGENCE[TIERS[tier]!.kBits]! +
          VALUE_WEIGHT * VALUE_DIVERGENCE[TIERS[tier]!.vBits]!,
  }));
}

/** Queries that could see the token at `position`, each weighted by the decay since its epoch. */
export function decayedQueries(position: number, now: number, decay: number): number {
  let sum = 0;
  let weight = 1;
  for (let end = now; end > position; ) {
    const begin = Math.ceil(end / EPOCH - 1) * EPOCH;
    sum += weight * (end - Math.max(begin, position));
    weight *= decay;
    end = begin;
  }
  return sum;
}

/**
 * ln of relevance: decayed attention mass a query that could see the token, over the head's mean, plus the floor. One array a segment, in the
 * order of its tiers. Dropped tokens do not count for the mean.
 */
export function logRelevance(view: CacheView): Float32Array[] {
  const heads = view.layers * view.kvHeads;
  const sums = new Float64Array(heads);
  const kept = new Float64Array(heads);
  const out = view.segments.map((segment) => {
    const n = segment.tokens;
    const queries = Float64Array.from({ length: n }, (_, i) =>
      decayedQueries(segment.start + i, view.position, MASS_DECAY),
    );
    const relevance = new Float32Array(segment.tiers.length);
    for (let r = 0; r < heads; r++) {
      for (let i = 0; i < n; i++) {
        const at = r * n + i;
        if (segment.tiers[at] === DROP) continue;
        const value = segment.mass![at]! / queries[i]!;
        relevance[at] = value;
        sums[r]! += value;
        kept[r]!++;
      }
    }
    return relevance;
  });
  view.segments.forEach((segment, s) => {
    const n = segment.tokens;
    for (let r = 0; r < heads; r++) {
      const mean = Math.max(sums[r]! / Math.max(kept[r]!, 1), 1e-9);
      for (let i = r * n; i < (r + 1) * n; i++)
        out[s]![i] = Math.log((out[s]![i]! / mean + RELEVANCE_FLOOR) / (1 + RELEVANCE_FLOOR));
    }
  });
  return out;
}

/**
 * Attention-guided dynamic compression: decayed attention mass decides, over all layers and heads at once, who keeps how many bits and who is
 * dropped (quantisation and eviction combined).
 */
export function adkvc(_config: CacheConfig, model: ModelConfig): Policy {
  const options = tierOptions(model.headDim);
  return {
    name: 'adkvc',
    needs: { mass: { decay: MASS_DECAY } },
    plan: (view, budget) =>
      allocate({
        view,
        logRelevance: logRelevance(view),
        options,
        budgetBytes: budget.recordBytes,
        mass: true,
      }),
  };
}
