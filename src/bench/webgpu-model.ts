import type { KvCache } from '../cache/cache.ts';
import type { CacheConfig } from '../cache/policy.ts';
import { hash32 } from '../core/random.ts';
import type { WebGpuEngine } from '../engine/load-webgpu.ts';
import { snapshot } from './snapshot.ts';
import { WINDOW_TOKENS } from './speed.ts';

const WINDOWS = 3;

export interface WebGpuResult {
  readonly device: string;
  readonly policy: string;
  /** What was asked for; `ratio` is what is held. */
  readonly asked: number | undefined;
  readonly context: number;
  readonly ratio: number;
  readonly prefillTokensPerSecond: number;
  readonly decoding: readonly DecodeResult[];
}

/** So many conversations, each a step at a time, all at once; tokens of all of them a second, in the best window. */
export interface DecodeResult {
  readonly conversations: number;
  /** All logits read back, drawn from by nobody. */
  readonly logitsTokensPerSecond: number;
  /** The largest logit found on the device. */
  readonly greedyTokensPerSecond: number;
  /** Milliseconds of one step of all by kernel, from timestamps, each kernel in a pass of its own; undefined without timestamps. */
  readonly kernels?: Readonly<Record<string, number>>;
}

export interface WebGpuBenchOptions {
  readonly config: CacheConfig;
  readonly context: number;
  /** Conversations that decode at once, one measurement each. */
  readonly conversations: readonly number[];
  /** Steps of a window. */
  readonly steps?: number;
}

/** Prefill and decoding on a GPU at one context. The token ids are seeded noise, which no speed depends on. */
export async function measureWebGpu(
  engine: WebGpuEngine,
  { config, context, conversations, steps = WINDOW_TOKENS }: WebGpuBenchOptions,
): Promise<WebGpuResult> {
  const token = (a: number, b: number): number => hash32(a, b) % engine.model.vocab;
  // Pipelines are compiled when they are first used.
  const warm = engine.createCache(config);
  await engine.feed(warm, [1, 2], 'last');
  await engine.feed(warm, [3], 'last');
  warm.dispose();

  const first = engine.createCache(config);
  const caches: KvCache[] = [first];
  try {
    const ids = Array.from({ length: context }, (_, i) => token(i, 0));
    const start = performance.now();
    await engine.feed(first, ids, 'last');
    const prefillMs = performance.now() - start;
    const { ratio } = first.report();
    const most = Math.max(...conversations);
    if (most > 1) {
      // The others have the same past: what they compute does not depend on it being theirs.
      await first.settle();
      const { reader } = snapshot(first);
      while (caches.length < most) caches.push(engine.restoreCache(reader) as KvCache);
    }
    const decoding: DecodeResult[] = [];
    for (const count of conversations)
      decoding.push(await decode(engine, caches.slice(0, count), steps, token));
    return {
      device: engine.numerics,
      ...{ policy: config.policy, asked: config.ratio, context, ratio },
      prefillTokensPerSecond: (context * 1000) / prefillMs,
      decoding,
    };
  } finally {
    for (const cache of caches) cache.dispose();
  }
}

async function decode(
  engine: WebGpuEngine,
  caches: readonly KvCache[],
  steps: number,
  token: (a: number, b: number) => number,
): Promise<DecodeResult> {
  const { device, stream } = engine.forward;
  let fed = 0;
  const window = async (step: (cache: KvCache, id: number) => Promise<unknown>): Promise<number> => {
    const start = performance.now();
    for (let i = 0; i < steps; i++) {
      fed++;
      await Promise.all(caches.map((cache, c) => step(cache, token(c, fed))));
    }
    return (caches.length * steps * 1000) / (performance.now() - start);
  };
  // Turn by turn: the first tokens of an epoch plan for it, and the first of all are compiled.
  let [greedyTokensPerSecond, logitsTokensPerSecond] = [0, 0];
  for (let w = 0; w < WINDOWS; w++) {
    const greedy = await window((cache, id) => engine.feedTop!(cache, [id], 1));
    const logits = await window((cache, id) => engine.feed(cache, [id], 'last'));
    greedyTokensPerSecond = Math.max(greedyTokensPerSecond, greedy);
    logitsTokensPerSecond = Math.max(logitsTokensPerSecond, logits);
  }
  let kernels: Record<string, number> | undefined;
  if (device.features.has('timestamp-query')) {
    stream.startTiming();
    await Promise.all(caches.map((cache, c) => engine.feedTop!(cache, [token(c, 0)], 1)));
    kernels = await stream.stopTiming();
  }
  return {
    conversations: caches.length,
    ...{ logitsTokensPerSecond, greedyTokensPerSecond },
    ...(kernels && { kernels }),
  };
}
