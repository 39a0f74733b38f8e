import type { KvCache } from '../cache/cache.ts';
import { cellIndex } from '../cache/segments.ts';
import { decayedQueries } from '../cache/trackers/ema.ts';

/** Relative relevance of the compressed tokens: 1 is the mean of the (layer, head). [layer][kvHead] -> one value a position from `start` on. */
export interface RelevanceMap {
  readonly start: number;
  readonly values: readonly (readonly Float64Array[])[];
}

/**
 * What attention has paid to each compressed token so far: mass a query that could see it, over the head's mean.
 * Rejects when the cache's policy tracks no mass
 */
export async function relevanceOf(cache: KvCache): Promise<RelevanceMap> {
  const decay = cache.policy.needs.mass?.decay;
  if (decay === undefined) throw new Error(`policy ${cache.policy.name} tracks no attention mass`);
  await cache.fetchMass();
  const { arena } = cache.context.kernels;
  const { kvHeads } = cache.context.model;
  if (cache.pendingSince !== undefined) throw new Error('a plan has not reached every layer yet');
  const start = cache.config.sinks;
  const tokens = cache.compressedEnd(0) - start;
  const values = cache.blocks.map((blocks) =>
    Array.from({ length: kvHeads }, (_, h) => {
      const out = new Float64Array(tokens);
      let at = 0;
      for (const block of blocks) {
        const reader = cache.reader(block);
        const n = reader.tokens;
        const tiers = new Uint8Array(n);
        const cells = new Int32Array(n);
        reader.tiers(h, tiers, 0);
        cellIndex(tiers, 0, n, cells);
        const mass = new Uint16Array(
          arena.memory.buffer,
          arena.ptr(block.id) + reader.massAt(h),
          reader.cells(h),
        );
        for (let i = 0; i < n; i++, at++)
          if (cells[i]! >= 0) out[at] = mass[cells[i]!]! / decayedQueries(start + at, cache.position, decay);
      }
      const mean = out.reduce((a, b) => a + b, 0) / tokens;
      return mean > 0 ? out.map((v) => v / mean) : out;
    }),
  );
  return { start, values };
}
