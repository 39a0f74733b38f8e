import { describe, expect, it } from 'vitest';
import { exactMassAt } from '../../src/kernels/layout.ts';
import { cacheReference } from '../../src/kernels/reference-cache.ts';
import { subgroupsOf } from '../../src/kernels/webgpu.ts';
import { plainArena } from '../helpers/plain-memory.ts';
import { testDevice } from '../helpers/webgpu.ts';
import { attendTruth, largestDifference, MASS_UNIT, massesOf, runAttend } from './attend-truth.ts';
import { ATTEND_CASES, buildCache, type CacheCase, normals, put } from './cache-cases.ts';
import { attendOnDevice } from './webgpu-run.ts';

/** float32 sums of unit-variance values over at most 400 cells, in another order than the reference, and the device's own exp (3 + 2 |x| ulp in WGSL). */
const TOLERANCE = 5e-6;

const device = await testDevice();
/** Subgroups of 32 are there on some devices only; the other way is everywhere. */
const WAYS = subgroupsOf(device) ? [{ subgroups: false }, { subgroups: true }] : [{ subgroups: false }];

const setUp = (c: CacheCase) => {
  const arena = plainArena(3e6);
  const kernels = cacheReference(arena);
  return { arena, kernels, built: buildCache(kernels, arena, c, true) };
};

describe.each(WAYS)('attend (webgpu, subgroups $subgroups)', ({ subgroups }) => {
  it.each(ATTEND_CASES)(`$name: within ${TOLERANCE} of float64, and its mass`, async (c) => {
    const { arena, kernels, built } = setUp(c);
    const ran = await attendOnDevice(device, arena, c, built, { subgroups, mass: true });
    const truth = attendTruth(kernels, arena, c, built);
    expect(largestDifference(ran.out, truth.out)).toBeLessThan(TOLERANCE);
    const queries = c.rows * (c.heads / c.kvHeads);
    massesOf(ran.arena, c, built, (h) => exactMassAt(built.exact, h)).forEach((mass, h) => {
      mass.forEach((m, i) => {
        const expected = truth.mass[h]![i]!;
        expect(Math.abs(m - expected)).toBeLessThanOrEqual(expected * 1e-5 + queries);
        if (expected === 0) expect(m).toBe(0);
      });
      const sum = mass.reduce((a, b) => a + b, 0);
      expect(Math.abs(sum - queries * MASS_UNIT)).toBeLessThanOrEqual(
        (queries * mass.length) / 2 + queries * 8,
      );
    });
  });
});

it('keeps the largest attention of any query where mass is told to, as the reference does', async () => {
  const c = ATTEND_CASES.find(({ name }) => name.startsWith('mixed'))!;
  const { arena, kernels, built } = setUp(c);
  const options = { mass: true, massMode: 'max' } as const;
  const ran = await attendOnDevice(device, arena, c, built, { ...WAYS.at(-1)!, ...options });
  runAttend(kernels, arena, c, built, { arithmetic: 'float', ...options });
  const massAt = (h: number): number => exactMassAt(built.exact, h);
  const expected = massesOf(arena, c, built, massAt);
  massesOf(ran.arena, c, built, massAt).forEach((mass, h) => {
    expect(Math.max(...mass)).toBeGreaterThan(0);
    mass.forEach((m, i) => {
      expect(Math.abs(m - expected[h]![i]!)).toBeLessThanOrEqual(1);
    });
  });
});

it.each([
  ['mixed', 3],
  ['mixed', 4],
  ['f32 exact', 129],
  ['plain', 5],
] as const)(
  'scores segments and the first exact slots by their own queries (%s, %i slots): within 5e-6 of the reference, and its mass',
  async (name, sinks) => {
    const c = ATTEND_CASES.find((x) => x.name.startsWith(name))!;
    const { arena, kernels, built } = setUp(c);
    const width = c.rows * c.heads * c.headDim;
    const queries = [77, 78, 79].map((seed) => put(arena, normals(width, seed, 1.2)));
    const segmentQueries = c.segments.map((_, s) => (s === 1 ? built.q : queries[Math.min(s, 1)]!));
    const gaps = { segmentQueries, sinkQueries: queries[2]!, sinks };
    const ran = await attendOnDevice(device, arena, c, built, { ...WAYS.at(-1)!, mass: true, gaps });
    const out = runAttend(kernels, arena, c, built, {
      ...{ ...gaps, arithmetic: 'float', mass: true },
      segmentQueries: segmentQueries.length > 0 ? put(arena, Uint32Array.from(segmentQueries)) : 0,
    });
    expect(largestDifference(ran.out, out)).toBeLessThan(TOLERANCE);
    const massAt = (h: number): number => exactMassAt(built.exact, h);
    const expected = massesOf(arena, c, built, massAt);
    massesOf(ran.arena, c, built, massAt).forEach((mass, h) => {
      mass.forEach((m, i) => {
        // Every query may be rounded the other way.
        expect(Math.abs(m - expected[h]![i]!)).toBeLessThanOrEqual(2);
      });
    });
  },
);
