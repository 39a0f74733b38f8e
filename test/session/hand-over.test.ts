import { afterEach, beforeAll, expect, test } from 'vitest';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { generate } from '../../src/engine/generate.ts';
import type { TurnEvent, TurnRequest } from '../../src/session/api.ts';
import { readHead } from '../../src/session/head.ts';
import { LocalHost } from '../../src/session/local-host.ts';
import { restoreNewest } from '../../src/session/recover.ts';
import { Scheduler } from '../../src/session/scheduler.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import { layersOf } from '../helpers/held-state.ts';
import { pause } from '../helpers/sessions.ts';
import { tinyEngine } from '../helpers/tiny-engine.ts';
import { GREEDY, type Outcome, prose, read, request, user } from '../helpers/turns.ts';

/**
 * Two conversations in an isolate that has memory for one: each stores its cache when its share of time is over, lets the other run and goes
 * on from the store. A real engine with a tiny model; room for the worst case of one conversation and a bit.
 */
const PROMPT = 1_200;
const ANSWER = 40;
/** Random weights say one thing over and over: hot enough that the slightest change of logits is seen. */
const SAMPLING = { ...GREEDY, temperature: 30, topK: 40, seed: 5 };
const CACHE = { policy: 'adkvc', ratio: 3 } as const;

let engine: ModelEngine;
/** The same engine with less memory. */
let isolate: ModelEngine;
let most = 0;
let capacity = 0;
beforeAll(async () => {
  engine = await tinyEngine('wasm', { context: 4_096 });
  const probe = engine.createCache({ ...CACHE, window: 32, sinks: 4, seed: 0, exactBits: 16 } as never);
  const { config } = probe.header;
  probe.dispose();
  capacity = Math.ceil(1.2 * engine.worstCaseBytes(config, PROMPT + ANSWER + 100));
  isolate = Object.create(engine, {
    availableBytes: {
      get: () => {
        most = Math.max(most, engine.ledger().caches!);
        return capacity - engine.ledger().caches!;
      },
    },
  });
});
let hosts: LocalHost[] = [];
afterEach(() => {
  for (const host of hosts) host.close();
  hosts = [];
  expect(engine.ledger().caches).toBe(0);
});

function world(shareMs: number) {
  const stores = new Map<string, MemoryStore>();
  const scheduler = new Scheduler({ pause, shareMs, maxWaitMs: 60_000 });
  const store = (key: string): MemoryStore => {
    if (!stores.has(key)) stores.set(key, new MemoryStore());
    return stores.get(key)!;
  };
  const host = new LocalHost({ loadEngine: async () => isolate, generate, scheduler }, store);
  hosts.push(host);
  const start = (key: string, seed: number, more: Partial<TurnRequest> = {}, signal = never) =>
    host.turn(
      key,
      key,
      request([user(prose(PROMPT, seed))], {
        sampling: SAMPLING,
        maxTokens: ANSWER,
        cache: CACHE,
        ...more,
      }),
      signal,
    );
  return { start, store, scheduler, host };
}
const never = new AbortController().signal;

/** Every byte of the state that the store's newest commit restores to. */
function stateOf(store: MemoryStore): unknown[] {
  const { head } = readHead(store)!;
  const { residence, passedOver } = restoreNewest(store, engine, head.states, Number.POSITIVE_INFINITY);
  expect(passedOver).toEqual([]);
  const { cache } = residence!;
  const parts = [cache.position, ...layersOf(cache)];
  cache.dispose();
  return parts;
}

/** What the conversation says and stores when nobody disturbs it. */
async function alone(seed: number): Promise<{ outcome: Outcome; state: unknown[] }> {
  const { start, store, host } = world(0);
  const outcome = await read(await start('k', seed));
  host.close();
  return { outcome, state: stateOf(store('k')) };
}

async function* told(
  key: string,
  events: AsyncIterable<TurnEvent>,
  order: string[],
): AsyncGenerator<TurnEvent> {
  for await (const event of events) {
    if (event.type === 'prefill' || event.type === 'token') order.push(key);
    yield event;
  }
}

const switches = (order: readonly string[]): number =>
  order.filter((key, i) => i > 0 && key !== order[i - 1]).length;

test('two long conversations alternate in memory for one, with the tokens and stored bytes of undisturbed ones', async () => {
  const expected = [await alone(1), await alone(2)];
  const { start, store } = world(0);
  const order: string[] = [];
  most = 0;
  const outcomes = await Promise.all(
    ['a', 'b'].map(async (key, i) => read(told(key, await start(key, i + 1), order))),
  );
  // Each prompt has ten epochs and forty tokens; every one of them is a place to hand over.
  expect(switches(order)).toBeGreaterThan(20);
  expect(most).toBeLessThanOrEqual(capacity);
  outcomes.forEach((outcome, i) => {
    expect(outcome.ids).toEqual(expected[i]!.outcome.ids);
    expect(outcome.text).toBe(expected[i]!.outcome.text);
    expect(outcome.finished.recovered).toBeUndefined();
    expect(outcome.finished.timing.waitMs).toBeGreaterThan(0);
    expect(stateOf(store('ab'[i]!))).toEqual(expected[i]!.state);
  });
});

test('a short turn need not wait for the end of a long prompt; with a share that never ends it does', async () => {
  for (const [shareMs, waits] of [
    [0, false],
    [1e9, true],
  ] as const) {
    const { start } = world(shareMs);
    const order: string[] = [];
    const long = read(told('long', await start('long', 1), order));
    const short = read(
      told('short', await start('short', 2, { messages: [user('Hello')], maxTokens: 500 }), order),
    );
    await Promise.all([long, short]);
    expect(order.indexOf('short') > order.lastIndexOf('long')).toBe(waits);
  }
});

test('a turn that leaves nothing behind cannot hand over: the other one waits for its end', async () => {
  const { start } = world(0);
  const order: string[] = [];
  const first = read(told('first', await start('first', 1, { store: false }), order));
  const second = read(told('second', await start('second', 2), order));
  await Promise.all([first, second]);
  expect(order.lastIndexOf('first')).toBeLessThan(order.indexOf('second'));
});

test('aborted while another has its memory: what was said is kept and goes on, nothing is held', async () => {
  const { outcome } = await alone(1);
  const { start, scheduler, store } = world(0);
  const controller = new AbortController();
  const first = await start('first', 1, {}, controller.signal);
  const reading = read(first).catch((error: unknown) => error);
  // Never hands over: the first one waits as long as this one runs.
  const second = await start('second', 2, { store: false });
  for await (const event of second)
    if (event.type === 'prefill' && !controller.signal.aborted) {
      expect(scheduler.waiting).toBe(1);
      controller.abort();
    }
  expect(await reading).toMatchObject({ message: expect.stringContaining('aborted') });
  expect(scheduler.waiting + scheduler.running).toBe(0);
  const fed = readHead(store('first'))!.head.log.fed;
  expect(fed).toBeGreaterThan(0);
  const again = await read(await start('first', 1));
  expect(again.started.cachedTokens).toBe(Math.min(fed, again.started.promptTokens));
  expect(again.ids).toEqual(outcome.ids);
});

test('what was damaged while another had the memory is computed again', async () => {
  const { outcome, state } = await alone(1);
  const { start, store } = world(0);
  const first = read(await start('first', 1));
  let damaged = false;
  for await (const event of await start('second', 2, { store: false }))
    if (event.type === 'prefill' && !damaged) {
      damaged = true;
      const rows = store('first');
      const { head } = readHead(rows)!;
      const [row] = head.states.at(-1)!.refs[0]!;
      const bytes = rows.get(row)!.slice();
      bytes[bytes.length >> 1]! ^= 1;
      rows.transaction(() => rows.put(row, bytes));
    }
  const finished = await first;
  expect(finished.finished.recovered?.replayed).toBeGreaterThan(0);
  expect(finished.ids).toEqual(outcome.ids);
  expect(stateOf(store('first'))).toEqual(state);
});
