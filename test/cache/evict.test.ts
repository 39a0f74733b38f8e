import { describe, expect, it } from 'vitest';
import type { KvCache } from '../../src/cache/cache.ts';
import { layerCounts } from '../../src/cache/policies/dynamickv.ts';
import { fp16BytesPerToken } from '../../src/core/config.ts';
import { DROP } from '../../src/kernels/layout.ts';
import { cacheDriver, SHAPE } from '../helpers/cache-driver.ts';

/** Positions that a head still has, beyond sinks and window. */
function kept(cache: KvCache, layer: number, kvHead: number): number[] {
  return cache.spans.flatMap((span, s) => {
    const tiers = new Uint8Array(span.tokens);
    cache.reader(cache.blocks[layer]![s]!).tiers(kvHead, tiers, 0);
    return [...tiers].flatMap((tier, i) => (tier === DROP ? [] : [span.start + i]));
  });
}
const run = (policy: string, seed = 0, ratio = 4): KvCache => {
  const driver = cacheDriver({ policy, ratio, seed });
  const cache = driver.create();
  driver.feedTo(cache, 1280);
  cache.finish();
  return cache;
};
const HEADS = [
  [0, 0],
  [0, 1],
  [1, 0],
  [1, 1],
] as const;

describe.each(['random', 'h2o', 'snapkv', 'tova', 'pyramidkv', 'dynamickv', 'adkvc-evict'])(
  '%s',
  (policy) => {
    it('keeps to its byte budget, and fills it', () => {
      const cache = run(policy);
      const budget = (1280 * fp16BytesPerToken(SHAPE)) / 4;
      expect(cache.bytes).toBeLessThanOrEqual(budget);
      expect(cache.bytes).toBeGreaterThan(budget * 0.95);
    });
  },
);

it('random: other seeds and other heads keep other tokens, the same seed the same', () => {
  const lists = [0, 1, 2].flatMap((seed) => {
    const cache = run('random', seed);
    return HEADS.map(([l, h]) => kept(cache, l, h).join());
  });
  expect(new Set(lists).size).toBe(12);
  const again = run('random', 1);
  expect(kept(again, 1, 1).join()).toBe(lists[7]);
});

it.each([
  ['h2o', 0, 0.6],
  ['adkvc-evict', 0, 0.6],
] as const)('%s keeps what queries look for', (policy, reach, share) => {
  // Every 7th key is looked for.
  const cache = run(policy);
  for (const [l, h] of HEADS) {
    const positions = kept(cache, l, h).filter((p) => p < 1000);
    const near = positions.filter((p) => Math.min(p % 7, 7 - (p % 7)) <= reach);
    expect(near.length).toBeGreaterThan(positions.length * share);
  }
});

it('h2o keeps the most recent half without a gap', () => {
  const cache = run('h2o');
  for (const [l, h] of HEADS) {
    const positions = kept(cache, l, h);
    let run_ = 0;
    for (let p = 1280 - 64 - 1; positions.includes(p); p--) run_++;
    expect(run_ + 64).toBeGreaterThan((positions.length + 68) * 0.4);
  }
});

it('tova keeps the same tokens for every head of a layer, and not of another', () => {
  const cache = run('tova');
  expect(kept(cache, 0, 0)).toEqual(kept(cache, 0, 1));
  expect(kept(cache, 1, 0)).toEqual(kept(cache, 1, 1));
  expect(kept(cache, 0, 0)).not.toEqual(kept(cache, 1, 0));
});

it('snapkv and tova go by the last queries: what is kept does not depend on chunks that split them', () => {
  for (const policy of ['snapkv', 'tova', 'dynamickv']) {
    const lists = [128, 100, 1].map((chunk) => {
      const driver = cacheDriver({ policy, ratio: 4 });
      const cache = driver.create();
      driver.feedTo(cache, 640, chunk);
      cache.finish();
      return HEADS.map(([l, h]) => kept(cache, l, h));
    });
    expect(lists[1]).toEqual(lists[0]);
    expect(lists[2]).toEqual(lists[0]);
  }
});

it('pyramidkv gives the first layer far more than the last', () => {
  const cache = run('pyramidkv');
  const counts = HEADS.map(([l, h]) => kept(cache, l, h).length);
  expect(counts[0]).toBe(counts[1]);
  expect(counts[0]!).toBeGreaterThan(10 * counts[2]!);
});

describe('layerCounts', () => {
  const falling = (n: number, from: number): Float32Array =>
    Float32Array.from({ length: n }, (_, i) => from - i);
  it('counts the best of all layers together', () => {
    // Of the 8 best numbers 5 are layer 0's (20 ... 16), 3 layer 1's (18, 17, 16 tie: none beyond the budget).
    expect(layerCounts([falling(10, 20), falling(10, 18)], 4)).toEqual([5, 3]);
  });
  it('never exceeds the budget and leaves all when it suffices', () => {
    expect(layerCounts([falling(3, 5), falling(3, 5)], 10)).toEqual([3, 3]);
    const counts = layerCounts(
      Array.from({ length: 9 }, (_, l) => falling(50, 100 - 5 * l)),
      10,
    );
    expect(counts.reduce((a, b) => a + b)).toBeLessThanOrEqual(90);
    expect(counts[0]!).toBeGreaterThan(counts[8]!);
  });
});

describe('forms of adkvc', () => {
  const tiersOf = (policy: string, ratio: number): Readonly<Record<string, number>> =>
    run(policy, 0, ratio).report().tiers;
  it('quantisation alone drops nothing, eviction alone quantises nothing, fixed thresholds have three steps', () => {
    expect(tiersOf('adkvc-quantize', 3).drop).toBeUndefined();
    expect(Object.keys(tiersOf('adkvc-evict', 3)).sort()).toEqual(['drop', 'exact', 'f16']);
    expect(Object.keys(tiersOf('adkvc-fixed', 3)).sort()).toEqual(['2,2', '4,4', '8,8', 'exact']);
  });
  it('adapted thresholds meet the budget with the same steps', () => {
    const cache = run('adkvc-adapted', 0, 5);
    const budget = (1280 * fp16BytesPerToken(SHAPE)) / 5;
    expect(cache.bytes).toBeLessThanOrEqual(budget);
    expect(cache.bytes).toBeGreaterThan(budget * 0.95);
    expect(
      Object.keys(cache.report().tiers).every((t) => ['2,2', '4,4', '8,8', 'exact', 'drop'].includes(t)),
    ).toBe(true);
  });
});
