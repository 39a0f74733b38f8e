import { expect, it } from 'vitest';
import { MIN_BUDGET_TOKENS } from '../../src/cache/cache.ts';
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
