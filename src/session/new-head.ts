import { type CacheConfig, completeConfig } from '../cache/policy.ts';
import type { Engine } from '../engine/types.ts';
import { LAYOUT_VERSION } from '../kernels/layout.ts';
import type { Listing } from './directory.ts';
import type { EngineIdentity, Head } from './head.ts';
import { EMPTY_LOG } from './log.ts';

export const identityOf = (engine: Engine): EngineIdentity => ({
  model: engine.model.name,
  fingerprint: engine.fingerprint,
  numerics: engine.numerics,
  layoutVersion: LAYOUT_VERSION,
});

/** The head of a session in which nothing was said yet. @param now ms */
export function newHead(
  id: string,
  now: number,
  options: {
    readonly cache?: Partial<CacheConfig>;
    readonly cacheBytes?: number;
    readonly ttlSeconds?: number;
    readonly implicit: boolean;
    readonly engine: Engine;
    readonly listing?: Listing;
  },
): Head {
  return {
    id,
    createdAt: now,
    lastUsedAt: now,
    ttlSeconds: options.ttlSeconds ?? null,
    implicit: options.implicit,
    ...(options.listing && { listing: options.listing }),
    cacheConfig: completeConfig(options.cache, options.cacheBytes),
    report: null,
    engine: identityOf(options.engine),
    log: EMPTY_LOG,
    states: [],
  };
}
