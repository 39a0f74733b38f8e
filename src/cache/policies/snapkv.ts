import { keepBest } from '../evict.ts';
import type { CacheConfig, CacheView, Policy } from '../policy.ts';
import { averagePool, byHead } from '../relevance.ts';
import { lastWindowTracker } from '../trackers/last-window.ts';
import type { Tracker } from '../trackers/tracker.ts';

/** Queries that vote, and tokens that share their votes. */
const QUERIES = 32;
export const POOL = 7;

/** A tracker's mass, averaged over neighbours. */
export function pooledMass(view: CacheView, tracker: Tracker): Float32Array[] {
  const scores = tracker.read(view);
  byHead(view, scores, (tokens) => averagePool(tokens, POOL));
  return scores;
}

/**
 * Each head keeps the tokens that the last 32 queries attended to, votes averaged over 7 neighbours.
 * Y. Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", 2024.
 * Published for one compression after the prompt; here at each epoch, before the question is known (streaming).
 */
export function snapkv(config: CacheConfig): Policy {
  const tracker = lastWindowTracker(QUERIES);
  return {
    name: 'snapkv',
    needs: { mass: tracker.mass },
    plan: (view, budget) => keepBest(view, budget, config, pooledMass(view, tracker), { mass: true }),
  };
}
