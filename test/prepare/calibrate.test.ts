import { describe, expect, it } from 'vitest';
import { calibrationTasks, combineResults } from '../../src/prepare/calibrate.ts';
import { HeadProbe } from '../../src/prepare/head-probe.ts';
import { cacheDriver, SHAPE, stateOf } from '../helpers/cache-driver.ts';

describe('HeadProbe', () => {
  const driver = cacheDriver({ policy: 'full' });
  const cache = driver.create();
  driver.feedTo(cache, 512);
  cache.finish();
  const before = stateOf(cache);
  const whole = driver.feed(cache, 20);
  cache.position = 512;
  const probe = new HeadProbe(cache);
  const width = SHAPE.heads * SHAPE.headDim;
  const group = (SHAPE.heads / SHAPE.kvHeads) * SHAPE.headDim;

  /** Mean squared change by (layer, kvHead). */
  const changes = (rows: number[][]): number[] => {
    const out = new Array<number>(SHAPE.layers * SHAPE.kvHeads).fill(0);
    rows.forEach((row, r) => {
      row.forEach((x, i) => {
        const head = Math.floor(i / width) * SHAPE.kvHeads + Math.floor((i % width) / group);
        out[head]! += (x - whole[r]![i]!) ** 2;
      });
    });
    return out;
  };

  it.each(['keys', 'values', 'drop'] as const)('%s: only the damaged head answers differently', (harm) => {
    probe.damage(1, 0, harm);
    const changed = changes(driver.feed(cache, 20));
    probe.mend();
    expect(changed[2]).toBeGreaterThan(1e-3);
    expect([changed[0], changed[1], changed[3]]).toEqual([0, 0, 0]);
  });

  it('dropping costs more than 2 bits', () => {
    const cost = (harm: 'values' | 'drop'): number => {
      probe.damage(0, 1, harm);
      const changed = changes(driver.feed(cache, 20))[1]!;
      probe.mend();
      return changed;
    };
    expect(cost('drop')).toBeGreaterThan(cost('values'));
  });

  it('mends every bit', () => {
    probe.damage(0, 0, 'keys');
    probe.damage(1, 1, 'drop');
    probe.mend();
    expect(driver.feed(cache, 20)).toEqual(whole);
    cache.position = 512;
    expect(stateOf(cache)).toEqual(before);
  });
});

describe('tasks', () => {
  const item = { kind: 'text', ids: [1], prefix: 0 } as const;
  it('are as many as threads have use for, more of a text than of a needle', () => {
    const needle = { kind: 'needle', ids: [1], prefix: 0, answer: 1 } as const;
    const parts = (threads: number): number[] => {
      const tasks = calibrationTasks([item, needle], 90, threads);
      return [item, needle].map((one) => tasks.filter((t) => t.item === one).length);
    };
    expect([1, 9, 64].map(parts)).toEqual([
      [1, 1],
      [8, 1],
      [57, 8],
    ]);
  });
  it('cover every head of every item once, and their results are averaged', () => {
    const tasks = calibrationTasks([item, item], 7, 6);
    expect(tasks.map((t) => [t.from, t.to])).toEqual([
      [0, 2],
      [2, 4],
      [4, 7],
      [0, 2],
      [2, 4],
      [4, 7],
    ]);
    const done = tasks.map((task, i) => {
      const list = Array.from({ length: task.to - task.from }, (_, j) => (i < 3 ? 1 : 3) * (task.from + j));
      return { task, result: { keys: list, values: list, drop: list, needle: list } };
    });
    expect(combineResults(done, 7).drop).toEqual([0, 2, 4, 6, 8, 10, 12]);
    expect(() => combineResults(done.slice(0, 2), 7)).toThrow(/head 4/);
  });
});
