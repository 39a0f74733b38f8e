import { keepBest } from '../evict.ts';
import type { CacheConfig, CacheView, Policy } from '../policy.ts';
import { lastWindowTracker } from '../trackers/last-window.ts';
import { pooledMass } from './snapkv.ts';

const QUERIES = 8;
/** A layer is offered at most this many times the mean budget. */
const MOST = 10;
/** Layers after which the budgets of all layers so far are set anew. */
const EVERY = 4;

/**
 * Layers' budgets follow from where the highest votes of the last 8 queries (averaged over 7 neighbours) lie: after every 4 layers, the best
 * of all layers so far are counted by layer.
 * X. Zhou et al., "DynamicKV: Task-Aware Adaptive KV Cache Compression for Long Context LLMs", 2024. Streaming here, as snapkv.
 */
export function dynamickv(config: CacheConfig): Policy {
  const tracker = lastWindowTracker(QUERIES);
  return {
    name: 'dynamickv',
    needs: { mass: tracker.mass },
    plan(view, budget) {
      const scores = pooledMass(view, tracker);
      const sorted = sortedByLayer(view, scores);
      const heads = view.layers * view.kvHeads;
      return keepBest(view, budget, config, scores, {
        mass: true,
        counts(n) {
          const layers = layerCounts(sorted, n / view.layers);
          return Float64Array.from({ length: heads }, (_, h) =>
            Math.floor(layers[Math.floor(h / view.kvHeads)]! / view.kvHeads),
          );
        },
      });
    },
  };
}

/** All scores of a layer, falling. */
function sortedByLayer(view: CacheView, scores: readonly Float32Array[]): Float32Array[] {
  return Array.from({ length: view.layers }, (_, layer) => {
    const parts = view.segments.map(({ tokens }, s) => {
      const width = view.kvHeads * tokens;
      return scores[s]!.subarray(layer * width, (layer + 1) * width);
    });
    const all = new Float32Array(parts.reduce((sum, p) => sum + p.length, 0));
    let at = 0;
    for (const part of parts) {
      all.set(part, at);
      at += part.length;
    }
    return all.sort().reverse();
  });
}

/** Cells that each layer keeps when the mean is `base`: a global choice among the layers so far, after every 4th layer and the last. */
export function layerCounts(sorted: readonly Float32Array[], base: number): number[] {
  const offered: number[] = [];
  sorted.forEach((scores, layer) => {
    offered.push(Math.min(Math.floor(MOST * base), scores.length));
    const done = layer + 1;
    if (done % EVERY !== 0 && done !== sorted.length) return;
    const budget = Math.floor(base * done);
    if (offered.reduce((sum, n) => sum + n, 0) <= budget) return;
    // The lowest score that the budget still admits, by bisection over a score's bits: they order like the scores, which are not negative.
    const above = (score: number): number[] =>
      offered.map((n, l) => {
        let low = 0;
        let high = n;
        while (low < high) {
          const middle = (low + high) >> 1;
          if (sorted[l]![middle]! > score) low = middle + 1;
          else high = middle;
        }
        return low;
      });
    let low = 0;
    let high = 0x7f80_0000;
    while (high - low > 1) {
      const middle = (low + high) >>> 1;
      if (above(fromBits(middle)).reduce((sum, n) => sum + n, 0) <= budget) high = middle;
      else low = middle;
    }
    above(fromBits(high)).forEach((n, l) => {
      offered[l] = n;
    });
  });
  return offered;
}

function fromBits(bits: number): number {
  return new Float32Array(Uint32Array.of(bits).buffer)[0]!;
}
