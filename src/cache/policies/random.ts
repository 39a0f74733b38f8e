import { hash32 } from '../../core/random.ts';
import { keepBest, scoreBy } from '../evict.ts';
import type { CacheConfig, Policy } from '../policy.ts';

/** Sinks, window, and as many random older tokens as the budget holds: what any choice by attention must beat. */
export function random(config: CacheConfig): Policy {
  return {
    name: 'random',
    needs: {},
    plan: (view, budget) =>
      keepBest(
        view,
        budget,
        config,
        scoreBy(view, (layer, kvHead, position) => hash32(view.seed, layer, kvHead, position)),
        { mass: false },
      ),
  };
}
