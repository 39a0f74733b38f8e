import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { snapshot } from '../../src/bench/snapshot.ts';
import type { KvCache } from '../../src/cache/cache.ts';
import { type CacheConfig, DEFAULT_CACHE } from '../../src/cache/policy.ts';
import { uniform01 } from '../../src/core/random.ts';
import { generate } from '../../src/engine/generate.ts';
import { loadWebGpuEngine } from '../../src/engine/load-webgpu.ts';
import { GREEDY, topK } from '../../src/engine/sampler.ts';
import type { Engine, SamplingOptions } from '../../src/engine/types.ts';
import { writeBundle } from '../../src/prepare/bundle.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { openModel } from '../../src/prepare/open-model.ts';
import { writeTinyGguf } from '../helpers/tiny-gguf.ts';
import { shaders, testDevice } from '../helpers/webgpu.ts';

const device = await testDevice();
const folder = mkdtempSync(join(tmpdir(), 'adkvc-webgpu-together-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const model = await openModel(writeTinyGguf(join(folder, 'tiny.gguf'), { layers: 2 }));
await writeBundle(model, join(folder, 'bundle'), { form: 'compact' });
await model.close();
const source = folderSource(join(folder, 'bundle'));
const engine = await loadWebGpuEngine({ device, source, shaders: shaders(), maxBytes: 64e6 });
const word = (a: number, b: number): number => Math.floor(uniform01(a, b) ** 2 * engine.model.vocab);
const words = (seed: number, count: number): number[] =>
  Array.from({ length: count }, (_, i) => word(seed, i));

/** Logits after each of `steps` tokens that follow `prompt`. */
async function feedSteps(cache: KvCache, seed: number, steps: number): Promise<number[][]> {
  const rows: number[][] = [];
  for (let i = 0; i < steps; i++) rows.push([...(await engine.feed(cache, [word(seed, 1000 + i)], 'last'))]);
  return rows;
}
async function stateOf(cache: KvCache): Promise<unknown[]> {
  await cache.settle();
  const { reader } = snapshot(cache);
  const layers = Array.from({ length: engine.model.layers }, (_, layer) => [
    reader.hot(layer),
    ...Array.from({ length: cache.segmentsOf(layer) }, (_, s) => reader.block(layer, s).bytes),
  ]);
  return [...layers, ...reader.journal.map(({ bytes }) => bytes)];
}

it('tokens of several conversations at once give each the bits that it has alone', {
  timeout: 300_000,
}, async () => {
  const configs: CacheConfig[] = [
    // Ends an epoch on the way, and takes its plan over.
    { ...DEFAULT_CACHE, ratio: 2, window: 16 },
    { ...DEFAULT_CACHE, ratio: 3, window: 16, policy: 'snapkv' },
    { ...DEFAULT_CACHE, policy: 'full' },
    // Kernels of its own.
    { ...DEFAULT_CACHE, policy: 'uniform-int8' },
  ];
  const prompts = [125, 20, 3, 2];
  const steps = 12;
  const start = async (i: number): Promise<KvCache> => {
    const cache = engine.createCache(configs[i]!);
    await engine.feed(cache, words(i, prompts[i]!), 'none');
    return cache;
  };
  const alone: { rows: number[][]; state: unknown[] }[] = [];
  for (const i of configs.keys()) {
    const cache = await start(i);
    alone.push({ rows: await feedSteps(cache, i, steps), state: await stateOf(cache) });
    cache.dispose();
  }
  const caches: KvCache[] = [];
  for (const i of configs.keys()) caches.push(await start(i));
  const sizes: number[] = [];
  const { step } = engine.forward;
  engine.forward.step = (jobs) => {
    sizes.push(jobs.length);
    return step.call(engine.forward, jobs);
  };
  const rows = await Promise.all(caches.map((cache, i) => feedSteps(cache, i, steps)));
  engine.forward.step = step;
  // Who comes first may go alone once; all others go together.
  expect(sizes.filter((size) => size === configs.length).length).toBeGreaterThanOrEqual(steps - 1);
  for (const [i, cache] of caches.entries()) {
    expect(rows[i]).toEqual(alone[i]!.rows);
    expect(await stateOf(cache)).toEqual(alone[i]!.state);
    cache.dispose();
  }
});

it('a conversation for which memory is short fails alone', async () => {
  const caches = [0, 1].map(() => engine.createCache(DEFAULT_CACHE));
  for (const cache of caches) await engine.feed(cache, [1, 2], 'none');
  const [full, other] = caches as [KvCache, KvCache];
  full.reserve = () => {
    throw new Error('memory is short');
  };
  const [failed, went] = await Promise.allSettled(caches.map((cache) => engine.feed(cache, [3], 'last')));
  expect(failed).toMatchObject({ status: 'rejected', reason: { message: 'memory is short' } });
  expect(went?.status).toBe('fulfilled');
  expect([full.position, other.position]).toEqual([2, 3]);
  for (const cache of caches) cache.dispose();
});

it('the candidates are the largest logits', async () => {
  const [one, other] = [engine.createCache(DEFAULT_CACHE), engine.createCache(DEFAULT_CACHE)];
  const ids = words(5, 20);
  const logits = await engine.feed(one, ids, 'last');
  const top = await engine.feedTop!(other, ids, 9);
  const expected = topK(logits, 9);
  expect([...top.ids]).toEqual(expected.map(({ id }) => id));
  expect([...top.logits]).toEqual(expected.map(({ logit }) => logit));
  one.dispose();
  other.dispose();
});

it('draws the tokens that it draws from all logits', { timeout: 300_000 }, async () => {
  const choices: SamplingOptions[] = [
    GREEDY,
    { ...GREEDY, temperature: 0.9, topK: 20, seed: 3 },
    { ...GREEDY, temperature: 1.3, topK: 50, topP: 0.8, minP: 0.05, seed: 4 },
  ];
  let asked = 0;
  const counting: Engine = Object.create(engine, {
    feedTop: {
      value: (...args: Parameters<NonNullable<Engine['feedTop']>>) => {
        asked++;
        return engine.feedTop!(...args);
      },
    },
  });
  const whole: Engine = Object.create(engine, { feedTop: { value: undefined } });
  for (const sampling of choices) {
    const drawn = [];
    for (const on of [counting, whole]) {
      const cache = engine.createCache(DEFAULT_CACHE);
      const ids: number[] = [];
      for await (const event of generate(on, cache, words(6, 5), { sampling, stop: [], maxTokens: 10 }))
        if (event.type === 'token') ids.push(event.id);
      cache.dispose();
      drawn.push(ids);
    }
    expect(drawn[0]).toEqual(drawn[1]);
    expect(drawn[0]!.length).toBeGreaterThan(0);
  }
  expect(asked).toBeGreaterThanOrEqual(choices.length);
  // What needs all logits reads them.
  const before = asked;
  const cache = engine.createCache(DEFAULT_CACHE);
  const sampling = { ...GREEDY, topLogprobs: 2 };
  for await (const event of generate(counting, cache, words(6, 5), { sampling, stop: [], maxTokens: 2 }))
    if (event.type === 'token') expect(event.top).toHaveLength(2);
  expect(asked).toBe(before);
  cache.dispose();
});
