import type { CacheConfig } from '../cache/policy.ts';
import { EPOCH } from '../core/config.ts';
import { hash32 } from '../core/random.ts';
import type { ModelEngine } from '../engine/engine.ts';

/** How evenly a long answer comes: what a reader sees is the slowest step, not the mean. */
export interface StepTimes {
  /** Tokens in the cache before the first step. */
  readonly context: number;
  readonly steps: number;
  readonly medianMs: number;
  readonly p99Ms: number;
  /** The slowest steps, slowest first, with the position of the token that was fed. */
  readonly slowest: readonly { readonly position: number; readonly ms: number }[];
  readonly slowestOverMedian: number;
  /** Median of the steps that end an epoch, where plans are made and applied; over the median of all. */
  readonly epochEndOverMedian: number;
}

const LISTED = 5;

/** Times each of `steps` decoding steps after a prefill of `context` tokens. */
export async function measureSteps(
  engine: ModelEngine,
  config: CacheConfig,
  context: number,
  steps: number,
): Promise<StepTimes> {
  const cache = engine.createCache(config);
  try {
    const id = (i: number): number => hash32(i, config.seed) % engine.model.vocab;
    await engine.feed(
      cache,
      Array.from({ length: context }, (_, i) => id(i)),
      'last',
    );
    // Compiles what only single rows run.
    const warm = engine.createCache(config);
    for (let i = 0; i < 16; i++) await engine.feed(warm, [id(i)], 'last');
    warm.dispose();

    const out = new Float32Array(engine.model.vocab);
    const times: { position: number; ms: number }[] = [];
    for (let i = 0; i < steps; i++) {
      const start = performance.now();
      await engine.feed(cache, [id(context + i)], 'last', { out });
      times.push({ position: context + i, ms: performance.now() - start });
    }
    const medianMs = median(times.map(({ ms }) => ms));
    const sorted = [...times].sort((a, b) => b.ms - a.ms);
    const ends = times.filter(({ position }) => (position + 1) % EPOCH === 0).map(({ ms }) => ms);
    return {
      context,
      steps,
      medianMs,
      p99Ms: sorted[Math.floor(steps / 100)]!.ms,
      slowest: sorted.slice(0, LISTED),
      slowestOverMedian: sorted[0]!.ms / medianMs,
      epochEndOverMedian: ends.length === 0 ? 0 : median(ends) / medianMs,
    };
  } finally {
    cache.dispose();
  }
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[sorted.length >> 1]!;
}
