import { keepBest } from '../evict.ts';
import type { CacheConfig, Policy } from '../policy.ts';
import { lastWindowTracker } from '../trackers/last-window.ts';

/**
 * Each layer keeps the tokens that its last query attends to most, summed over all heads: the same cells for every head.
 * M. Oren et al., "Transformers are Multi-State RNNs", 2024. Here at each epoch instead of each token.
 */
export function tova(config: CacheConfig): Policy {
  const tracker = lastWindowTracker(1);
  return {
    name: 'tova',
    needs: { mass: tracker.mass },
    plan(view, budget) {
      const scores = tracker.read(view).map((mass, s) => {
        const { tokens } = view.segments[s]!;
        const width = view.kvHeads * tokens;
        return mass.map((_, at) => {
          const first = Math.floor(at / width) * width + (at % tokens);
          let sum = 0;
          for (let h = 0; h < view.kvHeads; h++) sum += mass[first + h * tokens]!;
          return sum;
        });
      });
      return keepBest(view, budget, config, scores, { mass: true });
    },
  };
}
