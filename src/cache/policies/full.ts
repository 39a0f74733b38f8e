import { tierNamed } from '../../kernels/layout.ts';
import type { CacheConfig, Policy } from '../policy.ts';
import { constantPlan } from './constant-plan.ts';

/** Nothing is lost: every token stays in the precision of the exact part. */
export function full(config: CacheConfig): Policy {
  const tier = tierNamed(config.exactBits === 32 ? 'f32' : 'f16');
  return { name: 'full', needs: {}, plan: (view) => constantPlan(view, tier) };
}
