import { expect, test } from 'vitest';
import { DEFAULT_CACHE } from '../../src/cache/policy.ts';
import { tinyEngine } from '../helpers/tiny-engine.ts';

test('one that decodes alone lets others in after four steps at most, two that decode take turns at every step', async () => {
  const engine = await tinyEngine('wasm', { endless: true });
  const order: string[] = [];
  const decode = async (name: string): Promise<number> => {
    const cache = engine.createCache(DEFAULT_CACHE);
    let yields = 0;
    const pause = async (): Promise<void> => {
      yields++;
      await new Promise((resolve) => setImmediate(resolve));
    };
    for (let step = 0; step < 16; step++) {
      await engine.feed(cache, [5], 'none', { yield: pause });
      order.push(name);
    }
    cache.dispose();
    return yields;
  };
  expect(await decode('a')).toBe(4);
  order.length = 0;
  await Promise.all([decode('a'), decode('b')]);
  // Neither is ever more than a few steps ahead of the other.
  const ahead = order.map((_, i) => {
    const done = order.slice(0, i + 1);
    return Math.abs(done.filter((n) => n === 'a').length - done.filter((n) => n === 'b').length);
  });
  expect(Math.max(...ahead)).toBeLessThanOrEqual(4);
});
