import type { CacheView, Plan } from '../policy.ts';

/** The same tier for every token that is not lower already. */
export function constantPlan(view: CacheView, tier: number): Plan {
  return {
    tiers: view.segments.map((s) => s.tiers.map((old) => (old === 255 || old < tier ? tier : old))),
  };
}
