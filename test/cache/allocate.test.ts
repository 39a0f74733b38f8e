import { expect, it } from 'vitest';
import { allocate, allocateSteps, planBytes } from '../../src/cache/allocate.ts';
import { hullThresholds } from '../../src/cache/hull.ts';
import { type CacheView, FRESH } from '../../src/cache/policy.ts';
import { uniform01 } from '../../src/core/random.ts';
import {
  cellBytes,
  DROP,
  RecordSizes,
  recordBytes,
  recordCells,
  tierNamed,
} from '../../src/kernels/layout.ts';

const TIERS = [...['8,8', '8,4', '4,4', '3,2'].map(tierNamed), DROP];
const OPTIONS = TIERS.map((tier) => ({ tier, bytes: cellBytes(tier, 64, true) }));
const HEADS = 6;

/** Three segments; the first two hold tokens of all tiers, the last is fresh. */
function scene(seed: number) {
  const segments = [60, 128, 128].map((tokens, index) => ({
    index,
    start: index * 128,
    tokens,
    tiers: Uint8Array.from({ length: HEADS * tokens }, (_, i) =>
      index === 2 ? FRESH : TIERS[Math.floor(uniform01(seed, index, i) ** 2 * TIERS.length)]!,
    ),
    mass: undefined,
  }));
  const view: CacheView = { layers: 3, kvHeads: 2, headDim: 64, position: 384, segments, seed: 0 };
  const relevance = segments.map((s) =>
    Float32Array.from(s.tiers, (_, i) => Math.exp(6 * uniform01(seed, 9, s.index, i) - 3)),
  );
  const distortions = Array.from({ length: HEADS }, (_, h) =>
    [1e-4, 3e-4, 1e-3, 1e-2, 0.1].map((d) => d * 10 ** (h % 3)),
  );
  return { view, relevance, distortions, options: OPTIONS, mass: true };
}

/** As an allocation asks for it. */
const inputOf = ({ relevance, distortions, ...rest }: ReturnType<typeof scene>, budgetBytes: number) => ({
  ...rest,
  relevance: (line: Float32Array, head: number) => {
    let at = 0;
    for (const [s, { tokens }] of rest.view.segments.entries()) {
      line.set(relevance[s]!.subarray(head * tokens, (head + 1) * tokens), at);
      at += tokens;
    }
  },
  distortions: () => distortions,
  budgetBytes,
});

/** The plan of one lambda, token by token. */
function planAt(input: ReturnType<typeof scene>, lambda: number): Uint8Array[] {
  return input.view.segments.map((segment, s) =>
    segment.tiers.map((old, at) => {
      const limits = hullThresholds(OPTIONS, input.distortions[Math.floor(at / segment.tokens)]!);
      let i = 0;
      while (i < limits.length && Math.log(input.relevance[s]![at]!) - lambda < limits[i]!) i++;
      const tier = TIERS[i]!;
      return old === FRESH || tier > old ? tier : old;
    }),
  );
}

it.each([1, 2, 3])(
  'fills the budget with the plan of one lambda, and its groups by four (seed %d)',
  (seed) => {
    const input = scene(seed);
    const most = planBytes(input.view, { tiers: planAt(input, -60) }, true);
    const least = planBytes(input.view, { tiers: planAt(input, 60) }, true);
    for (const share of [0.9, 0.5, 0.2]) {
      const budgetBytes = least + (most - least) * share;
      const plan = allocate(inputOf(input, budgetBytes));
      const bytes = planBytes(input.view, plan, true);
      expect(bytes).toBeLessThanOrEqual(budgetBytes);
      expect(bytes).toBeGreaterThan(budgetBytes * 0.98);
      // Of the plans of single lambdas, the finest one that is nowhere finer than this plan, but for the tokens that filled groups.
      const lambda = Array.from({ length: 2400 }, (_, i) => -12 + i / 100).find((l) => {
        const fresh = planAt(input, l)[2]!;
        return plan.tiers[2]!.every((tier, at) => tier <= fresh[at]!);
      })!;
      const exact = planAt(input, lambda);
      plan.tiers.forEach((tiers, s) => {
        const { tokens, tiers: old } = input.view.segments[s]!;
        tiers.forEach((tier, at) => {
          expect(tier === old[at] || old[at] === FRESH || tier > old[at]!).toBe(true);
        });
        for (let head = 0; head < HEADS; head++) {
          const of = (x: Uint8Array) => x.subarray(head * tokens, (head + 1) * tokens);
          const finer = of(tiers).filter((tier, t) => tier < of(exact[s]!)[t]!).length;
          // A group lacks three tokens at most, and there are four groups that hold tokens.
          expect(finer).toBeLessThanOrEqual(3 * (TIERS.length - 1));
          if (s === 2)
            for (const tier of TIERS.slice(0, -1)) {
              const n = of(tiers).filter((t) => t === tier).length;
              const coarser = of(tiers).filter((t) => t > tier).length;
              expect(n % 4 === 0 || coarser === 0).toBe(true);
            }
        }
      });
    }
  },
);

it('leaves everything fine when the budget suffices, and all coarse when nothing does', () => {
  const input = scene(4);
  expect(allocate(inputOf(input, Number.POSITIVE_INFINITY)).tiers).toEqual(planAt(input, -60));
  expect(allocate(inputOf(input, 0)).tiers).toEqual(planAt(input, 60));
});

it('sizes records in a search as the layout does', () => {
  const lists = [TIERS, [...['q8_0', 'q4_0'].map(tierNamed), DROP], ['f16', '4,2', '2,1'].map(tierNamed)];
  for (const [list, tiers] of lists.entries())
    for (let seed = 0; seed < 200; seed++) {
      const headDim = [64, 16, 128][seed % 3]!;
      const sizes = new RecordSizes(tiers, headDim);
      // Often a tier holds nothing, and sometimes no tier does.
      const counts = tiers.map((_, i) =>
        Math.max(0, Math.floor(40 * uniform01(seed, list, i) - 15 * (seed % 4))),
      );
      const byTier = new Uint8Array(16);
      for (const [i, tier] of tiers.entries()) if (tier !== DROP) byTier[tier] = counts[i]!;
      const tokens = counts.reduce((a, b) => a + b, 0);
      expect(sizes.bytes(tokens, counts)).toBe(recordBytes(tokens, byTier, headDim));
      expect(sizes.cells).toBe(recordCells(byTier));
    }
});

it('yields a share of its work that rises to 1, whatever the budget', () => {
  const input = scene(5);
  for (const budgetBytes of [0, 3e4, 6e4, 9e4, Number.POSITIVE_INFINITY]) {
    const shares = [...allocateSteps(inputOf(input, budgetBytes))];
    expect(shares.every((share, i) => share >= (shares[i - 1] ?? 0))).toBe(true);
    expect(shares.at(-1)).toBeCloseTo(1, 9);
  }
});
