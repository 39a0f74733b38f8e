import { keepBest } from '../evict.ts';
import type { CacheConfig, Policy } from '../policy.ts';
import { lastWindowTracker } from '../trackers/last-window.ts';
import { pooledMass } from './snapkv.ts';

const QUERIES = 32;
/** The last layer keeps this share of the mean, the first what makes up for it: the published beta of 20. */
const LAST_LAYER = 1 / 20;

/**
 * SnapKV's votes with budgets that shrink from layer to layer, in equal steps.
 * Z. Cai et al., "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling", 2024. Streaming here, as snapkv.
 */
export function pyramidkv(config: CacheConfig): Policy {
  const tracker = lastWindowTracker(QUERIES);
  return {
    name: 'pyramidkv',
    needs: { mass: tracker.mass },
    plan(view, budget) {
      const heads = view.layers * view.kvHeads;
      const share = (layer: number): number => {
        const depth = view.layers > 1 ? layer / (view.layers - 1) : 0.5;
        return 2 - LAST_LAYER + (2 * LAST_LAYER - 2) * depth;
      };
      return keepBest(view, budget, config, pooledMass(view, tracker), {
        mass: true,
        // n counts all heads' tokens together: steps fine enough to fill the budget.
        counts: (n) =>
          Float64Array.from({ length: heads }, (_, h) =>
            Math.floor((share(Math.floor(h / view.kvHeads)) * n) / heads),
          ),
      });
    },
  };
}
