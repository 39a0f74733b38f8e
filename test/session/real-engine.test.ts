import { beforeAll, describe, expect, test } from 'vitest';
import type { CacheConfig } from '../../src/cache/policy.ts';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { generate } from '../../src/engine/generate.ts';
import type { ChatMessage, EngineCache } from '../../src/engine/types.ts';
import { readHead } from '../../src/session/head.ts';
import { LocalHost } from '../../src/session/local-host.ts';
import { restoreNewest } from '../../src/session/recover.ts';
import { Scheduler } from '../../src/session/scheduler.ts';
import { readState } from '../../src/session/state.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import type { SessionStore } from '../../src/session/store/session-store.ts';
import { bytesOf, rowsOf, storeOf } from '../helpers/held-state.ts';
import { pause } from '../helpers/sessions.ts';
import { tinyEngine } from '../helpers/tiny-engine.ts';
import { assistant, GREEDY, type Outcome, prose, read, request, system, user } from '../helpers/turns.ts';

let engine: ModelEngine;
beforeAll(async () => {
  engine = await tinyEngine('wasm', { context: 4_096 });
});

/** Random weights say one thing over and over: hot enough that the slightest change of logits is seen. */
const SAMPLING = { ...GREEDY, temperature: 30, topK: 40, seed: 5 };
const never = new AbortController().signal;
/** Flipped bytes of each policy: every row at least, and in the full count random places besides. */
const FLIPS = process.env.ADKVC_FAULTS ? 200 : 0;
const FLIP_SEED = 23;
function generator(seed: number): () => number {
  let x = seed;
  return () => {
    x = (Math.imul(x, 1_664_525) + 1_013_904_223) >>> 0;
    return x / 2 ** 32;
  };
}

function open(stores: ReadonlyMap<string, SessionStore>): LocalHost {
  const services = { loadEngine: async () => engine, generate, scheduler: new Scheduler({ pause }) };
  return new LocalHost(services, (key) => stores.get(key)!);
}

/** One turn on a host that wakes up for it and is gone after it. */
async function visit(
  store: SessionStore,
  messages: readonly ChatMessage[],
  more: Parameters<typeof request>[1] = {},
): Promise<Outcome> {
  const host = open(new Map([['k', store]]));
  try {
    return await read(
      await host.turn('k', 'k', request(messages, { sampling: SAMPLING, maxTokens: 40, ...more }), never),
    );
  } finally {
    host.close();
  }
}

/** Every byte of the state that the store's current commit restores to. */
function stateOf(store: SessionStore): unknown[] {
  const { head } = readHead(store)!;
  const { residence, passedOver } = restoreNewest(store, engine, head.states, Number.POSITIVE_INFINITY);
  expect(passedOver).toEqual([]);
  const cache = residence!.cache;
  const state = bytesOf(cache);
  cache.dispose();
  return state;
}

/** What a new cache holds that was fed the log's ids from the start. */
async function replayed(store: SessionStore): Promise<unknown[]> {
  const { log, cacheConfig } = readHead(store)!.head;
  const cache = engine.createCache(cacheConfig);
  await engine.feed(cache, log.ids.slice(0, log.fed), 'none');
  const state = bytesOf(cache as unknown as EngineCache);
  cache.dispose();
  return state;
}

const POLICIES: Partial<CacheConfig>[] = [
  { policy: 'full' },
  { policy: 'uniform' },
  { policy: 'window', ratio: 4 },
  { policy: 'adkvc', ratio: 3 },
];

describe.each(POLICIES)('the real engine, cache $policy', (cache) => {
  test('asleep between turns or awake: the same tokens, the same stored state, nothing fed twice, equal to a replay', async () => {
    const stores = new Map<string, SessionStore>([
      ['awake', new MemoryStore()],
      ['asleep', new MemoryStore()],
    ]);
    const awake = open(stores);
    const messages: ChatMessage[] = [system('Be brief.')];
    let journals = 0;
    for (let turn = 0; turn < 5; turn++) {
      messages.push(user(prose(turn === 1 ? 1_300 : 60, turn + 1)));
      const asked = request(messages, { cache, sampling: SAMPLING, maxTokens: 50 });
      const a = await read(await awake.turn('awake', 'a', asked, never));
      const b = await visit(stores.get('asleep')!, messages, { cache, maxTokens: 50 });
      expect(b.ids).toEqual(a.ids);
      expect(b.started).toEqual(a.started);
      expect(b.finished.recovered).toBeUndefined();
      if (turn > 0)
        expect(b.started.cachedTokens).toBe(
          readHead(stores.get('asleep')!)!.head.log.ids.length -
            b.ids.length -
            (b.started.promptTokens - b.started.cachedTokens),
        );
      expect(stateOf(stores.get('asleep')!)).toEqual(stateOf(stores.get('awake')!));
      const { states } = readHead(stores.get('asleep')!)!.head;
      journals += readState(stores.get('asleep')!, states.at(-1)!).journal.length;
      messages.push(assistant(a.text));
    }
    expect(stateOf(stores.get('asleep')!)).toEqual(await replayed(stores.get('asleep')!));
    // These two change old blocks: plans were journalled and replayed.
    if (cache.policy === 'window' || cache.policy === 'adkvc') expect(journals).toBeGreaterThan(0);
    awake.close();
    expect(engine.ledger().caches).toBe(0);
  });

  test('cut, regenerated, aborted and gone on with: the state is a replay of the log', async () => {
    const store = new MemoryStore();
    const first = await visit(store, [user(prose(700))], { cache });
    const second = await visit(store, [user(prose(700)), assistant(first.text), user(prose(300, 2))]);
    const other = await visit(store, [user(prose(700)), assistant(first.text), user(prose(300, 2))], {
      sampling: { ...SAMPLING, seed: 6 },
    });
    expect(other.ids).not.toEqual(second.ids);
    expect(other.started.cachedTokens).toBeGreaterThan(600);
    expect(stateOf(store)).toEqual(await replayed(store));
    const again = await visit(store, [user(prose(700)), assistant(first.text), user(prose(300, 2))]);
    expect(again.ids).toEqual(second.ids);

    const host = open(new Map([['k', store]]));
    const controller = new AbortController();
    const asked = request([user(prose(700)), assistant(first.text), user('more')], {
      sampling: SAMPLING,
      maxTokens: 400,
    });
    let tokens = 0;
    for await (const event of await host.turn('k', 'k', asked, controller.signal))
      if (event.type === 'token' && ++tokens === 10) controller.abort();
    host.close();
    expect(stateOf(store)).toEqual(await replayed(store));
    const whole = await visit(store, asked.messages, { maxTokens: 60 });
    const straight = new MemoryStore();
    await visit(straight, [user(prose(700))], { cache });
    expect(whole.ids).toEqual((await visit(straight, asked.messages, { maxTokens: 60 })).ids);
    expect(stateOf(store)).toEqual(await replayed(store));
  });

  test('a byte flipped in each stored row: the same tokens and stored bytes', async () => {
    const store = new MemoryStore();
    const first = await visit(store, [user(prose(1_300))], { cache });
    const messages = [user(prose(1_300)), assistant(first.text), user('more')];
    await visit(store, messages, { maxTokens: 4 });
    const rows = rowsOf(store);
    const next = { mode: 'append', maxTokens: 8 } as const;
    const copy = () => storeOf(rows);
    const good = await visit(copy(), [user('go on')], next);
    let noticed = 0;
    const places = [...rows.keys()].map((id, i) => ({ id, at: i * 7919 + 16, bit: i % 8 }));
    // Every row once, then random places.
    const random = generator(FLIP_SEED);
    while (places.length < FLIPS) {
      const id = places[Math.floor(random() * rows.size)]!.id;
      places.push({ id, at: Math.floor(random() * rows.get(id)!.length), bit: Math.floor(random() * 8) });
    }
    for (const { id, at, bit } of places) {
      const damaged = copy();
      const bytes = damaged.get(id)!;
      bytes[at % bytes.length]! ^= 1 << bit;
      damaged.transaction(() => damaged.put(id, bytes));
      const outcome = await visit(damaged, [user('go on')], next);
      expect(outcome.ids, `row ${id}`).toEqual(good.ids);
      if (outcome.finished.recovered) noticed++;
      expect(stateOf(damaged)).toEqual(await replayed(damaged));
    }
    console.log(
      `seed ${FLIP_SEED}, ${cache.policy}: ${places.length} bytes flipped in ${rows.size} rows, ${noticed} of them met and repaired; tokens and stored bytes equal`,
    );
    expect(noticed).toBeGreaterThan(2);
  });
});

test('many conversations on an engine with little memory: all say what they say alone', async () => {
  const small = await tinyEngine('wasm', {}, 4_000_000);
  const config = { policy: 'adkvc', ratio: 3 };
  const stores = new Map(Array.from({ length: 6 }, (_, i) => [`c${i}`, new MemoryStore() as SessionStore]));
  const scheduler = new Scheduler({ pause });
  const crowd = new LocalHost(
    { loadEngine: async () => small, generate, scheduler },
    (key) => stores.get(key)!,
  );
  await Promise.all(
    [...stores.keys()].map(async (key, i) => {
      const alone = new MemoryStore();
      const messages: ChatMessage[] = [];
      for (let turn = 0; turn < 3; turn++) {
        messages.push(user(prose(turn === 0 ? 300 : 30, i * 10 + turn)));
        const asked = request(messages, { cache: config, sampling: SAMPLING, maxTokens: 20 });
        const a = await read(await crowd.turn(key, key, asked, never));
        const b = await visit(alone, messages, { cache: config, maxTokens: 20 });
        expect(a.ids).toEqual(b.ids);
        expect(a.started).toEqual(b.started);
        messages.push(assistant(a.text));
      }
    }),
  );
  expect(small.availableBytes).toBeGreaterThan(0);
  crowd.close();
  expect(small.ledger().caches).toBe(0);
});
