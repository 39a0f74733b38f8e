import { evictDurableObject, runDurableObjectAlarm, runInDurableObject } from 'cloudflare:test';
import { env, exports } from 'cloudflare:workers';
import { expect, test } from 'vitest';
import type { ChatMessage } from '../../../src/engine/types.ts';
import type { TurnEvent } from '../../../src/session/api.ts';
import {
  durableObjectDirectories,
  durableObjectHost,
  durableObjectRates,
  pause,
} from '../../../src/session/durable-object.ts';
import { REQUESTS_BURST } from '../../../src/session/limits.ts';
import { LocalHost } from '../../../src/session/local-host.ts';
import { Scheduler } from '../../../src/session/scheduler.ts';
import { DurableObjectStore } from '../../../src/session/store/durable-object.ts';
import { MemoryStore } from '../../../src/session/store/memory.ts';
import { fakeGenerate } from '../../helpers/fake-generate.ts';
import { assistant, GREEDY, prose, read, request, user } from '../../helpers/turns.ts';
import { engine, scheduler } from './worker.ts';

const host = durableObjectHost(env.CONVERSATIONS, durableObjectDirectories(env.DIRECTORIES));
const never = new AbortController().signal;
const stub = (key: string) => env.CONVERSATIONS.getByName(key);
const rowsOf = (key: string) =>
  runInDurableObject(stub(key), (_object, state) => {
    const store = new DurableObjectStore(state.storage);
    return new Map(store.ids().map((id) => [id, store.get(id)!]));
  });

test('a conversation evicted between turns says what an uninterrupted one says, reuses all, and stores the same states', async () => {
  const messages: ChatMessage[] = [];
  for (let turn = 0; turn < 4; turn++) {
    messages.push(user(prose(turn === 0 ? 700 : 80, turn + 1)));
    const a = await read(await host.turn('awake', 'awake', request(messages), never));
    const b = await read(await host.turn('asleep', 'asleep', request(messages), never));
    expect(b.ids).toEqual(a.ids);
    expect(b.started).toEqual(a.started);
    expect(b.finished.recovered).toBeUndefined();
    if (turn > 0) expect(b.started.cachedTokens).toBeGreaterThan(700);
    messages.push(assistant(a.text));
    await evictDurableObject(stub('asleep'));
  }
  expect(await host.messages('asleep')).toEqual(messages);
  // Evicted objects cannot free their caches; their successors do. One cache is left for each conversation.
  const { engine } = await import('./worker.ts');
  expect(engine.live.size).toBe(2);
  const [a, b] = [await rowsOf('awake'), await rowsOf('asleep')];
  expect([...b.keys()]).toEqual([...a.keys()]);
  // The heads hold ids and times; every other row must be equal.
  for (const [id, bytes] of a) if (id >= 64) expect(b.get(id)).toEqual(bytes);
});

test('a session that does not exist: an error by code, and no byte is written', async () => {
  await expect(host.get('nobody')).rejects.toMatchObject({ code: 'session_not_found' });
  await expect(host.messages('nobody')).rejects.toMatchObject({ code: 'session_not_found' });
  await expect(host.delete('nobody')).rejects.toMatchObject({ code: 'session_not_found' });
  const tables = await runInDurableObject(stub('nobody'), (_object, state) =>
    state.storage.sql
      .exec("SELECT name FROM sqlite_master WHERE name NOT LIKE '\\_cf%' ESCAPE '\\'")
      .toArray(),
  );
  expect(tables).toEqual([]);
});

test('create, get, delete; a deleted session is gone with every byte', async () => {
  await host.create('made', 'made', { cache: { policy: 'full' }, ttlSeconds: 100 });
  await expect(host.create('made', 'made', {})).rejects.toMatchObject({ code: 'session_exists' });
  await read(await host.turn('made', 'made', request([user('hello')]), never));
  expect(await host.get('made')).toMatchObject({ id: 'made', turns: 1, cacheConfig: { policy: 'full' } });
  await host.delete('made');
  await expect(host.get('made')).rejects.toMatchObject({ code: 'session_not_found' });
  expect((await rowsOf('made')).size).toBe(0);
  const alarm = await runInDurableObject(stub('made'), (_object, state) => state.storage.getAlarm());
  expect(alarm).toBeNull();
});

test('the alarm of an implicit session is set, re-arms while it lives', async () => {
  await read(await host.turn('hourly', 'hourly', request([user('hello')], { implicit: true }), never));
  const alarmAt = () => runInDurableObject(stub('hourly'), (_object, state) => state.storage.getAlarm());
  const at = (await alarmAt())!;
  expect(at - Date.now()).toBeGreaterThan(3_500_000);
  expect(at - Date.now()).toBeLessThan(3_700_000);
  expect(await runDurableObjectAlarm(stub('hourly'))).toBe(true);
  expect(await alarmAt()).not.toBeNull();
  expect(await host.get('hourly')).toMatchObject({ turns: 1 });
});

test('the alarm deletes a session whose time is over, with every byte', async () => {
  // Long enough that the turn begins in time on a slow machine: a turn that came too late would begin another session.
  await host.create('brief', 'brief', { ttlSeconds: 5 });
  await read(await host.turn('brief', 'brief', request([user('hello')]), never));
  await new Promise((resolve) => setTimeout(resolve, 5_100));
  await expect(host.get('brief')).rejects.toMatchObject({ code: 'session_not_found' });
  // The runtime may have fired it by itself.
  await runDurableObjectAlarm(stub('brief'));
  await expect.poll(async () => (await rowsOf('brief')).size).toBe(0);
});

/** A question whose whole answer is long, so that an answer that was ended early is seen to be. */
const LONG = request([user('hello')], { maxTokens: 1_500, sampling: { ...GREEDY, temperature: 1, seed: 3 } });

test('an answer is whole when nobody reads it before its end', async () => {
  const whole = await read(await host.turn('whole', 'whole', LONG, never));
  expect(whole.ids.length).toBeGreaterThan(1_000);
  const events = await host.turn('slow', 'slow', LONG, never);
  await expect.poll(async () => (await host.get('slow')).turns, { timeout: 20_000 }).toBe(1);
  const { ids, finished } = await read(events);
  expect(ids).toEqual(whole.ids);
  expect(finished.usage.completionTokens).toBe(ids.length);
});

test('events stream while the turn runs, and a reader that returns ends it with a commit', async () => {
  const events = await host.turn('left', 'left', LONG, never);
  let tokens = 0;
  for await (const event of events) if (event.type === 'token' && ++tokens === 5) break;
  await expect.poll(async () => (await host.messages('left')).length).toBe(2);
  expect((await host.get('left')).tokens).toBeLessThan(1_000);
});

test('a client that aborts its HTTP request ends the turn with a commit', async () => {
  const controller = new AbortController();
  const response = await exports.default.fetch('http://host/gone', {
    method: 'POST',
    body: JSON.stringify(LONG),
    signal: controller.signal,
  });
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  for (let seen = ''; seen.split('"token"').length < 5; ) seen += (await reader.read()).value;
  controller.abort();
  await reader.cancel().catch(() => {});
  await expect.poll(async () => (await host.messages('gone')).length, { timeout: 10_000 }).toBe(2);
  expect((await host.get('gone')).tokens).toBeLessThan(1_000);
});

test('a client that goes away before its first event: the turn ends, and what it asked stays', async () => {
  const controller = new AbortController();
  const events = await host.turn('early', 'early', LONG, controller.signal);
  controller.abort();
  await expect
    .poll(async () => (await host.messages('early')).length, { timeout: 10_000 })
    .toBeGreaterThan(0);
  expect((await host.get('early')).tokens).toBeLessThan(1_000);
  for await (const event of events) expect(event.type).toBe('failed');
});

test('a row that is written is billed as one', async () => {
  const { finished } = await read(await host.turn('billed', 'billed', request([user(prose(400))]), never));
  expect(finished.rows.written).toBe((await rowsOf('billed')).size);
});

test('two turns at once run one after the other; two conversations side by side', async () => {
  const first = await host.turn('busy', 'busy', request([user('one')], { maxTokens: 200 }), never);
  const order: string[] = [];
  const follow = async (name: string, events: AsyncIterable<TurnEvent>) => {
    for await (const event of events) order.push(`${name} ${event.type}`);
  };
  const second = host.turn('busy', 'busy', request([user('two')], { mode: 'append' }), never);
  const other = await host.turn('free', 'free', request([user('one')], { maxTokens: 50 }), never);
  await Promise.all([
    follow('first', first),
    second.then((events) => follow('second', events)),
    follow('other', other),
  ]);
  expect(order.indexOf('second started')).toBeGreaterThan(order.indexOf('first finished'));
  expect(order.indexOf('other finished')).toBeLessThan(order.indexOf('first finished'));
  expect((await host.messages('busy')).map(({ role }) => role)).toEqual([
    'user',
    'assistant',
    'user',
    'assistant',
  ]);
});

const HOT = { maxTokens: 40, sampling: { ...GREEDY, temperature: 1, seed: 3 } };

test('a fork goes from object to object; deleted or talked to, the original leaves it as it is', async () => {
  const messages: ChatMessage[] = [user(prose(900))];
  const first = await read(await host.turn('origin', 'origin', request(messages, HOT), never));
  messages.push(assistant(first.text));
  expect(await host.fork('origin', { key: 'branch', id: 'branch' }, {})).toMatchObject({
    id: 'branch',
    turns: 1,
    expiresAt: null,
  });
  await host.fork('origin', { key: 'at-first', id: 'at-first' }, { messages: 1, ttlSeconds: 100 });
  expect(await host.messages('at-first')).toEqual(messages.slice(0, 1));
  const next = request([...messages, user('more')], HOT);
  const original = await read(await host.turn('origin', 'origin', next, never));
  await host.delete('origin');
  expect(await host.messages('branch')).toEqual(messages);
  await evictDurableObject(stub('branch'));
  const copy = await read(await host.turn('branch', 'branch', next, never));
  expect(copy.ids).toEqual(original.ids);
  expect(copy.started).toEqual(original.started);
  const again = await read(
    await host.turn('at-first', 'at-first', request(messages.slice(0, 1), HOT), never),
  );
  expect(again.ids).toEqual(first.ids);
  expect(again.started.cachedTokens).toBeGreaterThanOrEqual(768);
  const alarm = await runInDurableObject(stub('at-first'), (_object, state) => state.storage.getAlarm());
  expect(alarm).not.toBeNull();
});

test('exported here, imported into another kind of host, and back: the same tokens from the same state', async () => {
  const messages: ChatMessage[] = [user(prose(600))];
  const first = await read(await host.turn('from', 'from', request(messages, HOT), never));
  messages.push(assistant(first.text), user('more'));
  const { bytes, stream } = await host.export('from');
  const file = await new Response(stream).arrayBuffer();
  expect(file.byteLength).toBe(bytes);

  const { engine } = await import('./worker.ts');
  const services = {
    loadEngine: async () => engine,
    generate: fakeGenerate,
    scheduler: new Scheduler({ pause }),
  };
  const stores = new Map<string, MemoryStore>();
  const other = new LocalHost(
    services,
    (key) => stores.get(key) ?? stores.set(key, new MemoryStore()).get(key)!,
  );
  await other.import('there', 'there', new Response(file).body!);
  const back = await other.export('there');
  await host.import('back', 'back', back.stream, {});
  const next = request(messages, HOT);
  const [a, b, c] = [
    await read(await host.turn('from', 'from', next, never)),
    await read(await other.turn('there', 'there', next, never)),
    await read(await host.turn('back', 'back', next, never)),
  ];
  other.close();
  expect(b.ids).toEqual(a.ids);
  expect(c.ids).toEqual(a.ids);
  expect(c.started).toEqual(a.started);
  expect(c.finished.recovered).toBeUndefined();
});

test('a file that is cut or changed is refused by name, and leaves no row and no alarm', async () => {
  const { stream } = await host.export('from');
  const file = new Uint8Array(await new Response(stream).arrayBuffer());
  const changed = file.slice();
  changed[file.length >> 1]! ^= 4;
  for (const [bytes, code] of [
    [file.slice(0, file.length >> 1), 'export_truncated'],
    [changed, 'export_corrupt'],
  ] as const) {
    await expect(host.import('bad', 'bad', new Response(bytes).body!, {})).rejects.toMatchObject({ code });
    expect((await rowsOf('bad')).size).toBe(0);
    const alarm = await runInDurableObject(stub('bad'), (_object, state) => state.storage.getAlarm());
    expect(alarm).toBeNull();
  }
  await expect(host.export('bad')).rejects.toMatchObject({ code: 'session_not_found' });
});

test('a directory lists what was made, until it is deleted or expires; then it holds no byte', async () => {
  const listing = (key: string) => ({ directory: 'mine', key });
  const names = async () => (await host.list('mine', { limit: 10 })).sessions.map(({ id }) => id);
  await host.create('l1', 'l1', { listing: listing('l1') });
  await read(await host.turn('l2', 'l2', request([user('hello')], { listing: listing('l2') }), never));
  await host.fork('l2', { key: 'l3', id: 'l3' }, { listing: listing('l3'), ttlSeconds: 5 });
  expect(await names()).toEqual(['l3', 'l2', 'l1']);
  expect((await host.list('mine', { limit: 1, after: 'l3' })).sessions).toMatchObject([
    { id: 'l2', turns: 1 },
  ]);
  expect((await host.list('others', { limit: 10 })).sessions).toEqual([]);
  await new Promise((resolve) => setTimeout(resolve, 5_100));
  await runDurableObjectAlarm(stub('l3'));
  await expect.poll(names).toEqual(['l2', 'l1']);
  await host.delete('l2');
  await evictDurableObject(env.DIRECTORIES.getByName('mine'));
  expect(await names()).toEqual(['l1']);
  await host.delete('l1');
  expect(await names()).toEqual([]);
  const tables = await runInDurableObject(env.DIRECTORIES.getByName('mine'), (_object, state) =>
    state.storage.sql.exec("SELECT name FROM sqlite_master WHERE name = 'rows'").toArray(),
  );
  expect(tables).toEqual([]);
});

test('evicted at random moments between calls, sixty times: the same answers as one that never was', async () => {
  let seed = 77;
  const random = (): number => {
    seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0;
    return seed / 2 ** 32;
  };
  const messages: ChatMessage[] = [];
  let evictions = 0;
  for (let turn = 0; evictions < 60; turn++) {
    if (turn % 8 === 0) {
      messages.length = 0;
      for (const key of ['calm', 'restless']) if (turn > 0) await host.delete(key);
    }
    messages.push(user(prose(20 + Math.floor(random() * 200), turn)));
    const calm = await read(await host.turn('calm', 'calm', request(messages, HOT), never));
    const restless = await read(await host.turn('restless', 'restless', request(messages, HOT), never));
    expect(restless.ids).toEqual(calm.ids);
    expect(restless.started).toEqual(calm.started);
    messages.push(assistant(calm.text));
    for (const look of [
      () => host.get('restless'),
      () => host.messages('restless'),
      () => host.export('restless'),
    ]) {
      if (random() < 0.5) continue;
      await evictDurableObject(stub('restless'));
      evictions++;
      const seen = await look();
      if ('stream' in seen) await seen.stream.cancel();
    }
  }
  console.log(`seed 77, ${evictions} evictions: equal answers, equal reuse`);
  expect(await host.messages('restless')).toEqual(await host.messages('calm'));
});

test('requests of a key are counted in its directory object, which writes nothing for it', async () => {
  const rates = durableObjectRates(env.DIRECTORIES);
  const all = await Promise.all(Array.from({ length: REQUESTS_BURST + 100 }, () => rates.spend('hasty')));
  const refused = all.filter(({ wait }) => wait > 0);
  // What came back meanwhile is let through.
  expect(refused.length).toBeGreaterThan(0);
  expect(refused.length).toBeLessThanOrEqual(100);
  for (const { wait } of refused) expect(wait).toBeLessThanOrEqual(0.5);
  expect((await rates.spend('calm')).wait).toBe(0);
  await runInDurableObject(env.DIRECTORIES.getByName('hasty'), (_object, state) => {
    expect(state.storage.sql.databaseSize).toBeLessThanOrEqual(4_096);
    expect(new DurableObjectStore(state.storage).ids()).toEqual([]);
  });
});

/** ADKVC_FAULTS=50 for the full count. */
const RESETS = Math.max(6, Number(env.ADKVC_FAULTS ?? 0));
const RESET_SEED = 41;

test(
  `reset by the platform at ${RESETS} random moments of a turn, seed ${RESET_SEED}: the same tokens as without, no lock and no memory is stuck`,
  async () => {
    let seed = RESET_SEED;
    const random = (): number => {
      seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0;
      return seed / 2 ** 32;
    };
    const messages: ChatMessage[] = [];
    const held = engine.live.size;
    let interrupted = 0;
    for (let n = 0; n < RESETS; n++) {
      if (n % 5 === 0) {
        messages.length = 0;
        for (const key of ['steady', 'reset']) if (n > 0) await host.delete(key);
      }
      messages.push(user(prose(100 + Math.floor(random() * 1_200), n)));
      const asked = request(messages, { maxTokens: 120, sampling: { ...GREEDY, temperature: 1, seed: n } });
      const steady = await read(await host.turn('steady', 'steady', asked, never));
      const after = Math.floor(random() * 140);
      let events = 0;
      let last: TurnEvent | undefined;
      for await (const event of await host.turn('reset', 'reset', asked, never)) {
        last = event;
        if (events++ !== after) continue;
        await runInDurableObject(stub('reset'), (_object, state) => state.abort('reset by the test')).catch(
          () => {},
        );
      }
      if (last!.type === 'failed') {
        interrupted++;
        expect(last!.error.code).toBe('turn_interrupted');
      }
      const again = await read(await host.turn('reset', 'reset', asked, never));
      expect(again.text).toBe(steady.text);
      expect(again.ids).toEqual(steady.ids);
      messages.push(assistant(steady.text));
      expect(scheduler.running).toBe(0);
    }
    expect(await host.messages('reset')).toEqual(await host.messages('steady'));
    // One cache for each of the two conversations.
    expect(engine.live.size - held).toBeLessThanOrEqual(2);
    expect(interrupted).toBeGreaterThan(RESETS / 3);
    console.log(`seed ${RESET_SEED}, ${RESETS} resets, ${interrupted} of them in mid-turn`);
  },
  60_000 + RESETS * 5_000,
);

test('an alarm during a turn waits for it', async () => {
  const whole = await read(await host.turn('quiet', 'quiet', LONG, never));
  const events = await host.turn('alarmed', 'alarmed', { ...LONG, implicit: true, ttlSeconds: 1 }, never);
  const ids: number[] = [];
  for await (const event of events) {
    if (event.type === 'token') ids.push(event.id);
    if (ids.length === 20) await runDurableObjectAlarm(stub('alarmed'));
  }
  expect(ids).toEqual(whole.ids);
});
