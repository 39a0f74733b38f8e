import { fp16BytesPerToken } from '../core/config.ts';
import { groupBytes, SPLIT_PARTS, segmentHeaderBytes, splitRecord, TIERS } from '../kernels/layout.ts';
import type { CacheReport, Policy } from './policy.ts';
import type { Snapped } from './snapshot.ts';

/** What of a cache its report looks at. */
export interface Reported extends Pick<Snapped, 'context' | 'position' | 'tracksMass' | 'spans' | 'blocks'> {
  readonly config: { readonly policy: string; readonly sinks: number };
  readonly policy: Pick<Policy, 'profile'>;
  readonly exact: { readonly bytes: number };
  readonly layers: number;
  readonly bytes: number;
  readonly peakBytes: number;
  readonly recodes: number;
  exactCount(layer: number): number;
  compressedEnd(layer: number): number;
  reader: Snapped['reader'];
}

/** What a cache holds now, from the sizes of its blocks. */
export function cacheReport(cache: Reported): CacheReport {
  const { kernels, model } = cache.context;
  const tiers: Record<string, number> = {};
  const tierBytes: Record<string, number> = {};
  const parts = { codes: 0, scales: 0, map: 0, mean: 0, mass: 0, padding: 0, headers: 0, exact: 0 };
  const count = (name: string, n: number, bytes: number): void => {
    tiers[name] = (tiers[name] ?? 0) + n;
    tierBytes[name] = (tierBytes[name] ?? 0) + bytes;
  };
  for (const blocks of cache.blocks)
    for (const [s, block] of blocks.entries()) {
      const reader = cache.reader(block);
      let seen = 0;
      // What no record holds: the segment's header, and what the arena rounds up by.
      const header = segmentHeaderBytes(model.kvHeads);
      let named = header;
      parts.headers += header;
      for (let h = 0; h < model.kvHeads; h++) {
        const counts = reader.counts(h);
        const split = splitRecord(cache.spans[s]!.tokens, counts, model.headDim, cache.tracksMass);
        for (const name of SPLIT_PARTS) {
          parts[name] += split[name];
          named += split[name];
        }
        for (const tier of TIERS) {
          const n = counts[tier.id]!;
          if (n > 0) count(tier.name, n, groupBytes(tier.id, n, model.headDim));
          seen += n;
        }
      }
      const dropped = cache.spans[s]!.tokens * model.kvHeads - seen;
      if (dropped > 0) count('drop', dropped, 0);
      parts.padding += kernels.arena.size(block.id) - named;
    }
  parts.exact = cache.exact.bytes;
  let exact = 0;
  for (let layer = 0; layer < cache.layers; layer++) exact += cache.exactCount(layer);
  if (exact > 0) count('exact', exact * model.kvHeads, cache.exact.bytes);
  // Headers, maps, means, mass.
  tierBytes.overhead = cache.bytes - Object.values(tierBytes).reduce((sum, bytes) => sum + bytes, 0);
  const fp16Bytes = cache.position * fp16BytesPerToken(model);
  return {
    policy: cache.config.policy,
    tokens: cache.position,
    bytes: cache.bytes,
    fp16Bytes,
    ratio: cache.bytes === 0 ? 0 : fp16Bytes / cache.bytes,
    peakBytes: Math.max(cache.peakBytes, cache.bytes),
    ...(cache.policy.profile === undefined ? {} : { profile: cache.policy.profile }),
    meanRecodes: cache.recodes / Math.max(1, compressedCells(cache)),
    tiers,
    tierBytes,
    parts,
  };
}

/** Token-heads in segments, dropped ones included. */
function compressedCells(cache: Reported): number {
  let tokens = 0;
  for (let layer = 0; layer < cache.layers; layer++)
    tokens += cache.compressedEnd(layer) - cache.config.sinks;
  return tokens * cache.context.model.kvHeads;
}
