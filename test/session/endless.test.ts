import { beforeAll, expect, test } from 'vitest';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { generate } from '../../src/engine/generate.ts';
import type { ChatMessage } from '../../src/engine/types.ts';
import { LocalHost } from '../../src/session/local-host.ts';
import { Scheduler } from '../../src/session/scheduler.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import type { SessionStore } from '../../src/session/store/session-store.ts';
import { pause } from '../helpers/sessions.ts';
import { tinyEngine } from '../helpers/tiny-engine.ts';
import { assistant, GREEDY, prose, read, request, system, user } from '../helpers/turns.ts';

/** A conversation that goes past the trained length in its third turn, and past three times that length in its last. */
const CONTEXT = 768;
const SAMPLING = { ...GREEDY, temperature: 30, topK: 40, seed: 5 };
const cache = { policy: 'adkvc', ratio: 3 };
const never = new AbortController().signal;
let engine: ModelEngine;
beforeAll(async () => {
  engine = await tinyEngine('wasm', { context: CONTEXT });
});

const open = (stores: Map<string, SessionStore>): LocalHost =>
  new LocalHost({ loadEngine: async () => engine, generate, scheduler: new Scheduler({ pause }) }, (key) => {
    const store = stores.get(key) ?? new MemoryStore();
    stores.set(key, store);
    return store;
  });

test('awake, asleep between turns, forked or imported: the same tokens past the trained length, nothing fed twice', {
  timeout: 60_000,
}, async () => {
  const stores = new Map<string, SessionStore>();
  const awake = open(new Map());
  const messages: ChatMessage[] = [system('Be brief.')];
  let host = open(stores);
  let key = 'k';
  for (let turn = 0; turn < 9; turn++) {
    // One message is longer than the trained length by itself.
    messages.push(user(prose(turn === 4 ? CONTEXT + 100 : 210, turn + 1)));
    const asked = request(messages, { cache, sampling: SAMPLING, maxTokens: 40 });
    const a = await read(await awake.turn('awake', 'awake', asked, never));
    const b = await read(await host.turn(key, key, asked, never));
    expect(b.ids).toEqual(a.ids);
    expect(b.started).toEqual(a.started);
    expect(b.finished.recovered).toBeUndefined();
    messages.push(assistant(a.text));
    if (turn === 4) {
      await host.fork(key, { key: 'fork', id: 'fork' }, {});
      key = 'fork';
    }
    if (turn === 6) {
      const { stream } = await host.export(key);
      const there = open(stores);
      await there.import('imported', 'imported', stream);
      there.close();
      key = 'imported';
    }
    host.close();
    host = open(stores);
  }
  const info = await read(
    await host.turn(key, key, request([...messages, user('?')], { maxTokens: 1 }), never),
  );
  expect(info.started.promptTokens).toBeGreaterThan(3 * CONTEXT);
  host.close();
  awake.close();
  expect(engine.ledger().caches).toBe(0);
});

test('full: a conversation ends at the trained length, and says so', async () => {
  const host = open(new Map());
  const asked = request([user(prose(CONTEXT + 50))], { cache: { policy: 'full' }, maxTokens: 4 });
  await expect(host.turn('f', 'f', asked, never).then(read)).rejects.toMatchObject({
    code: 'context_length_exceeded',
    data: { limit: CONTEXT - 1 },
  });
  host.close();
});
