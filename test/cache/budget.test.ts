import { expect, it } from 'vitest';
import { MIN_BUDGET_TOKENS } from '../../src/cache/byte-budget.ts';
import { worstCaseBytes } from '../../src/cache/worst-case.ts';
import { fp16BytesPerToken, type ModelConfig } from '../../src/core/config.ts';
import { cacheDriver, finishedBytes, SHAPE } from '../helpers/cache-driver.ts';

/** The embedded model's heads; a tenth of its layers. */
const MODEL: ModelConfig = { ...SHAPE, layers: 3, heads: 9, kvHeads: 3, headDim: 64, attentionScale: 0.125 };

it.each([
  ['adkvc', 2],
  ['adkvc', 5],
  ['adkvc', 10],
  ['adkvc-adapted', 5],
  ['adkvc-evict', 5],
  ['h2o', 5],
  ['tova', 5],
  ['window', 5],
])(
  '%s at %d: never above its budget after an epoch, at most a fiftieth below once it compresses',
  (policy, ratio) => {
    const driver = cacheDriver({ policy, ratio }, { model: MODEL });
    const cache = driver.create();
    for (let position = 128; position <= 1536; position += 128) {
      driver.feedTo(cache, position);
      const budget = (Math.max(position, MIN_BUDGET_TOKENS) * fp16BytesPerToken(MODEL)) / ratio;
      const bytes = finishedBytes(driver, cache);
      expect(bytes).toBeLessThanOrEqual(budget);
      if (position >= MIN_BUDGET_TOKENS) expect(bytes).toBeGreaterThan(budget * 0.98);
    }
    expect(cache.report().meanRecodes).toBeLessThanOrEqual(1.5);
  },
);

it.each([
  [128, 4],
  [32, 4],
  [128, 10],
])(
  'chunks of %d at ratio %d fit into the worst case that turns are admitted by, and not much less',
  (chunk, ratio) => {
    const model: ModelConfig = { ...SHAPE, layers: 30 };
    const driver = cacheDriver({ policy: 'adkvc', ratio }, { model });
    const { arena } = driver.context.kernels;
    const tokens = 1536;
    const worst = worstCaseBytes({ model }, driver.config, tokens);
    const others = arena.alloc(arena.availableBytes - worst);
    const cache = driver.create();
    let least = worst;
    for (let position = chunk; position <= tokens; position += chunk) {
      driver.feedTo(cache, position);
      least = Math.min(least, arena.availableBytes);
    }
    expect(least).toBeLessThan(worst / 2);
    cache.dispose();
    arena.free(others);
  },
);

it('a turn whose tokens all stay at the finest tier is admitted by that tier, not by f16', () => {
  const model: ModelConfig = { ...MODEL, layers: 30 };
  const driver = cacheDriver({ policy: 'adkvc', bytes: 30e6 }, { model });
  const cache = driver.create();
  const tokens = 1024;
  driver.feedTo(cache, tokens);
  const { tiers, peakBytes } = cache.report();
  expect(Object.keys(tiers).sort()).toEqual(['8,8', 'exact']);
  const worst = worstCaseBytes({ model }, driver.config, tokens);
  expect(worst).toBeGreaterThanOrEqual(peakBytes);
  expect(worst).toBeLessThan(0.75 * tokens * fp16BytesPerToken(model));
  cache.dispose();
});

it('the reference kernels leave the same bytes as WASM', () => {
  const states = [true, false].map((reference) => {
    const driver = cacheDriver({ policy: 'adkvc', ratio: 5 }, { reference });
    const cache = driver.create();
    driver.feedTo(cache, 512);
    return Array.from({ length: cache.layers }, (_, layer) => [
      cache.hot(layer),
      ...Array.from({ length: cache.segmentsOf(layer) }, (_, s) => cache.block(layer, s)),
    ]);
  });
  expect(states[1]).toEqual(states[0]);
});
