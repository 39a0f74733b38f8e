import { expect, it } from 'vitest';
import { completeConfig, DEFAULT_CACHE } from '../../src/cache/policy.ts';

it('a budget policy without ratio or bytes gets what the host has for it; nothing that was asked for is changed', () => {
  expect(completeConfig()).toEqual(DEFAULT_CACHE);
  expect(completeConfig({}, 5e6)).toEqual({ ...DEFAULT_CACHE, bytes: 5e6 });
  expect(completeConfig({ policy: 'window', window: 32 }, 5e6)).toMatchObject({
    policy: 'window',
    window: 32,
    bytes: 5e6,
  });
  expect(completeConfig({ ratio: 3 }, 5e6)).toEqual({ ...DEFAULT_CACHE, ratio: 3 });
  expect(completeConfig({ bytes: 7e6 }, 5e6)).toEqual({ ...DEFAULT_CACHE, bytes: 7e6 });
  expect(completeConfig({ policy: 'full' }, 5e6)).toEqual({ ...DEFAULT_CACHE, policy: 'full' });
  expect(completeConfig({ policy: 'uniform' }, 5e6)).toEqual({ ...DEFAULT_CACHE, policy: 'uniform' });
});
