import { afterAll, describe, expect, it } from 'vitest';
import { exactMassAt } from '../../src/kernels/layout.ts';
import { cacheReference } from '../../src/kernels/reference-cache.ts';
import { subgroupsOf } from '../../src/kernels/webgpu.ts';
import { openWebGpuInNode } from '../../src/kernels/webgpu-node.ts';
import { isStageable, type StagedDivision, stagedDivision } from '../../src/kernels/webgpu-staged.ts';
import { plainArena } from '../helpers/plain-memory.ts';
import { attendTruth, largestDifference, MASS_UNIT, massesOf } from './attend-truth.ts';
import { ATTEND_CASES, buildCache, type CacheCase } from './cache-cases.ts';
import { attendOnDevice } from './webgpu-run.ts';

/** 15-bit queries, and weights of 15 bits relative to a bound that the largest stays up to 3 bits below: scores move by about 1e-4. */
const TOLERANCE = 4e-4;
/** Float cells alone: sums of unit-variance values over at most 400 cells, in another order, and the device's own exp (3 + 2 |x| ulp in WGSL). */
const FLOAT_TOLERANCE = 5e-6;
const toleranceOf = (c: CacheCase): number =>
  /^(tier )?f(16|32)|exact/.test(c.name) ? FLOAT_TOLERANCE : TOLERANCE;

const alive = setInterval(() => {}, 1000);
const device = await openWebGpuInNode();
const subgroups = subgroupsOf(device);
afterAll(() => {
  device.destroy();
  clearInterval(alive);
});

const wide = (headDim: number, heads: number): CacheCase => ({
  ...ATTEND_CASES.find((c) => c.name === 'mixed tiers, odd segments')!,
  ...{ name: `mixed tiers, head dimension ${headDim}`, heads, kvHeads: 2, headDim, rows: 3 },
});
/** Plain tiers are for comparisons on a CPU: no shader reads them. */
const CASES = [
  ...ATTEND_CASES.filter((c) => isStageable(c) && !/q8_0|q4_0|plain/.test(c.name)),
  wide(32, 8),
  wide(128, 4),
];
const widest = stagedDivision(device.limits, { heads: 9, kvHeads: 3, headDim: 64 });
const DIVISIONS: { name: string; division: StagedDivision; cases: readonly CacheCase[] }[] = [
  { name: 'whole records', division: widest, cases: CASES },
  {
    name: 'records longer than the stage, the next under way',
    division: { warps: 2, replicas: 1, vectors: 64, prefetch: true },
    cases: CASES.filter((c) => c.name.startsWith('mixed')),
  },
];
const setUp = (c: CacheCase) => {
  const arena = plainArena(6e6);
  const kernels = cacheReference(arena);
  return { arena, kernels, built: buildCache(kernels, arena, c, true) };
};

describe.each(DIVISIONS)(`staged attend (webgpu, subgroups ${subgroups}): $name`, ({ division, cases }) => {
  it.each(cases)(
    `$name: within ${TOLERANCE} of float64 (${FLOAT_TOLERANCE} float cells alone), and its mass`,
    async (c) => {
      const { arena, kernels, built } = setUp(c);
      const ran = await attendOnDevice(device, arena, c, built, { subgroups, staged: division, mass: true });
      const truth = attendTruth(kernels, arena, c, built);
      expect(largestDifference(ran.out, truth.out)).toBeLessThan(toleranceOf(c));
      const queries = c.rows * (c.heads / c.kvHeads);
      massesOf(ran.arena, c, built, (h) => exactMassAt(built.exact, h)).forEach((mass, h) => {
        mass.forEach((m, i) => {
          const expected = truth.mass[h]![i]!;
          expect(Math.abs(m - expected)).toBeLessThanOrEqual(expected * 2e-4 + queries);
          if (expected === 0) expect(m).toBe(0);
        });
        const sum = mass.reduce((a, b) => a + b, 0);
        expect(Math.abs(sum - queries * MASS_UNIT)).toBeLessThanOrEqual(
          (queries * mass.length) / 2 + queries * 8,
        );
      });
    },
  );
});

it('a row has the same bits alone and among others', async () => {
  const c = CASES.find(({ name }) => name === 'mixed tiers, odd segments')!;
  const { arena, built } = setUp(c);
  const all = await attendOnDevice(device, arena, c, built, { subgroups, staged: widest });
  const width = c.heads * c.headDim;
  for (const row of [0, 11]) {
    const alone = await attendOnDevice(device, arena, c, built, {
      ...{ subgroups, staged: widest, from: row, rows: 1 },
    });
    expect(alone.out).toEqual(all.out.slice(row * width, (row + 1) * width));
  }
});
