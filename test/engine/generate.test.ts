import { expect, test } from 'vitest';
import { DEFAULT_CACHE } from '../../src/cache/policy.ts';
import { generate } from '../../src/engine/generate.ts';
import { GREEDY } from '../../src/engine/sampler.ts';
import { tinyEngine } from '../helpers/tiny-engine.ts';

test('the end marker ends the answer without a text or a log-probability of its own', async () => {
  const engine = await tinyEngine('wasm', { endless: true });
  const answer = async () => {
    const cache = engine.createCache(DEFAULT_CACHE);
    const tokens = [];
    let reason = '';
    for await (const event of generate(engine, cache, [5, 6, 7], {
      ...{ sampling: { ...GREEDY, topLogprobs: 1 }, stop: [], maxTokens: 12 },
    })) {
      if (event.type === 'token') tokens.push(event);
      if (event.type === 'finish') reason = event.reason;
    }
    cache.dispose();
    return { tokens, reason };
  };
  const whole = await answer();
  expect(whole.reason).toBe('length');
  expect(whole.tokens.every(({ logprob }) => logprob! <= 0)).toBe(true);
  // The marker is now what this model says last before it repeats itself, or at the end.
  const id = whole.tokens.at(-1)!.id;
  const at = whole.tokens.findIndex((token) => token.id === id);
  Object.defineProperty(engine, 'eosIds', { value: [id] });
  const ended = await answer();
  expect(ended.reason).toBe('stop');
  expect(ended.tokens.slice(0, -1)).toEqual(whole.tokens.slice(0, at));
  expect(ended.tokens.at(-1)).toEqual({ type: 'token', id, text: '' });
});
