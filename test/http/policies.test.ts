import { beforeAll, expect, test } from 'vitest';
import { DEFAULT_CACHE } from '../../src/cache/policy.ts';
import { ONE_SHOT_ONLY, STREAMING_POLICIES } from '../../src/cache/registry.ts';
import { EPOCH } from '../../src/core/config.ts';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { generate } from '../../src/engine/generate.ts';
import { LocalHost } from '../../src/session/local-host.ts';
import { Scheduler } from '../../src/session/scheduler.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import { pause } from '../helpers/sessions.ts';
import { tinyEngine } from '../helpers/tiny-engine.ts';
import { fixture } from './fixture.ts';

/** A session's choice of policy, over a real engine. */
let engine: ModelEngine;
let served: ReturnType<typeof fixture>;
beforeAll(async () => {
  engine = await tinyEngine('wasm', { context: 2048 });
  const services = { loadEngine: async () => engine, generate, scheduler: new Scheduler({ pause }) };
  served = fixture({ anonymous: true }, undefined, new LocalHost(services, () => new MemoryStore()));
});
const json = async (response: Response): Promise<any> => response.json();
/** More than two epochs of tokens. */
const WORDS = 'a long story of many words that goes on and on '.repeat(20);

test.each(STREAMING_POLICIES)('%s holds the conversation that asked for it', async (policy) => {
  const asked = policy === 'full' ? { policy } : { policy, ratio: 2 };
  const created = await served.call('/v1/sessions', { id: `with-${policy}`, ...asked, seed: 5 });
  expect([created.status, (await json(created)).cache_config]).toMatchObject([201, { ...asked, seed: 5 }]);
  const said = { session_id: `with-${policy}`, messages: [{ role: 'user', content: WORDS }], max_tokens: 2 };
  const answer = await json(await served.chat(said));
  expect(answer.error).toBeUndefined();
  const { cache } = answer.adkvc;
  expect(cache.policy).toBe(policy);
  expect(cache.tokens).toBeGreaterThan(2 * EPOCH);
  // The model was not calibrated, and policies that would plan by a profile say so.
  expect(cache.profile).toBe(['adkvc', 'adkvc-quantize'].includes(policy) ? 'none' : null);
  expect(cache.mean_recodes).toBeGreaterThanOrEqual(0);
  const tiers = cache.token_heads;
  const exact = (DEFAULT_CACHE.window + DEFAULT_CACHE.sinks) * engine.model.layers * engine.model.kvHeads;
  expect(tiers.exact).toBeGreaterThanOrEqual(exact);
  // Everything older than the window has a tier of the policy's.
  expect(Object.keys(tiers).length).toBeGreaterThan(1);
  const read = await json(await served.call(`/v1/sessions/with-${policy}`));
  expect(read.cache_config).toMatchObject({ ...asked, seed: 5 });
});

test.each([...ONE_SHOT_ONLY].map((policy) => [policy, /compresses once.*not for conversations/] as const))(
  '%s, which needs to know where the prompt ends, is refused with the reason',
  async (policy, why) => {
    const answer = await served.call('/v1/sessions', { policy, ratio: 4 });
    const { error } = await json(answer);
    expect([answer.status, error.param]).toEqual([400, 'policy']);
    expect(error.message).toMatch(why);
  },
);

test.each([
  [{ policy: 'best' }, 'policy', /use one of adkvc/],
  [{ policy: 'uniform', ratio: 40 }, 'ratio', /lower the ratio or use policy adkvc/],
  [{ policy: 'uniform-int8', quotas: 'system=4,4' }, 'quotas', /all tokens alike/],
  [{ quotas: 'tools=4,4' }, 'quotas', /write system \| documents \| turns/],
])('%o is refused by name, with what would be right', async (fields, param, message) => {
  const answer = await served.call('/v1/sessions', fields);
  const { error } = await json(answer);
  expect([answer.status, error.param]).toEqual([400, param]);
  expect(error.message).toMatch(message);
});
