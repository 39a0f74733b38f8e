import { describe, expect, it } from 'vitest';
import { adkvcOptions, concentration, profiledPolicy } from '../../src/cache/policies/adkvc.ts';
import { type CacheConfig, type CacheView, DEFAULT_CACHE, FRESH } from '../../src/cache/policy.ts';
import { createPolicy, ONE_SHOT_ONLY, POLICIES } from '../../src/cache/registry.ts';
import { averagePool, blockMean, maxPool } from '../../src/cache/relevance.ts';
import { DROP, tierNamed } from '../../src/kernels/layout.ts';
import { SHAPE } from '../helpers/cache-driver.ts';

const MASS_ONE = 2 ** 9;
const HEADS = SHAPE.layers * SHAPE.kvHeads;
const TOKENS = 120;

/** One segment that has left the window, with the mass that `massOf` gives each token of each head. */
const view = (massOf: (head: number, token: number) => number): CacheView => ({
  ...{ layers: SHAPE.layers, kvHeads: SHAPE.kvHeads, headDim: SHAPE.headDim, position: 256, seed: 0 },
  segments: [
    {
      ...{ index: 0, start: 4, tokens: TOKENS, tiers: new Uint8Array(HEADS * TOKENS).fill(FRESH) },
      mass: Uint16Array.from({ length: HEADS * TOKENS }, (_, at) =>
        Math.round(MASS_ONE * massOf(Math.floor(at / TOKENS), at % TOKENS)),
      ),
    },
  ],
});
const config = (own: Partial<CacheConfig>): CacheConfig => ({ ...DEFAULT_CACHE, ...own });
const tiersOf = (own: Partial<CacheConfig>, seen: CacheView, recordBytes: number): Uint8Array =>
  createPolicy(config(own), SHAPE).plan(seen, { recordBytes }).tiers[0]!;

describe('relevance of a line of tokens', () => {
  it('pools, averages and shares it as worked out by hand', () => {
    const run = (f: (x: Float32Array) => void): number[] => {
      const x = Float32Array.of(0, 3, 0, 0, 6, 0, 0);
      f(x);
      return [...x];
    };
    expect(run((x) => maxPool(x, 3))).toEqual([3, 3, 3, 6, 6, 6, 0]);
    expect(run((x) => averagePool(x, 3))).toEqual([1, 1, 1, 2, 2, 2, 0]);
    expect(run((x) => blockMean(x, 3))).toEqual([1, 1, 1, 2, 2, 2, 0]);
  });
  it('is concentrated where few tokens have it all, and not where all have the same', () => {
    const even = new Float32Array(100).fill(2);
    const peak = new Float32Array(100);
    peak[7] = 5;
    expect(concentration(even)).toBeCloseTo(0.05 ** 1.5, 6);
    expect(concentration(peak)).toBe(1);
    expect(concentration(new Float32Array(100))).toBeGreaterThan(0);
  });
});

describe('fields of a configuration', () => {
  const seen = view((_, token) => (token === 40 ? 20 : 0.05));
  it('tiers: no others are given', () => {
    const given = new Set(tiersOf({ tiers: '4,4 2,2' }, seen, 1e9));
    expect([...given]).toEqual([tierNamed('4,4')]);
    const tight = new Set(tiersOf({ tiers: '4,4 2,2' }, seen, 1));
    expect([...tight]).toEqual([tierNamed('2,2')]);
  });
  it('pool: neighbours of a looked-up token are held like it, and alone where it is 1', () => {
    const kept = (pool: number): number[] => {
      // Room for a few tokens of each head.
      const tiers = tiersOf({ policy: 'adkvc-evict', pool, floor: 0 }, seen, 16_000);
      return [38, 39, 40, 41, 42].filter((token) => tiers[token] !== DROP);
    };
    expect(kept(5)).toEqual([38, 39, 40, 41, 42]);
    expect(kept(1)).toContain(40);
  });
  it('block: tokens of a block get one tier', () => {
    const tiers = tiersOf({ policy: 'adkvc-fixed', pool: 1, block: 8, floor: 0 }, seen, 1e9);
    for (let from = 0; from < TOKENS; from += 8) expect(new Set(tiers.subarray(from, from + 8)).size).toBe(1);
    expect(tiers[40]).toBeLessThan(tiers[0]!);
  });
  it('floor: without one a token that nobody looked at is held as badly as can be', () => {
    const one = view((_, token) => (token === 40 ? 20 : 0));
    const tier = (floor: number): number => tiersOf({ policy: 'adkvc-fixed', pool: 1, floor }, one, 1e9)[0]!;
    expect(tier(0)).toBeGreaterThan(tier(10));
  });
  it('high and mid: thresholds of adkvc-fixed', () => {
    const low = tiersOf({ policy: 'adkvc-fixed', high: 1e-6, mid: 1e-6 }, seen, 1e9);
    expect(new Set(low)).toEqual(new Set([tierNamed('8,8')]));
  });
  it('tracker: what it needs of the kernels and how it reads it', () => {
    const needs = (own: Partial<CacheConfig>) => createPolicy(config(own), SHAPE).needs.mass;
    expect(needs({})).toEqual({ decay: 0.8, unit: 2048 });
    expect(needs({ decay: 0.5 })).toEqual({ decay: 0.5, unit: 2048 });
    expect(needs({ tracker: 'mean' })).toEqual({ decay: 1, unit: 256 });
    expect(needs({ tracker: 'last-window', lastQueries: 8 })).toEqual({
      decay: 0,
      lastQueries: 8,
      unit: 512,
    });
    expect(needs({ tracker: 'max' })).toEqual({ decay: 1, unit: 65535, mode: 'max' });
    const early = (tracker: 'sum' | 'mean'): number[] => [
      ...adkvcOptions(config({ tracker }))
        .tracker.read(view(() => 1))[0]!
        .subarray(0, 2),
    ];
    expect(early('sum')).toEqual([MASS_ONE, MASS_ONE]);
    const [first, second] = early('mean') as [number, number];
    expect(first).toBeCloseTo(MASS_ONE / 252, 2);
    expect(second).toBeCloseTo(MASS_ONE / 251, 2);
  });
  it.each([
    [{ floor: -1 }, /floor must be a number from 0/],
    [{ pool: 4 }, /pool must be an odd number/],
    [{ block: 0 }, /block must be a whole number/],
    [{ decay: 2 }, /decay must be/],
    [{ lastQueries: 500 }, /lastQueries must be/],
    [{ tracker: 'newest' }, /tracker must be one of ema/],
    [{ tiers: '9,9' }, /tiers names "9,9": use 8,8/],
    [{ tiers: '2,2 8,8' }, /from the finest to the coarsest/],
    [{ policy: 'adkvc-fixed', high: 1, mid: 2 }, /mid not above high/],
  ])('refuses %j', (own, message) => {
    expect(() => createPolicy(config({ policy: 'adkvc', ...own } as Partial<CacheConfig>), SHAPE)).toThrow(
      message,
    );
  });
  it('every policy can be made from the default configuration', () => {
    for (const policy of Object.keys(POLICIES))
      expect(
        createPolicy(config({ policy, ...(ONE_SHOT_ONLY.has(policy) ? { oneShot: 500 } : {}) }), SHAPE).name,
      ).toBe(policy);
  });
});

describe('without a profile', () => {
  it('heads whose attention is concentrated are held better, unless the configuration says no', () => {
    // Head 1 looks at few tokens, the others at all alike; as much in all.
    const seen = view((head, token) => (head === 1 ? (token % 30 === 0 ? 30 : 0) : 1));
    const meanTier = (estimate: boolean, head: number): number => {
      const own = config({ estimate, floor: 1 });
      const policy = profiledPolicy({ name: 'adkvc', ...adkvcOptions(own) }, SHAPE, undefined);
      const tiers = policy.plan(seen, { recordBytes: 12_000 }).tiers[0]!;
      return tiers.subarray(head * TOKENS, (head + 1) * TOKENS).reduce((a, b) => a + b, 0) / TOKENS;
    };
    expect(meanTier(true, 1)).toBeLessThan(meanTier(false, 1));
    expect(meanTier(true, 0)).toBeGreaterThanOrEqual(meanTier(false, 0));
  });
});
