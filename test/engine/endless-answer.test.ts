import { expect, test } from 'vitest';
import { DEFAULT_CACHE } from '../../src/cache/policy.ts';
import { uniform01 } from '../../src/core/random.ts';
import { tinyEngine } from '../helpers/tiny-engine.ts';
import { TINY_EOS } from '../helpers/tiny-gguf.ts';

test('the endless tiny model never ends by chance: what the tests of long answers rely on', async () => {
  const engine = await tinyEngine('wasm', { endless: true });
  const cache = engine.createCache(DEFAULT_CACHE);
  const ids = Array.from({ length: 600 }, (_, i) => Math.floor(uniform01(5, i) * engine.model.vocab));
  let nearest = Number.POSITIVE_INFINITY;
  let spread = 0;
  await engine.feedEach(
    cache,
    ids,
    () => true,
    (_, logits) => {
      const others = logits.filter((_, id) => id !== TINY_EOS);
      nearest = Math.min(nearest, Math.max(...others) - logits[TINY_EOS]!);
      spread = Math.max(spread, Math.max(...others) - Math.min(...others));
    },
  );
  cache.dispose();
  // Drawn at a temperature of 1 with a chance of less than e^-50.
  expect(nearest).toBeGreaterThan(50);
  // And yet it does draw: the others differ.
  expect(spread).toBeGreaterThan(2);
});
