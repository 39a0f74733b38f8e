import type { ModelConfig } from '../../core/config.ts';
import { ContextLengthError, InvalidInputError } from '../../core/errors.ts';
import { recordBytes, SEGMENT_TOKENS, TIER_IDS, TIERS, tierNamed } from '../../kernels/layout.ts';
import { planBytes } from '../allocate.ts';
import type { CacheConfig, Policy } from '../policy.ts';
import { constantPlan } from './constant-plan.ts';

/** Tiers that `uniform` chooses from, finest first. */
const LADDER = ['f16', '8,8', '8,4', '4,4', '4,3', '4,2', '3,3', '3,2', '2,2', '2,1'].map(tierNamed);

/** fp16 bytes over the bytes of a token deep in the cache, all parts of a record counted. */
export function asymptoticRatio(tier: number, headDim: number): number {
  const counts = new Uint8Array(TIER_IDS);
  counts[tier] = SEGMENT_TOKENS;
  return (SEGMENT_TOKENS * headDim * 4) / recordBytes(SEGMENT_TOKENS, counts, headDim);
}

/**
 * One tier for all tokens. With a ratio: the finest tier that reaches it deep in the cache, fixed. With bytes: the finest that fits at
 * each epoch; a token once lowered stays so.
 */
export function uniform(config: CacheConfig, model: ModelConfig): Policy {
  const { headDim } = model;
  if (config.bytes === undefined) {
    const ratio = config.ratio ?? 4;
    const tier = LADDER.find(
      (id) => asymptoticRatio(id, headDim) >= ratio || (ratio <= 1 && TIERS[id]!.kBits === 16),
    );
    if (tier === undefined) {
      const most = asymptoticRatio(LADDER.at(-1)!, headDim).toFixed(2);
      throw new InvalidInputError(
        `policy uniform reaches a ratio of at most ${most} on this model, not ${ratio}: lower the ratio or use policy adkvc`,
        'ratio',
      );
    }
    return { name: 'uniform', needs: {}, finest: tier, plan: (view) => constantPlan(view, tier) };
  }
  return {
    name: 'uniform',
    needs: {},
    plan(view, budget) {
      for (const tier of LADDER) {
        const plan = constantPlan(view, tier);
        if (planBytes(view, plan, false) <= budget.recordBytes) return plan;
      }
      throw new ContextLengthError(
        `policy uniform cannot hold ${view.position} tokens in ${config.bytes} bytes: raise bytes or use policy adkvc`,
        { tokens: view.position, limit: view.position },
      );
    },
  };
}

/** All tokens in a plain tier, GGML's q8_0 or q4_0: what caches of other programs do. The tier decides the ratio; a budget is not looked at. */
const plain = (name: string, tierName: string) => (): Policy => {
  const tier = tierNamed(tierName);
  return {
    name,
    needs: { plain: true },
    bounded: false,
    finest: tier,
    plan: (view) => constantPlan(view, tier),
  };
};
export const uniformInt8 = plain('uniform-int8', 'q8_0');
export const uniformInt4 = plain('uniform-int4', 'q4_0');
