import type { CacheConfig, CacheReport } from '../cache/policy.ts';
import { hash32 } from '../core/random.ts';
import type { ModelEngine } from '../engine/engine.ts';
import type { Kernels } from '../kernels/kernels.ts';
import type { WasmKernels } from '../kernels/wasm.ts';
import { type Calibration, calibrate } from './calibrate.ts';
import {
  attentionProducts,
  COMMIT_TOKENS,
  COST_TOKENS,
  type CommitCosts,
  type DecodeCosts,
  measureCommit,
  measureTracking,
  timeOf,
} from './costs.ts';
import { snapshot } from './snapshot.ts';

/** Of decoding steps; the fastest counts, as in the calibration: whatever disturbs one only slows it. On shared cores what disturbs lasts for seconds. */
const WINDOWS = 6;
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
  /** Share of the prefill that making and applying plans took. */
  readonly planningShare: number;
  readonly commit: CommitCosts;
  readonly costs: DecodeCosts;
}

/** Tokens that `measure` feeds beyond the context. */
export const MEASURED_TOKENS = WINDOWS * WINDOW_TOKENS + COMMIT_TOKENS + COST_TOKENS;

/**
 * One context: prefill, decode windows, restore. One thread; the token ids are seeded noise, which no speed depends on.
 * @param kernels the engine's, whose attention is timed
 * @param calibrator kernels whose memory is at least as large as the weights: the engine's own, or a second set beside the reference
 */
export async function measure(
  engine: ModelEngine,
  kernels: Kernels,
  calibrator: WasmKernels,
  config: CacheConfig,
  context: number,
): Promise<SpeedResult> {
  const calibration = calibrate(calibrator);
  const cache = engine.createCache(config);
  try {
    const ids = Array.from({ length: context }, (_, i) => hash32(i, config.seed) % engine.model.vocab);
    const start = performance.now();
    const planningMs = await timeOf(cache, ['reserve', 'begin', 'advance'], () =>
      engine.feed(cache, ids, 'last'),
    );
    const prefillMs = performance.now() - start;

    const stored = snapshot(cache);
    const restoreStart = performance.now();
    engine.restoreCache(stored.reader).dispose();
    const restoreMs = performance.now() - restoreStart;

    let best = Number.POSITIVE_INFINITY;
    let [attentionMs, products] = [0, 0];
    const out = new Float32Array(engine.model.vocab);
    for (let w = 0; w < WINDOWS; w++) {
      // Of the window's first step: the others hold up to 31 tokens more.
      const held = attentionProducts(engine.model, cache);
      const begin = performance.now();
      const inAttention = await timeOf(kernels, ['attend'], async () => {
        for (let i = 0; i < WINDOW_TOKENS; i++)
          await engine.feed(cache, [hash32(w, i) % engine.model.vocab], 'last', { out });
      });
      const ms = performance.now() - begin;
      if (ms >= best) continue;
      best = ms;
      attentionMs = inAttention;
      products = held * WINDOW_TOKENS;
    }
    const report = cache.report();
    const commit = await measureCommit(engine, cache);
    const trackingShare = await measureTracking(engine, kernels, cache);
    return {
      context,
      calibration,
      prefillTokensPerSecond: (context * 1000) / prefillMs,
      decodeTokensPerSecond: (WINDOW_TOKENS * 1000) / best,
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
      planningShare: planningMs / prefillMs,
      commit,
      costs: {
        attentionGMACs: products / attentionMs / 1e6,
        attentionShare: attentionMs / best,
        trackingShare,
      },
    };
  } finally {
    cache.dispose();
  }
}
