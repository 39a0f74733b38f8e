import { describe, expect, it } from 'vitest';
import { WORKSPACE_LIMIT } from '../../src/kernels/attend-workspace.ts';
import { massDither, nearest } from '../../src/kernels/cache-math.ts';
import { DROP, exactMassAt, massBytes, TIERS } from '../../src/kernels/layout.ts';
import { attendTruth, largestDifference, MASS_UNIT, massesOf, runAttend } from './attend-truth.ts';
import { ATTEND_CASES, buildCache, type CacheCase, normals, put, u16At } from './cache-cases.ts';
import { CACHE_IMPLEMENTATIONS, type CacheImplementation } from './cache-implementations.ts';

/** float32 sums of unit-variance values over at most 400 cells, and an exp of 1.2e-7. */
const FLOAT_TOLERANCE = 2e-6;
/** 15-bit queries (relative to their largest channel) and 15-bit weights (relative to their group's largest): scores move by about 1e-4. */
const FINE_TOLERANCE = 2e-4;
/**
 * Cells of 1 to 4 bits meet queries of 8 bits (a channel moves by 1/254 of the largest) and weights of 7 (by 1/130 of the record's largest), which is far
 * below what their own codes lose: rms 0.1 of these values at 4 bits, 0.6 at 1.
 */
const COARSE_TOLERANCE = 5e-2;
const coarse = (c: CacheCase): boolean =>
  c.segments.some(({ tokens, tier }) =>
    Array.from({ length: c.kvHeads * tokens }, (_, i) => tier(i % c.kvHeads, Math.floor(i / c.kvHeads))).some(
      (id) => id !== DROP && !TIERS[id]!.plain && Math.min(TIERS[id]!.kBits, TIERS[id]!.vBits) <= 4,
    ),
  );

const setUp = (make: CacheImplementation['make'], c: CacheCase, mass = true) => {
  const { arena, kernels } = make();
  return { arena, kernels, built: buildCache(kernels, arena, c, mass) };
};

describe('dither of attention mass', () => {
  it('adds to its expectation within 2 units over any 300 consecutive queries, and nothing to an unattended cell', () => {
    for (const start of [0, 12345, 9 * 8191, 2 ** 31 - 150])
      for (const p of [0, 0.001, 0.03, 0.5, 0.77, 3.25]) {
        let sum = 0;
        for (let i = start; i < start + 300; i++) sum += nearest(p + massDither(i));
        if (p === 0) expect(sum).toBe(0);
        expect(Math.abs(sum - 300 * p)).toBeLessThan(2);
      }
  });
});

describe.each(CACHE_IMPLEMENTATIONS)('attend ($name)', ({ make }) => {
  it.each(ATTEND_CASES.map((c) => ({ ...c, tolerance: coarse(c) ? COARSE_TOLERANCE : FINE_TOLERANCE })))(
    `$name: within ${FLOAT_TOLERANCE} (float) and $tolerance (integer) of float64`,
    (c) => {
      const { arena, kernels, built } = setUp(make, c);
      const truth = attendTruth(kernels, arena, c, built);
      const float = runAttend(kernels, arena, c, built, { arithmetic: 'float' });
      expect(largestDifference(float, truth.out)).toBeLessThan(FLOAT_TOLERANCE);
      const integer = runAttend(kernels, arena, c, built, { arithmetic: 'integer', mass: true });
      expect(largestDifference(integer, truth.out)).toBeLessThan(c.tolerance);

      const masses = massesOf(arena, c, built, (h) => exactMassAt(built.exact, h));
      const queries = c.rows * (c.heads / c.kvHeads);
      masses.forEach((mass, h) => {
        // A query's weight moves by as much relative at most; each of its summands rounds up or down, as its dither says.
        mass.forEach((m, i) => {
          const expected = truth.mass[h]![i]!;
          expect(Math.abs(m - expected)).toBeLessThanOrEqual(expected * c.tolerance + queries);
          if (expected === 0) expect(m).toBe(0);
        });
        const sum = mass.reduce((a, b) => a + b, 0);
        expect(Math.abs(sum - queries * MASS_UNIT)).toBeLessThanOrEqual((queries * mass.length) / 2);
      });
    },
  );

  it.each(ATTEND_CASES.filter((c) => c.rows > 1))(
    '$name: a row alone gives the bits and the mass that it gives in company',
    (c) => {
      for (const arithmetic of ['integer', 'float'] as const) {
        const together = setUp(make, c);
        const alone = setUp(make, c);
        const all = runAttend(together.kernels, together.arena, c, together.built, {
          arithmetic,
          mass: true,
        });
        const width = c.heads * c.headDim;
        for (let row = 0; row < c.rows; row++) {
          const one = runAttend(alone.kernels, alone.arena, c, alone.built, {
            arithmetic,
            mass: true,
            from: row,
            rows: 1,
          });
          expect(new Uint32Array(one.buffer)).toEqual(new Uint32Array(all.buffer, row * width * 4, width));
        }
        const massAt = (built: (typeof together)['built']) => (h: number) => exactMassAt(built.exact, h);
        expect(massesOf(alone.arena, c, alone.built, massAt(alone.built))).toEqual(
          massesOf(together.arena, c, together.built, massAt(together.built)),
        );
      }
    },
  );

  it('rounds small weights up as often as down: over 64 positions the mean output is ten times as near', () => {
    // Keys of 8 bits, so that scores are fine and the weights of values alone are coarse.
    const c = ATTEND_CASES.find((x) => x.name === 'tier 8,4')!;
    const { arena, kernels, built } = setUp(make, c);
    const truth = attendTruth(kernels, arena, c, built).out;
    const mean = new Float64Array(truth.length);
    let single = 0;
    for (let position = 0; position < 64; position++) {
      const out = runAttend(kernels, arena, c, built, { arithmetic: 'integer', position });
      single = Math.max(single, largestDifference(out, truth));
      for (const [i, x] of out.entries()) mean[i]! += x / 64;
    }
    expect(single).toBeGreaterThan(FINE_TOLERANCE);
    expect(largestDifference(Float32Array.from(mean), truth)).toBeLessThan(single / 10);
  });

  it('writes its output, its workspace and, if asked, mass, and nothing else', () => {
    const c = ATTEND_CASES.find((x) => x.name.startsWith('mixed'))!;
    for (const mass of [false, true]) {
      const { arena, kernels, built } = setUp(make, c);
      const before = new Uint8Array(arena.memory.buffer).slice();
      runAttend(kernels, arena, c, built, { arithmetic: 'integer', mass });
      const after = new Uint8Array(arena.memory.buffer);
      // runAttend's two blocks lie at the end of what is allocated.
      const end = arena.ptr(arena.alloc(16));
      let changed = 0;
      const own = (at: number): boolean =>
        built.records.some((of) => of.some((r) => at >= r.mass && at < r.mass + r.cells * 2)) ||
        (at >= built.exact.ptr + exactMassAt(built.exact, 0) &&
          at < built.exact.ptr + exactMassAt(built.exact, c.kvHeads - 1) + massBytes(built.exact.capacity));
      for (let i = arena.staticBytes; i < end; i++) {
        if (before[i] === after[i]) continue;
        changed++;
        expect(mass && own(i), `byte ${i}`).toBe(true);
      }
      expect(changed > 0).toBe(mass);
      // Nothing past the two blocks and the workspace was touched.
      expect(after.subarray(end + 4_000_000).every((b) => b === 0xff)).toBe(true);
    }
  });

  it('saturates mass instead of wrapping', () => {
    const c = ATTEND_CASES.find((x) => x.name === 'tier 4,4')!;
    const { arena, kernels, built } = setUp(make, c);
    const { mass, cells } = built.records[0]![1]!;
    u16At(arena, mass, cells).fill(0xffff);
    runAttend(kernels, arena, c, built, { arithmetic: 'integer', mass: true });
    expect([...u16At(arena, mass, cells)]).toEqual(Array(cells).fill(0xffff));
  });

  it('keeps the largest attention of any query where mass is told to', () => {
    const c = ATTEND_CASES.find((x) => x.name.startsWith('mixed'))!;
    const massOf = (rows: readonly number[]) => {
      const { arena, kernels, built } = setUp(make, c);
      const options = { arithmetic: 'integer', mass: true, massMode: 'max' } as const;
      for (const from of rows) runAttend(kernels, arena, c, built, { ...options, from, rows: 1 });
      if (rows.length === 0) runAttend(kernels, arena, c, built, options);
      return massesOf(arena, c, built, (h) => exactMassAt(built.exact, h));
    };
    const all = massOf([]);
    const [first, second] = [massOf([3]), massOf([20])];
    expect(massOf([20, 3])).toEqual(first.map((m, h) => m.map((x, i) => Math.max(x, second[h]![i]!))));
    expect(massOf(Array.from({ length: c.rows }, (_, row) => row))).toEqual(all);
    // Each row's softmax sums to one: some cell holds at least its even share.
    all.forEach((m) => {
      expect(Math.max(...m)).toBeGreaterThanOrEqual(Math.round(MASS_UNIT / m.length));
      expect(Math.max(...m)).toBeLessThanOrEqual(MASS_UNIT);
    });
  });

  it('scores each segment by its own queries', () => {
    const c = ATTEND_CASES.find((x) => x.name.startsWith('mixed'))!;
    const { arena, kernels, built } = setUp(make, c);
    const width = c.rows * c.heads * c.headDim;
    const others = put(arena, normals(width, 77, 1.2));
    const same = put(arena, new Float32Array(arena.memory.buffer, built.q, width).slice());
    for (const arithmetic of ['integer', 'float'] as const) {
      const run = (queries: readonly number[]) =>
        runAttend(kernels, arena, c, built, {
          arithmetic,
          segmentQueries: put(arena, Uint32Array.from(queries)),
        });
      const plain = runAttend(kernels, arena, c, built, { arithmetic });
      expect(run([0, 0, 0, 0])).toEqual(plain);
      expect(run([same, 0, same, same])).toEqual(plain);
      expect(run([0, others, others, 0])).not.toEqual(plain);
      // A segment alone beside the exact part, scored by other queries, against float64.
      const only: CacheCase = { ...c, segments: c.segments.slice(3) };
      const alone = {
        ...built,
        segments: built.segments + 12,
        segmentCount: 1,
        records: built.records.slice(3),
      };
      const truth = attendTruth(kernels, arena, only, alone, [others]);
      const segmentQueries = put(arena, Uint32Array.of(others));
      const out = runAttend(kernels, arena, only, alone, { arithmetic, segmentQueries });
      const tolerance = arithmetic === 'float' ? FLOAT_TOLERANCE : COARSE_TOLERANCE;
      expect(largestDifference(out, truth.out)).toBeLessThan(tolerance);
    }
  });

  it('scores the first exact slots by their own queries', () => {
    const c = ATTEND_CASES.find((x) => x.name.startsWith('mixed'))!;
    const { arena, kernels, built } = setUp(make, c);
    const width = c.rows * c.heads * c.headDim;
    const others = put(arena, normals(width, 77, 1.2));
    const same = put(arena, new Float32Array(arena.memory.buffer, built.q, width).slice());
    const run = (sinkQueries: number, sinks: number) =>
      runAttend(kernels, arena, c, built, { arithmetic: 'integer', sinkQueries, sinks });
    const plain = run(0, 0);
    const four = run(others, 4);
    expect(run(0, 4)).toEqual(plain);
    expect(run(others, 0)).toEqual(plain);
    for (const sinks of [1, 3, 4, 7]) expect(run(same, sinks)).toEqual(plain);
    expect(four).not.toEqual(plain);
    expect(run(others, 3)).not.toEqual(four);
    // Sinks alone, scored by the others: what these queries alone give.
    const none = { ...built, segmentCount: 0 };
    const few: CacheCase = { ...c, visible: 3, rows: 1 };
    const asked = (options: { sinkQueries?: number; sinks?: number }, q: number) =>
      runAttend(kernels, arena, few, { ...none, q }, { arithmetic: 'integer', ...options });
    expect(asked({ sinkQueries: others, sinks: 3 }, built.q)).toEqual(asked({}, others));
  });

  it('gives the same bits whatever the tile', () => {
    const c = ATTEND_CASES.find((x) => x.name.startsWith('mixed'))!;
    const { arena, kernels, built } = setUp(make, c);
    const shape = { heads: c.heads, kvHeads: c.kvHeads, headDim: c.headDim, cells: built.cells };
    const whole = runAttend(kernels, arena, c, built, { arithmetic: 'integer' });
    const oneRow = kernels.attendWorkspaceBytes({ ...shape, rows: 1 });
    for (const workspaceBytes of [oneRow, oneRow + 50_000])
      expect(runAttend(kernels, arena, c, built, { arithmetic: 'integer', workspaceBytes })).toEqual(whole);
  });

  it('a dropped token changes nothing: caches that differ only in what was dropped agree', () => {
    const c = ATTEND_CASES.find((x) => x.name.startsWith('all dropped'))!;
    const { arena, kernels, built } = setUp(make, c, false);
    expect(built.records[0]![0]!.cells).toBe(0);
    const only: CacheCase = { ...c, segments: c.segments.slice(1) };
    const all = runAttend(kernels, arena, c, built, { arithmetic: 'integer' });
    const rest = runAttend(
      kernels,
      arena,
      only,
      { ...built, segments: built.segments + 4, segmentCount: 1 },
      { arithmetic: 'integer' },
    );
    const group = (c.heads / c.kvHeads) * c.headDim;
    for (let row = 0; row < c.rows; row++) {
      const at = row * c.heads * c.headDim;
      expect(rest.subarray(at, at + group)).toEqual(all.subarray(at, at + group));
      expect(rest.subarray(at + group, at + 2 * group)).not.toEqual(all.subarray(at + group, at + 2 * group));
    }
  });

  it('wants at most 4 MB at 128 rows and 64k cells', () => {
    const { kernels } = make();
    for (const cells of [200, 8400, 65536])
      expect(
        kernels.attendWorkspaceBytes({ rows: 128, heads: 9, kvHeads: 3, headDim: 64, cells }),
      ).toBeLessThanOrEqual(WORKSPACE_LIMIT);
  });
});
