import { beforeAll, describe, expect, it } from 'vitest';
import { snapshot } from '../../src/bench/snapshot.ts';
import { byteBudget } from '../../src/cache/byte-budget.ts';
import type { KvCache } from '../../src/cache/cache.ts';
import { type CacheConfig, DEFAULT_CACHE } from '../../src/cache/policy.ts';
import type { PropagatingCache } from '../../src/cache/propagating-cache.ts';
import { createPolicy } from '../../src/cache/registry.ts';
import { uniform01 } from '../../src/core/random.ts';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { tinyEngine } from '../helpers/tiny-engine.ts';

const PROMPT = 1300;
const ANSWER = 40;
const config = (own: Partial<CacheConfig> = {}): CacheConfig => ({
  ...DEFAULT_CACHE,
  policy: 'fastkv',
  ratio: 4,
  oneShot: PROMPT,
  ...own,
});
const IDS = (vocab: number, n: number): number[] =>
  Array.from({ length: n }, (_, i) => Math.floor(uniform01(77, i) ** 2 * vocab));

let engine: ModelEngine;
beforeAll(async () => {
  engine = await tinyEngine('wasm', { layers: 4, context: 4096 });
});

/** Logits from the prompt's last token on. */
async function read(cache: KvCache, prompt: number, answer: number, chunk: number): Promise<Float32Array[]> {
  const logits: Float32Array[] = [];
  await engine.feedEach(
    cache,
    IDS(engine.model.vocab, prompt + answer),
    (i) => i >= prompt - 1,
    (_, row) => logits.push(row.slice()),
    { chunk },
  );
  return logits;
}
const bytesOf = (cache: KvCache): Uint8Array[] =>
  Array.from({ length: cache.layers }, (_, layer) => [
    cache.hot(layer),
    ...Array.from({ length: cache.segmentsOf(layer) }, (_, s) => cache.block(layer, s)),
  ]).flat();

/** Multiply-adds of the layers' products while `work` runs. */
async function macs(cache: KvCache, work: () => Promise<unknown>): Promise<number> {
  const { kernels } = cache.context as unknown as { kernels: { matmul: (...args: unknown[]) => void } };
  const { matmul } = kernels;
  let sum = 0;
  kernels.matmul = (...args) => {
    const [, , rows, , n, k] = args as number[];
    if (n !== engine.model.vocab) sum += rows! * n! * k!;
    matmul.apply(kernels, args);
  };
  try {
    await work();
  } finally {
    kernels.matmul = matmul;
  }
  return sum;
}

describe('fastkv', () => {
  it.each([PROMPT, 1280])(
    'a prompt of %d: chunks of 128, 64, 17 and 1 give the same bits',
    async (prompt) => {
      const runs = [];
      for (const chunk of [128, 64, 17, 1]) {
        const cache = engine.createCache(config({ oneShot: prompt })) as PropagatingCache;
        const logits = await read(cache, prompt, ANSWER, chunk);
        runs.push({ logits, lower: bytesOf(cache), upper: bytesOf(cache.upper!) });
        cache.dispose();
      }
      expect(runs[0]!.logits.length).toBe(ANSWER + 1);
      for (const other of runs.slice(1)) expect(other).toEqual(runs[0]);
    },
  );

  it.each([PROMPT, 1280])(
    'a prompt of %d: never above its budget, and no more than a twentieth below',
    async (prompt) => {
      for (const ratio of [3, 8]) {
        const own = config({ ratio, oneShot: prompt });
        const cache = engine.createCache(own);
        await read(cache, prompt, 0, 128);
        const { peakBytes } = cache.report();
        cache.finish();
        const budget = byteBudget(own, engine.model, prompt);
        const report = cache.report();
        expect(report.bytes).toBe(cache.bytes);
        expect(report.bytes).toBeLessThanOrEqual(budget);
        expect(report.bytes).toBeGreaterThan(budget * 0.95);
        expect(Object.values(report.tierBytes).reduce((a, b) => a + b, 0)).toBe(report.bytes);
        const { layers, kvHeads } = engine.model;
        expect(Object.values(report.tiers).reduce((a, b) => a + b, 0)).toBe(prompt * layers * kvHeads);
        // The lower half of the full cache at least, before it is compressed.
        expect(peakBytes).toBeGreaterThan(report.fp16Bytes / 2);
        cache.dispose();
      }
    },
  );

  it('computes the upper layers for a fifth of the prompt', async () => {
    const full = engine.createCache({ ...DEFAULT_CACHE, policy: 'full' });
    const all = await macs(full, () => read(full, PROMPT, 0, 128));
    full.dispose();
    const cache = engine.createCache(config()) as PropagatingCache;
    const some = await macs(cache, () => read(cache, PROMPT, 0, 128));
    expect(cache.upper!.position).toBe(Math.ceil(0.2 * PROMPT));
    expect(cache.upper!.layers).toBe(2);
    // Two whole layers and a fifth of two, of three whole ones and the keys, values and queries of the last.
    expect(some / all).toBeGreaterThan(0.6);
    expect(some / all).toBeLessThan(0.72);
    cache.dispose();
  });

  it('is the whole model where the window keeps every token', async () => {
    const prompt = 600;
    const cache = engine.createCache(config({ oneShot: prompt, window: 1000, ratio: 1 }));
    const full = engine.createCache({ ...DEFAULT_CACHE, policy: 'full', window: 1000 });
    expect(await read(cache, prompt, 20, 128)).toEqual(await read(full, prompt, 20, 128));
    cache.dispose();
    full.dispose();
  });

  it('propagates sinks, window, and tokens between that were looked at', async () => {
    const cache = engine.createCache(config()) as PropagatingCache;
    const ids = IDS(engine.model.vocab, PROMPT);
    await engine.feed(cache, ids.slice(0, PROMPT - 20), 'none');
    let seen: readonly number[] = [];
    const { propagate } = cache;
    cache.propagate = (rows) => {
      const result = propagate.call(cache, rows);
      seen = result.positions;
      return result;
    };
    await engine.feed(cache, ids.slice(PROMPT - 20), 'last');
    expect(seen.slice(0, 4)).toEqual([0, 1, 2, 3]);
    const { window } = DEFAULT_CACHE;
    expect(seen.slice(-window)).toEqual(Array.from({ length: window }, (_, i) => PROMPT - window + i));
    expect(seen.every((p, i) => i === 0 || p > seen[i - 1]!)).toBe(true);
    // Votes are shared by seven neighbours: what is kept between comes in runs.
    const between = seen.slice(4, -window);
    expect(between.filter((p) => seen.includes(p + 1)).length).toBeGreaterThan(between.length / 2);
    cache.dispose();
  });

  it('refuses what it cannot give, by name', async () => {
    const cache = engine.createCache(config());
    const ids = IDS(engine.model.vocab, 100);
    await expect(engine.feed(cache, ids, 'last')).rejects.toThrow(/last token alone has logits/);
    expect(() => snapshot(cache)).toThrow(/not stored/);
    cache.dispose();
    expect(() => createPolicy({ ...DEFAULT_CACHE, policy: 'fastkv' }, engine.model)).toThrow(
      /compresses once, after a prompt/,
    );
    expect(() => engine.createCache({ ...DEFAULT_CACHE, policy: 'fastkv' })).toThrow(/fastkv/);
  });
});
