import { describe, expect, it } from 'vitest';
import type { CacheStateReader } from '../../src/cache/persist.ts';
import { STREAMING_POLICIES } from '../../src/cache/registry.ts';
import { restoreCache } from '../../src/cache/restore.ts';
import { worstCaseBytes } from '../../src/cache/worst-case.ts';
import { fp16BytesPerToken } from '../../src/core/config.ts';
import { CorruptDataError, InvalidInputError } from '../../src/core/errors.ts';
import { cacheDriver, finishedBytes, readerOf, SHAPE, stateOf } from '../helpers/cache-driver.ts';

const RATIO = 4;
const config = (policy: string) => (policy === 'full' ? { policy } : { policy, ratio: RATIO });

describe.each(STREAMING_POLICIES)('policy %s', (policy) => {
  it('leaves the same bytes and gives the same outputs for chunks of 128, 64, 17 and 1', () => {
    const states = [128, 64, 17, 1].map((chunk) => {
      const driver = cacheDriver(config(policy));
      const cache = driver.create();
      const outputs = driver.feedTo(cache, 700, chunk);
      return { state: stateOf(cache), outputs };
    });
    for (const other of states.slice(1)) expect(other).toEqual(states[0]);
  });

  it('is restored bit for bit and goes on alike', () => {
    // 128, 649 and 656: plans are pending, none, some and nearly all of them applied.
    for (const position of [5, 128, 300, 640, 649, 656, 700]) {
      const driver = cacheDriver(config(policy));
      const cache = driver.create();
      driver.feedTo(cache, position);
      const resumed = restoreCache(driver.context, readerOf(cache));
      expect(stateOf(resumed)).toEqual(stateOf(cache));
      const rest = driver.feedTo(resumed, position + 200);
      expect(rest).toEqual(driver.feedTo(cache, position + 200));
      expect(stateOf(resumed)).toEqual(stateOf(cache));
    }
  });

  it('is restored bit for bit from older blocks and the journal of plans since', () => {
    const driver = cacheDriver(config(policy));
    const cache = driver.create();
    driver.feedTo(cache, 512);
    const old = restoreCache(driver.context, readerOf(cache));
    // The plan of 512 has not reached the old blocks: it stays with them.
    const pending = cache.completePlan()!;
    cache.clearJournal();
    driver.feedTo(cache, 1100);
    const journal = [pending, ...cache.journal];
    const resumed = restoreCache(driver.context, readerOf(cache, { cache: old, journal }));
    expect(stateOf(resumed)).toEqual(stateOf(cache));
  });

  it('frees everything that it allocated', () => {
    const driver = cacheDriver(config(policy));
    const cache = driver.create();
    driver.feedTo(cache, 700);
    expect(driver.context.kernels.arena.liveBytes).toBe(cache.bytes);
    const { tierBytes } = cache.report();
    expect(Object.values(tierBytes).reduce((sum, bytes) => sum + bytes, 0)).toBe(cache.bytes);
    expect(tierBytes.overhead).toBeGreaterThanOrEqual(0);
    cache.dispose();
    expect(driver.context.kernels.arena.liveBytes).toBe(0);
  });

  it('never holds more than worstCaseBytes says', () => {
    for (const tokens of [40, 200, 900, 1500]) {
      const driver = cacheDriver(config(policy));
      const cache = driver.create();
      driver.feedTo(cache, tokens);
      expect(cache.report().peakBytes).toBeLessThanOrEqual(
        worstCaseBytes({ model: SHAPE }, driver.config, tokens),
      );
    }
  });
});

it.each(['adkvc', 'window'])(
  '%s meets its byte budget at every epoch, at most a twenty-fifth below it',
  (policy) => {
    // Records of this small shape are few, so their padding is coarse: hence 4 %.
    const driver = cacheDriver({ policy, ratio: 3, window: 32 });
    const cache = driver.create();
    for (let position = 1024; position <= 2048; position += 128) {
      driver.feedTo(cache, position);
      const budget = (position * fp16BytesPerToken(SHAPE)) / 3;
      const bytes = finishedBytes(driver, cache);
      expect(bytes).toBeLessThanOrEqual(budget);
      expect(bytes).toBeGreaterThan(budget * 0.96);
    }
  },
);

it('adkvc keeps tokens that queries look for more precisely than others', () => {
  const driver = cacheDriver({ policy: 'adkvc', ratio: 6 });
  const cache = driver.create();
  driver.feedTo(cache, 1280);
  cache.finish();
  let beacons = 0;
  let others = 0;
  let beaconTiers = 0;
  let otherTiers = 0;
  for (let layer = 0; layer < SHAPE.layers; layer++)
    cache.spans.forEach((span, s) => {
      for (let h = 0; h < SHAPE.kvHeads; h++) {
        const tiers = new Uint8Array(span.tokens);
        cache.reader(cache.blocks[layer]![s]!).tiers(h, tiers, 0);
        tiers.forEach((tier, i) => {
          if ((span.start + i) % 7 === 0) {
            beacons++;
            beaconTiers += tier;
          } else {
            others++;
            otherTiers += tier;
          }
        });
      }
    });
  expect(beaconTiers / beacons).toBeLessThan(otherTiers / others - 1);
});

it('attention over the compressed cache stays near the full one, and nearer at a lower ratio', () => {
  const reference = cacheDriver({ policy: 'full' });
  const full = reference.feedTo(reference.create(), 700);
  const error = (ratio: number): number => {
    const driver = cacheDriver({ policy: 'uniform', ratio });
    const outputs = driver.feedTo(driver.create(), 700);
    let sum = 0;
    let norm = 0;
    outputs.forEach((row, r) => {
      row.forEach((x, i) => {
        sum += (x - full[r]![i]!) ** 2;
        norm += full[r]![i]! ** 2;
      });
    });
    return Math.sqrt(sum / norm);
  };
  // headDim 16 pays 2 bytes of scale on 16 codes: 8 bits reach 1.7x, 4 bits 2.7x.
  const [fine, coarse] = [error(1.5), error(2.5)];
  expect(fine).toBeLessThan(0.02);
  expect(coarse).toBeGreaterThan(fine);
  expect(coarse).toBeLessThan(0.2);
});

describe('configuration', () => {
  it.each([
    [{ policy: 'nothing' }, 'policy'],
    [{ policy: 'adkvc', ratio: 0.5 }, 'ratio'],
    [{ policy: 'adkvc', ratio: 4, bytes: 1e6 }, 'ratio'],
    [{ policy: 'uniform', ratio: 30 }, 'ratio'],
    [{ policy: 'adkvc', window: -1 }, 'window'],
    [{ policy: 'adkvc', sinks: 2000 }, 'sinks'],
    [{ policy: 'adkvc', exactBits: 32 as const }, 'policy'],
  ])('refuses %j and names %s', (overrides, param) => {
    const driver = cacheDriver(overrides);
    expect(() => driver.create()).toThrow(InvalidInputError);
    try {
      driver.create();
    } catch (error) {
      expect((error as InvalidInputError).param).toBe(param);
    }
  });
});

describe('restore refuses, and keeps nothing allocated', () => {
  const driver = cacheDriver(config('adkvc'));
  const cache = driver.create();
  driver.feedTo(cache, 400);
  const before = driver.context.kernels.arena.liveBytes;
  const good = readerOf(cache);
  const cut = (bytes: Uint8Array): Uint8Array => bytes.subarray(0, bytes.length - 1);
  it.each<[string, CacheStateReader, RegExp]>([
    ['another model', { ...good, header: { ...good.header, model: 'g' } }, /another model/],
    ['another layout', { ...good, header: { ...good.header, layoutVersion: 99 } }, /layout/],
    ['other numerics', { ...good, header: { ...good.header, numerics: 'x' } }, /computed by x/],
    ['a short hot part', { ...good, hot: (l) => cut(good.hot(l)) }, /hot part/],
    [
      'a short block',
      { ...good, block: (l, s) => ({ version: 1, bytes: cut(good.block(l, s).bytes) }) },
      /segment 0 of layer 0/,
    ],
    ['a torn journal', { ...good, journal: [{ position: 400, bytes: new Uint8Array(7) }] }, /journal/],
  ])('%s', (_, reader, message) => {
    expect(() => restoreCache(driver.context, reader)).toThrow(message);
    expect(() => restoreCache(driver.context, reader)).toThrow(CorruptDataError);
    expect(driver.context.kernels.arena.liveBytes).toBe(before);
  });
});
