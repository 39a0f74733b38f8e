import { describe, expect, it } from 'vitest';
import { TRACKER_NAMES } from '../../src/cache/policy.ts';
import { restoreCache } from '../../src/cache/restore.ts';
import { snapshot } from '../../src/cache/snapshot.ts';
import { TRACKERS } from '../../src/cache/trackers/registry.ts';
import { cacheDriver, readerOf, stateOf } from '../helpers/cache-driver.ts';

const OPTIONS = { decay: 0.8, lastQueries: 32 };
const read = (tracker: (typeof TRACKER_NAMES)[number], reference = false) => {
  const driver = cacheDriver({ policy: 'adkvc', ratio: 4, tracker }, { reference });
  const cache = driver.create();
  // Just before an epoch's end: last-window forgets there.
  driver.feedTo(cache, 639);
  return { cache, relevance: TRACKERS[tracker](OPTIONS).read(snapshot(cache, null)) };
};

describe.each(TRACKER_NAMES)('tracker %s', (tracker) => {
  it('leaves the same bytes for chunks of 128, 64, 17 and 1, and is restored bit for bit', () => {
    const states = [128, 64, 17, 1].map((chunk) => {
      const driver = cacheDriver({ policy: 'adkvc', ratio: 4, tracker });
      const cache = driver.create();
      driver.feedTo(cache, 700, chunk);
      expect(stateOf(restoreCache(driver.context, readerOf(cache)))).toEqual(stateOf(cache));
      return stateOf(cache);
    });
    for (const other of states.slice(1)) expect(other).toEqual(states[0]);
  });

  it('ranks what queries look for above the rest', () => {
    const { cache, relevance } = read(tracker);
    let [beacons, others, n, m] = [0, 0, 0, 0];
    cache.spans.forEach((span, s) => {
      for (let i = 0; i < relevance[s]!.length; i++)
        if ((span.start + (i % span.tokens)) % 7 === 0) {
          beacons += relevance[s]![i]!;
          n++;
        } else {
          others += relevance[s]![i]!;
          m++;
        }
    });
    expect(beacons / n).toBeGreaterThan((2 * others) / m);
  });
});

it('max: never above one, and the reference agrees to the bit', () => {
  const { relevance } = read('max');
  const all = relevance.flatMap((r) => [...r]);
  expect(Math.max(...all)).toBeLessThanOrEqual(65535);
  // Of 600 tokens the most attended one had more than its share.
  expect(Math.max(...all)).toBeGreaterThan(65535 / 600);
  expect(read('max', true).relevance).toEqual(relevance);
});

it('max: one look counts as it was, later and lesser ones add nothing', () => {
  const driver = cacheDriver({ policy: 'adkvc', ratio: 4, tracker: 'max' });
  const cache = driver.create();
  const seen = (): number[] =>
    TRACKERS.max(OPTIONS)
      .read(snapshot(cache, null))
      .flatMap((r) => [...r]);
  // All plans of 128 have been applied at 160; that of 256 comes after 250.
  driver.feedTo(cache, 160);
  const before = seen();
  driver.feedTo(cache, 250);
  const after = seen();
  expect(after.length).toBe(before.length);
  expect(after.every((x, i) => x >= before[i]!)).toBe(true);
  expect(after.filter((x, i) => x === before[i]!).length).toBeGreaterThan(after.length / 10);
});
