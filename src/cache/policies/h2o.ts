import { keepBest } from '../evict.ts';
import type { CacheConfig, Policy } from '../policy.ts';
import { sumTracker } from '../trackers/sum.ts';

/**
 * Half of what is kept are heavy hitters, the tokens of the largest accumulated attention mass, half the most recent ones; for each head.
 * Z. Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models", 2023.
 * Here at each epoch, before the question is known (streaming).
 */
export function h2o(config: CacheConfig): Policy {
  const tracker = sumTracker();
  return {
    name: 'h2o',
    needs: { mass: tracker.mass },
    plan(view, budget) {
      const mass = tracker.read(view);
      const exact = config.sinks + config.window;
      // How many are kept is only known when it fits, and the recent half with it: guessed from the budget, all tokens alike.
      const each = view.headDim * 4 + 2;
      const kept = exact + Math.min(budget.recordBytes, 1e12) / (view.layers * view.kvHeads * each);
      const recentFrom = view.position - Math.max(config.window, Math.floor(kept / 2));
      const scores = view.segments.map(({ tokens, start }, s) =>
        mass[s]!.map((x, at) => (start + (at % tokens) >= recentFrom ? 1e30 : x)),
      );
      return keepBest(view, budget, config, scores, { mass: true });
    },
  };
}
