import type { ModelConfig } from '../../core/config.ts';
import { InvalidInputError } from '../../core/errors.ts';
import { cellBytes, DROP, tierNamed } from '../../kernels/layout.ts';
import { allocate } from '../allocate.ts';
import { keepBest } from '../evict.ts';
import { type CacheConfig, FRESH, type Policy } from '../policy.ts';
import type { HeadProfile } from '../profile.ts';
import { adkvcOptions, profiledPolicy, relativeLines, relativeRelevance } from './adkvc.ts';

/** Eviction alone: the tokens of the highest relevance stay as they are, equally many for each head; the others go. */
export function adkvcEvict(config: CacheConfig): Policy {
  const options = adkvcOptions(config);
  return {
    name: 'adkvc-evict',
    needs: { mass: options.tracker.mass },
    plan: (view, budget) => keepBest(view, budget, config, relativeRelevance(view, options), { mass: true }),
  };
}

/** Quantisation alone: the profiled allocation without the tier that drops. Its coarsest tier bounds the ratio it reaches. */
export function adkvcQuantize(config: CacheConfig, model: ModelConfig, profile?: HeadProfile): Policy {
  const options = adkvcOptions(config, profile);
  const tiers = options.tiers.filter((tier) => tier !== DROP);
  return { ...profiledPolicy({ ...options, name: 'adkvc-quantize', tiers }, model, profile), bounded: false };
}

/** Bits by relevance over the head's mean: high, mid, low. */
const STEPS = ['8,8', '4,4', '2,2'].map(tierNamed);
const HIGH = 2;
const MID = 0.6;

/** Fixed thresholds: the text decides how many bytes it takes. */
export function adkvcFixed(config: CacheConfig): Policy {
  const options = adkvcOptions(config);
  const [high, mid] = [config.high ?? HIGH, config.mid ?? MID];
  if (!(mid > 0 && high >= mid && Number.isFinite(high)))
    throw new InvalidInputError(
      `high (${high}) and mid (${mid}) must be above 0, mid not above high`,
      'high',
    );
  return {
    name: 'adkvc-fixed',
    needs: { mass: options.tracker.mass },
    bounded: false,
    plan: (view) => {
      const relevance = relativeRelevance(view, options);
      return {
        tiers: view.segments.map((segment, s) =>
          segment.tiers.map((old, i) => {
            const x = relevance[s]![i]!;
            const tier = STEPS[x >= high ? 0 : x >= mid ? 1 : 2]!;
            return old === FRESH || tier > old ? tier : old;
          }),
        ),
      };
    },
  };
}

/**
 * The same three steps and a fourth that drops, their thresholds moved together until the budget is met: every head alike, each a factor of four
 * in relevance below the one before.
 */
export function adkvcAdapted(config: CacheConfig, model: ModelConfig): Policy {
  const own = adkvcOptions(config);
  const tiers = [...STEPS, DROP];
  const options = tiers.map((tier) => ({ tier, bytes: cellBytes(tier, model.headDim, true) }));
  // Distortions whose slopes against bytes stand a factor of four apart.
  const harm = new Float64Array(tiers.length);
  for (let i = 1; i < tiers.length; i++)
    harm[i] = harm[i - 1]! + (options[i - 1]!.bytes - options[i]!.bytes) * 4 ** i;
  const distortions = new Array<Float64Array>(model.layers * model.kvHeads).fill(harm);
  return {
    name: 'adkvc-adapted',
    needs: { mass: own.tracker.mass },
    plan: (view, budget) =>
      allocate({
        view,
        relevance: relativeLines(view, own),
        options,
        distortions: () => distortions,
        budgetBytes: budget.recordBytes,
        mass: true,
      }),
  };
}
