import { DROP, tierNamed } from '../../kernels/layout.ts';
import { planBytes } from '../allocate.ts';
import type { CacheConfig, Plan, Policy } from '../policy.ts';
import { FRESH } from '../policy.ts';

/**
 * Recency alone: sinks and as many of the newest tokens as the budget holds, in the exact part's precision; older ones are dropped.
 * Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023.
 */
export function window(config: CacheConfig): Policy {
  const keep = tierNamed(config.exactBits === 32 ? 'f32' : 'f16');
  return {
    name: 'window',
    needs: {},
    plan(view, budget) {
      const planFrom = (first: number): Plan => ({
        tiers: view.segments.map((s) =>
          s.tiers.map((old, i) => {
            if (s.start + (i % s.tokens) < first) return DROP;
            return old === FRESH ? keep : old;
          }),
        ),
      });
      // The smallest first position whose plan fits: bytes fall as it rises.
      let low = view.segments[0]?.start ?? 0;
      let high = view.position;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (planBytes(view, planFrom(middle), false) <= budget.recordBytes) high = middle;
        else low = middle + 1;
      }
      return planFrom(low);
    },
  };
}
