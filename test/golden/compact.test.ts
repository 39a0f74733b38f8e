import { beforeAll, expect, it } from 'vitest';
import { DEFAULT_CACHE } from '../../src/cache/policy.ts';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { golden, score } from '../helpers/golden.ts';
import { describeShared } from '../helpers/shared.ts';
import { smollm } from '../helpers/smollm.ts';

/** What the compact weights and int8 activations may cost together. */
const PERPLEXITY_LIMIT = 0.01;
/** What the default compression may cost on top, at the ratio given. */
const COMPRESSED_LIMIT = 0.025;
const ITEMS = [
  'pg19-test-5770-2048',
  'pg19-test-33426-2048',
  'wikitext2-test-raw-chunk0',
  'wikitext2-test-raw-chunk1',
];

describeShared('the default form on the golden texts', () => {
  let engine: ModelEngine;
  beforeAll(async () => {
    engine = await smollm('compact');
  });

  const change = async (config: typeof DEFAULT_CACHE, names: readonly string[]): Promise<number> => {
    let sum = 0;
    let expected = 0;
    let count = 0;
    for (const item of golden('perplexity.json').items) {
      if (!names.includes(item.name)) continue;
      const { nll } = await score(engine, config, item.ids);
      sum += nll.reduce((a, b) => a + b, 0);
      expected += item.nll_sum;
      count += nll.length;
    }
    expect(count).toBe(names.length * 2047);
    return Math.exp((sum - expected) / count) - 1;
  };

  it(`costs at most ${PERPLEXITY_LIMIT * 100} % perplexity with an uncompressed cache (four texts of 2,048 tokens)`, {
    timeout: 900_000,
  }, async () => {
    const cost = await change({ ...DEFAULT_CACHE, policy: 'full' }, ITEMS);
    expect(cost).toBeLessThan(PERPLEXITY_LIMIT);
    expect(cost).toBeGreaterThan(-PERPLEXITY_LIMIT);
  });

  it(`costs at most ${COMPRESSED_LIMIT * 100} % with the default policy at a ratio of 4`, {
    timeout: 900_000,
  }, async () => {
    const cost = await change({ ...DEFAULT_CACHE, policy: 'adkvc', ratio: 4 }, ITEMS.slice(1, 3));
    expect(cost).toBeLessThan(COMPRESSED_LIMIT);
  });
});
