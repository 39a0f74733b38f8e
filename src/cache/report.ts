import { fp16BytesPerToken } from '../core/config.ts';
import {
  cellBytes,
  isMapped,
  pad4,
  RECORD_HEADER_BYTES,
  scaleBytes,
  segmentHeaderBytes,
  TIERS,
} from '../kernels/layout.ts';
import type { CacheReport, Policy } from './policy.ts';
import type { SegmentBlock, SegmentReader } from './segments.ts';
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
  reader(block: SegmentBlock): SegmentReader;
}

/** What a cache holds now, from the sizes of its blocks. Every turn asks for it: the records are counted, and what tiers take is multiplied once. */
export function cacheReport(cache: Reported): CacheReport {
  const { kernels, model } = cache.context;
  const { kvHeads, headDim } = model;
  const parts = { codes: 0, scales: 0, map: 0, mean: 0, mass: 0, padding: 0, headers: 0, exact: 0 };
  const tokensOf = new Float64Array(TIERS.length);
  const cellsOf = new Float64Array(TIERS.length);
  let all = 0;
  let kept = 0;
  let held = 0;
  for (const blocks of cache.blocks)
    for (let s = 0; s < blocks.length; s++) {
      const block = blocks[s]!;
      const { tokens } = cache.spans[s]!;
      const reader = cache.reader(block);
      held += kernels.arena.size(block.id);
      all += tokens * kvHeads;
      parts.headers += segmentHeaderBytes(kvHeads);
      for (let h = 0; h < kvHeads; h++) {
        const counts = reader.counts(h);
        let present = 0;
        let own = 0;
        let plain = false;
        for (let id = 0; id < TIERS.length; id++) {
          const n = counts[id]!;
          if (n === 0) continue;
          present++;
          own += n;
          plain ||= TIERS[id]!.plain;
          tokensOf[id]! += n;
          cellsOf[id]! += pad4(n);
        }
        if (own === 0) continue;
        kept += own;
        parts.headers += RECORD_HEADER_BYTES + present;
        if (isMapped(present, own, tokens)) parts.map += (tokens + 1) >> 1;
        if (!plain) parts.mean += headDim;
      }
    }
  const tiers: Record<string, number> = {};
  const tierBytes: Record<string, number> = {};
  for (const tier of TIERS) {
    const n = tokensOf[tier.id]!;
    if (n === 0) continue;
    const bytes = cellBytes(tier.id, headDim, false);
    const scale = scaleBytes(tier, tier.kBits, headDim) + scaleBytes(tier, tier.vBits, headDim);
    parts.scales += n * scale;
    parts.codes += n * (bytes - scale);
    tiers[tier.name] = n;
    tierBytes[tier.name] = cellsOf[tier.id]! * bytes;
  }
  if (kept < all) {
    tiers.drop = all - kept;
    tierBytes.drop = 0;
  }
  if (cache.tracksMass) parts.mass = 2 * kept;
  // Padding cells, alignment, and what the arena rounds up by.
  parts.padding = held - parts.headers - parts.map - parts.mean - parts.mass - parts.scales - parts.codes;
  parts.exact = cache.exact.bytes;
  let exact = 0;
  for (let layer = 0; layer < cache.layers; layer++) exact += cache.exactCount(layer);
  if (exact > 0) {
    tiers.exact = exact * kvHeads;
    tierBytes.exact = cache.exact.bytes;
  }
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
