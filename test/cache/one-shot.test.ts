import { describe, expect, it } from 'vitest';
import type { KvCache } from '../../src/cache/cache.ts';
import { tierNamed } from '../../src/kernels/layout.ts';
import { cacheDriver } from '../helpers/cache-driver.ts';

const PROMPT = 1300;

/** Positions of layer 0, head 0 that are still held, of those in segments. */
function held(cache: KvCache): number[] {
  return cache.spans.flatMap((span, s) => {
    const tiers = new Uint8Array(span.tokens);
    cache.reader(cache.blocks[0]![s]!).tiers(0, tiers, 0);
    return [...tiers].flatMap((tier, i) => (tier === tierNamed('drop') ? [] : [span.start + i]));
  });
}

describe('compression in one shot', () => {
  it.each(['snapkv', 'h2o', 'adkvc'])('%s: nothing is lost before, the budget is met after', (policy) => {
    const driver = cacheDriver({ policy, ratio: 4, oneShot: PROMPT });
    const full = cacheDriver({ policy: 'full' });
    const [cache, whole] = [driver.create(), full.create()];
    expect(driver.feedTo(cache, PROMPT)).toEqual(full.feedTo(whole, PROMPT));
    expect(cache.report().ratio).toBeLessThan(1);
    cache.finish();
    expect(cache.report().ratio).toBeGreaterThan(3.9);
    expect(cache.report().peakBytes).toBeGreaterThan(0.9 * whole.bytes);
    // The rest of the epoch can be decoded.
    const after = driver.feedTo(cache, PROMPT + 20);
    expect(after.flat().every(Number.isFinite)).toBe(true);
    expect(after).not.toEqual(full.feedTo(whole, PROMPT + 20));
  });

  it("counts the prompt's last queries, across an epoch's end", () => {
    // 1300 = 10 * 128 + 20: the 32 voters stand on both sides of an epoch's end.
    const votes = (oneShot: number, end: number): Uint32Array => {
      const driver = cacheDriver({ policy: 'snapkv', ratio: 4, oneShot });
      const cache = driver.create();
      driver.feedTo(cache, end);
      const block = cache.blocks[0]![0]!;
      const { arena } = cache.context.kernels;
      const reader = cache.reader(block);
      return new Uint32Array(
        arena.memory.buffer,
        arena.ptr(block.id) + reader.massAt(0),
        reader.cells(0),
      ).slice();
    };
    const sum = (v: Uint32Array): number => v.reduce((a, b) => a + b, 0);
    expect(sum(votes(PROMPT, PROMPT - 32))).toBe(0);
    const all = votes(PROMPT, PROMPT);
    const early = votes(PROMPT, 1280);
    expect(sum(early)).toBeGreaterThan(0);
    expect(sum(all)).toBeGreaterThan(sum(early));
  });

  it('does as well as streaming by the same budget, and keeps other tokens', () => {
    const run = (oneShot?: number): KvCache => {
      const driver = cacheDriver({ policy: 'snapkv', ratio: 4, ...(oneShot ? { oneShot } : {}) });
      const cache = driver.create();
      driver.feedTo(cache, PROMPT);
      cache.finish();
      return cache;
    };
    const [once, streamed] = [run(PROMPT), run()];
    expect(Math.abs(once.bytes / streamed.bytes - 1)).toBeLessThan(0.05);
    expect(held(once)).not.toEqual(held(streamed));
  });

  it.each([0, 1.5])('refuses %d tokens', (oneShot) => {
    expect(() => cacheDriver({ policy: 'snapkv', oneShot }).create()).toThrow(/oneShot must be/);
  });
});
