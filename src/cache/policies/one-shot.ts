import { tierNamed } from '../../kernels/layout.ts';
import type { ByteBudget, CacheConfig, CacheView, Plan, Policy } from '../policy.ts';
import { constantPlan } from './constant-plan.ts';

/**
 * Another policy once, after a prompt of `config.oneShot` tokens, instead of at every epoch: before, everything stays in the exact part's precision. How
 * many eviction methods were published; the peak is the full cache's.
 */
export function oneShot(policy: Policy, config: CacheConfig): Policy {
  const exact = tierNamed(config.exactBits === 32 ? 'f32' : 'f16');
  const plan = (view: CacheView, budget: ByteBudget): Plan =>
    view.position < config.oneShot! ? constantPlan(view, exact) : policy.plan(view, budget);
  // The last queries before the prompt's end count, which an epoch's end may divide: what they add is not decayed there.
  const mass = policy.needs.mass;
  const needs = mass?.lastQueries === undefined ? policy.needs : { mass: { ...mass, decay: 1 } };
  return { ...policy, needs, bounded: false, plan, planSteps: undefined };
}
