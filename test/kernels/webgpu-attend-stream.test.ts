import { describe, expect, it } from 'vitest';
import { exactMassAt } from '../../src/kernels/layout.ts';
import { cacheReference } from '../../src/kernels/reference-cache.ts';
import { subgroupsOf } from '../../src/kernels/webgpu.ts';
import { isStreamable, type StreamDivision } from '../../src/kernels/webgpu-attend-stream.ts';
import { plainArena } from '../helpers/plain-memory.ts';
import { testDevice } from '../helpers/webgpu.ts';
import { attendTruth, largestDifference, MASS_UNIT, massesOf } from './attend-truth.ts';
import { ATTEND_CASES, buildCache, type CacheCase, isPlain } from './cache-cases.ts';
import { attendOnDevice } from './webgpu-run.ts';

/** As of WebAssembly's kernels, which multiply so, too (attend.test.ts), but for their bound of codes of 1 to 4 bits, which is 5e-2. */
const FLOAT_TOLERANCE = 5e-6;
const FINE_TOLERANCE = 2e-4;
const COARSE_TOLERANCE = 2e-2;
const toleranceOf = ({ name }: CacheCase): number =>
  /^(tier )?f(16|32)|exact/.test(name)
    ? FLOAT_TOLERANCE
    : name === 'tier 8,8'
      ? FINE_TOLERANCE
      : COARSE_TOLERANCE;

const device = await testDevice();
const subgroups = subgroupsOf(device);

const mixed = ATTEND_CASES.find((c) => c.name === 'mixed tiers, odd segments')!;
const wide: CacheCase = {
  ...mixed,
  ...{ name: 'mixed tiers, head dimension 128', heads: 4, kvHeads: 2, headDim: 128, rows: 3 },
};
/** Plain tiers are for comparisons: this kernel reads none. */
const CASES = ATTEND_CASES.filter((c) => isStreamable(c) && !isPlain(c));
const NARROW: StreamDivision = { warps: 2, segments: 4 };
const DIVISIONS: { name: string; stream: StreamDivision; cases: readonly CacheCase[] }[] = [
  { name: '2 warps', stream: NARROW, cases: CASES },
  { name: '4 warps', stream: { warps: 4, segments: 2 }, cases: [wide] },
];
const setUp = (c: CacheCase) => {
  const arena = plainArena(6e6);
  const kernels = cacheReference(arena);
  return { arena, kernels, built: buildCache(kernels, arena, c, true) };
};

const run = (
  c: CacheCase,
  stream: StreamDivision,
  set: ReturnType<typeof setUp>,
  rows?: { from: number; rows: number },
) =>
  attendOnDevice(device, set.arena, c, set.built, {
    ...{ subgroups, stream, segmentsPerSplit: stream.segments, mass: true },
    ...rows,
  });

describe.each(DIVISIONS)(
  `attend, a stream of blocks (webgpu, subgroups ${subgroups}): $name`,
  ({ stream, cases }) => {
    it.each(cases.map((c) => ({ ...c, tolerance: toleranceOf(c) })))(
      '$name: within $tolerance of float64, and its mass',
      async ({ tolerance, ...c }) => {
        const set = setUp(c);
        const ran = await run(c, stream, set);
        const truth = attendTruth(set.kernels, set.arena, c, set.built);
        expect(largestDifference(ran.out, truth.out)).toBeLessThan(tolerance);
        const queries = c.rows * (c.heads / c.kvHeads);
        massesOf(ran.arena, c, set.built, (h) => exactMassAt(set.built.exact, h)).forEach((mass, h) => {
          mass.forEach((m, i) => {
            const expected = truth.mass[h]![i]!;
            expect(Math.abs(m - expected)).toBeLessThanOrEqual(
              expected * Math.max(1e-5, tolerance) + queries,
            );
            if (expected === 0) expect(m).toBe(0);
          });
          const sum = mass.reduce((a, b) => a + b, 0);
          expect(Math.abs(sum - queries * MASS_UNIT)).toBeLessThanOrEqual(
            (queries * mass.length) / 2 + queries * 8,
          );
        });
      },
    );
  },
);

it('a row has the same bits alone and among others', async () => {
  const set = setUp(mixed);
  const all = await run(mixed, NARROW, set);
  const width = mixed.heads * mixed.headDim;
  for (const row of [0, 11]) {
    const alone = await run(mixed, NARROW, set, { from: row, rows: 1 });
    expect(alone.out).toEqual(all.out.slice(row * width, (row + 1) * width));
  }
});
