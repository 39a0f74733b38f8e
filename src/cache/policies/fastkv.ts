import { InvalidInputError } from '../../core/errors.ts';
import { keepBest } from '../evict.ts';
import type { CacheConfig, Policy } from '../policy.ts';
import { averagePool, byHead } from '../relevance.ts';
import { lastWindowTracker } from '../trackers/last-window.ts';

/** Queries that vote, and tokens that share their votes. */
const QUERIES = 8;
export const POOL = 7;
/** Share of a prompt's tokens whose hidden states go on to the layers above the propagation layer. */
export const PROPAGATED = 0.2;
/** The last layer that sees every token, of 0 to `layers` - 1: 15 of 32, as published. */
export const propagationLayer = (layers: number): number => Math.ceil(layers / 2) - 1;

/**
 * Layers above the middle one see only the fifth of the prompt that its last queries attended to there, and the newest tokens: `PropagatingCache` and the
 * forward pass see to that. Each head then keeps what the last 8 queries attended to, votes summed over the group and averaged over 7 neighbours.
 * D. Jo et al., "FastKV: KV Cache Compression for Fast Long-Context Processing with Token-Selective Propagation", 2025.
 * Only as published, once after a prompt: which tokens go on is known when the prompt's last queries are, and answers are wanted before that from a
 * conversation that streams.
 */
export function fastkv(config: CacheConfig): Policy {
  if (config.oneShot === undefined)
    throw new InvalidInputError(
      'policy fastkv compresses once, after a prompt whose length is known: for adkvc evaluate on tasks with a prompt, not for conversations',
      'policy',
    );
  const tracker = lastWindowTracker(QUERIES);
  return {
    name: 'fastkv',
    needs: { mass: tracker.mass },
    plan(view, budget) {
      const scores = tracker.read(view);
      byHead(view, scores, (tokens) => averagePool(tokens, POOL));
      return keepBest(view, budget, config, scores, { mass: true });
    },
  };
}
