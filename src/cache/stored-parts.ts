import type { ModelConfig } from '../core/config.ts';
import { LAYOUT_VERSION } from '../kernels/layout.ts';
import type { ExactPart } from './exact-part.ts';
import type { Gaps } from './gaps.ts';
import type { MessageMap } from './messages.ts';
import type { PackedPart } from './packed-part.ts';
import { type CacheHeader, HOT_HEADER_BYTES, type HotViews } from './persist.ts';
import type { CacheConfig, Policy } from './policy.ts';

/** What a store takes of a cache beside its blocks: persist.ts says what becomes of it. */
export interface Stored {
  readonly context: {
    readonly model: ModelConfig;
    readonly fingerprint: string;
    readonly kernels: { readonly numerics: string };
  };
  readonly config: CacheConfig;
  readonly policy: Pick<Policy, 'profile'>;
  readonly position: number;
  readonly spans: readonly unknown[];
  readonly gaps: Pick<Gaps, 'count' | 'order'>;
  readonly messages: Pick<MessageMap, 'text'> | undefined;
  readonly peakBytes: number;
  readonly recodes: number;
  readonly exact: ExactPart;
  readonly packed: PackedPart;
  readonly tracksMass: boolean;
  exactCount(layer: number): number;
}

export function headerOf(cache: Stored): CacheHeader {
  const { context, policy, gaps, messages } = cache;
  return {
    layoutVersion: LAYOUT_VERSION,
    numerics: context.kernels.numerics,
    model: context.fingerprint,
    config: cache.config,
    ...(policy.profile === undefined ? {} : { profile: policy.profile }),
    position: cache.position,
    segments: cache.spans.length,
    ...(gaps.count === 0 ? {} : { closed: gaps.order }),
    ...(messages ? { messages: messages.text } : {}),
    peakBytes: cache.peakBytes,
    recodes: cache.recodes,
  };
}

/** u32 slots, u32 0, u32 0, u32 0; per kvHead keys then values of the used slots; their mass; then the mass of each segment's records. */
export function hotViewsOf(cache: Stored, layer: number): HotViews {
  const slots = cache.exactCount(layer);
  const header = new Uint8Array(HOT_HEADER_BYTES);
  new DataView(header.buffer).setUint32(0, slots, true);
  const parts = cache.exact.parts(layer, slots);
  const planes = parts.slice(0, 2 * cache.context.model.kvHeads);
  const rest = parts.slice(planes.length);
  return { header, planes, rest, ...(cache.tracksMass && { scattered: cache.packed.masses(layer) }) };
}
