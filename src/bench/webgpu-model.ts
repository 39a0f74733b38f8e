import type { CacheConfig } from '../cache/policy.ts';
import { hash32 } from '../core/random.ts';
import type { WebGpuEngine } from '../engine/load-webgpu.ts';
import { WINDOW_TOKENS, WINDOWS } from './speed.ts';

export interface WebGpuResult {
  readonly device: string;
  readonly policy: string;
  readonly context: number;
  readonly prefillTokensPerSecond: number;
  /** Best window of WINDOW_TOKENS steps, logits read back at each. */
  readonly decodeTokensPerSecond: number;
  readonly ratio: number;
  /** Milliseconds of one decoding step by kernel, from timestamps, each kernel in a pass of its own; undefined without timestamps. */
  readonly kernels?: Readonly<Record<string, number>>;
}

/** Prefill and decoding on a GPU at one context. The token ids are seeded noise, which no speed depends on. */
export async function measureWebGpu(
  engine: WebGpuEngine,
  config: CacheConfig,
  context: number,
): Promise<WebGpuResult> {
  const { device, stream } = engine.forward;
  const token = (a: number, b: number): number => hash32(a, b) % engine.model.vocab;
  // Pipelines are compiled when they are first used.
  const warm = engine.createCache(config);
  await engine.feed(warm, [1, 2], 'last');
  await engine.feed(warm, [3], 'last');
  warm.dispose();

  const cache = engine.createCache(config);
  try {
    const ids = Array.from({ length: context }, (_, i) => token(i, 0));
    let start = performance.now();
    await engine.feed(cache, ids, 'last');
    const prefillMs = performance.now() - start;
    let best = Number.POSITIVE_INFINITY;
    for (let w = 0; w < WINDOWS; w++) {
      start = performance.now();
      for (let i = 0; i < WINDOW_TOKENS; i++) await engine.feed(cache, [token(w, i + 1)], 'last');
      best = Math.min(best, performance.now() - start);
    }
    let kernels: Record<string, number> | undefined;
    if (device.features.has('timestamp-query')) {
      stream.startTiming();
      await engine.feed(cache, [token(0, 0)], 'last');
      kernels = await stream.stopTiming();
    }
    return {
      device: engine.numerics,
      ...{ policy: config.policy, context, ratio: cache.report().ratio },
      prefillTokensPerSecond: (context * 1000) / prefillMs,
      decodeTokensPerSecond: (WINDOW_TOKENS * 1000) / best,
      ...(kernels && { kernels }),
    };
  } finally {
    cache.dispose();
  }
}
