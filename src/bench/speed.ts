import type { PersistableCache } from '../cache/persist.ts';
import type { CacheConfig, CacheReport } from '../cache/policy.ts';
import { hash32 } from '../core/random.ts';
import type { ModelEngine } from '../engine/engine.ts';
import type { WasmKernels } from '../kernels/wasm.ts';
import { type Calibration, calibrate } from './calibrate.ts';

export const WINDOWS = 3;
export const WINDOW_TOKENS = 32;

export interface SpeedResult {
  /** Tokens in the cache when decoding starts; the prefill covers exactly these. */
  readonly context: number;
  /** Measured right before this context, in the same process. */
  readonly calibration: Calibration;
  readonly prefillTokensPerSecond: number;
  /** Best window of WINDOW_TOKENS steps. */
  readonly decodeTokensPerSecond: number;
  /** Prefill and the first decoding step's logits. */
  readonly ttftMs: number;
  readonly cache: Pick<CacheReport, 'tokens' | 'bytes' | 'fp16Bytes' | 'ratio' | 'peakBytes'>;
  readonly memory: Record<string, number>;
  /** Stored state -> resident cache, beside computing it again. */
  readonly restore: { readonly ms: number; readonly bytes: number; readonly recomputeMs: number };
}

/** Copies a cache's state as a session would store it. */
export function snapshot(cache: PersistableCache): {
  reader: Parameters<ModelEngine['restoreCache']>[0];
  bytes: number;
} {
  const pending = cache.completePlan();
  let bytes = 0;
  const layers = Array.from({ length: cache.layers }, (_, layer) => {
    const hot = cache.hot(layer);
    bytes += hot.length;
    const blocks = Array.from({ length: cache.segmentsOf(layer) }, (_, s) => {
      const block = { version: cache.blockVersion(layer, s), bytes: cache.block(layer, s) };
      bytes += block.bytes.length;
      return block;
    });
    return { hot, blocks };
  });
  // The plan that some layers still wait for.
  const journal = pending ? [pending] : [];
  for (const entry of journal) bytes += entry.bytes.length;
  return {
    bytes,
    reader: {
      header: cache.header,
      hot: (layer) => layers[layer]!.hot,
      block: (layer, segment) => layers[layer]!.blocks[segment]!,
      journal,
    },
  };
}

/**
 * One context: prefill, decode windows, restore. One thread; the token ids are seeded noise, which no speed depends on.
 * @param calibrator kernels whose memory is at least as large as the weights: the engine's own, or a second set beside the reference
 */
export async function measure(
  engine: ModelEngine,
  calibrator: WasmKernels,
  config: CacheConfig,
  context: number,
): Promise<SpeedResult> {
  const calibration = calibrate(calibrator);
  const cache = engine.createCache(config);
  try {
    const ids = Array.from({ length: context }, (_, i) => hash32(i, config.seed) % engine.model.vocab);
    const start = performance.now();
    await engine.feed(cache, ids, 'last');
    const prefillMs = performance.now() - start;

    const stored = snapshot(cache);
    const restoreStart = performance.now();
    engine.restoreCache(stored.reader).dispose();
    const restoreMs = performance.now() - restoreStart;

    let best = Number.POSITIVE_INFINITY;
    const room = Math.min(WINDOWS, Math.floor((engine.model.contextLength - context) / WINDOW_TOKENS));
    for (let w = 0; w < room; w++) {
      const begin = performance.now();
      for (let i = 0; i < WINDOW_TOKENS; i++)
        await engine.feed(cache, [hash32(w, i) % engine.model.vocab], 'last');
      best = Math.min(best, performance.now() - begin);
    }
    const report = cache.report();
    return {
      context,
      calibration,
      prefillTokensPerSecond: (context * 1000) / prefillMs,
      decodeTokensPerSecond: room > 0 ? (WINDOW_TOKENS * 1000) / best : 0,
      ttftMs: prefillMs,
      cache: {
        tokens: report.tokens,
        bytes: report.bytes,
        fp16Bytes: report.fp16Bytes,
        ratio: report.ratio,
        peakBytes: report.peakBytes,
      },
      memory: engine.ledger(),
      restore: { ms: restoreMs, bytes: stored.bytes, recomputeMs: prefillMs },
    };
  } finally {
    cache.dispose();
  }
}
