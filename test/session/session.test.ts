import { expect, test } from 'vitest';
import type { ChatMessage } from '../../src/engine/types.ts';
import type { TurnEvent } from '../../src/session/api.ts';
import { FIRST_FREE_ROW, readHead, writeHead } from '../../src/session/head.ts';
import { MAX_WAITING_TURNS_PER_SESSION } from '../../src/session/limits.ts';
import { LocalHost, MAX_IDLE_SESSIONS } from '../../src/session/local-host.ts';
import { RowAllocator, RowKind, RowStream } from '../../src/session/row.ts';
import { Session } from '../../src/session/session.ts';
import { readState, STATE_VERSION } from '../../src/session/state.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import { FakeEngine } from '../helpers/fake-engine.ts';
import { assistant, GREEDY, pause, prose, read, request, system, user, World } from '../helpers/sessions.ts';

const never = new AbortController().signal;
const LONG = { maxTokens: 1_500, sampling: { ...GREEDY, temperature: 1, seed: 3 } };

test('a turn: started, tokens, finished after the commit, with exact usage', async () => {
  const world = new World();
  const events: TurnEvent[] = [];
  const stream = await world.host.turn('k', 'one', request([user('hello')]), never);
  for await (const event of stream) {
    events.push(event);
    if (event.type === 'finished') expect((await world.host.messages('k')).length).toBe(2);
  }
  const { finished, started, ids, text } = await read(
    (async function* () {
      yield* events;
    })(),
  );
  expect(started).toEqual({ type: 'started', promptTokens: expect.any(Number), cachedTokens: 0 });
  expect(finished.usage).toEqual({
    promptTokens: started.promptTokens,
    completionTokens: ids.length,
    cachedTokens: 0,
  });
  expect(finished.rows.written).toBeGreaterThan(0);
  expect(finished.recovered).toBeUndefined();
  expect(await world.host.messages('k')).toEqual([user('hello'), assistant(text)]);
  const info = await world.host.get('k');
  expect(info).toMatchObject({ id: 'one', model: 'fake', turns: 1, expiresAt: null, createdAt: world.time });
  expect(info.title).toBe('hello');
  expect(info.tokens).toBe(started.promptTokens + ids.length);
  expect(info.storedBytes).toBe(world.store().size().bytes);
});

test('cachedTokens is what was not fed again, and nothing is fed twice', async () => {
  const world = new World();
  const first = await world.turn([user(prose(300))]);
  const fed = world.engine.fed;
  expect(fed).toBe(first.started.promptTokens + first.ids.length - 1);
  const second = await world.turn([user(prose(300)), assistant(first.text), user('more')]);
  expect(second.started.cachedTokens).toBe(fed);
  expect(world.engine.fed - fed).toBe(second.started.promptTokens - fed + second.ids.length - 1);
});

test('append sends only what is new', async () => {
  const [whole, append] = [new World(), new World()];
  const a = await whole.turn([user('hello')]);
  await append.turn([user('hello')]);
  const b = await whole.turn([user('hello'), assistant(a.text), user('more')]);
  const c = await append.turn([user('more')], { mode: 'append' });
  expect(c.ids).toEqual(b.ids);
  expect(c.started).toEqual(b.started);
});

test('a request that is sent again gets the same answer, from a checkpoint before it', async () => {
  const world = new World();
  const messages: ChatMessage[] = [user(prose(200))];
  const first = await world.turn(messages, LONG_SHORT);
  messages.push(assistant(first.text), user(prose(200, 2)));
  const second = await world.turn(messages, LONG_SHORT);
  const again = await world.turn(messages, LONG_SHORT);
  expect(again.ids).toEqual(second.ids);
  expect(again.started.cachedTokens).toBe(second.started.cachedTokens);
  expect(again.finished.recovered).toMatchObject({ from: second.started.cachedTokens });
  expect((await world.host.messages('k')).length).toBe(4);
});
const LONG_SHORT = { maxTokens: 40, sampling: { ...GREEDY, temperature: 1, seed: 3 } };

test('regenerate with another seed, edit, and cut: always as if the conversation had gone that way from the start', async () => {
  const world = new World();
  const messages: ChatMessage[] = [system('s')];
  for (let turn = 0; turn < 5; turn++) {
    messages.push(user(prose(150, turn)));
    messages.push(assistant((await world.turn(messages, LONG_SHORT)).text));
  }
  const ways: { messages: ChatMessage[]; seed: number }[] = [
    { messages: messages.slice(0, 10), seed: 9 },
    { messages: [...messages.slice(0, 7), user('edited')], seed: 3 },
    { messages: messages.slice(0, 4), seed: 4 },
    { messages: [...messages.slice(0, 3), user('edited early')], seed: 3 },
  ];
  for (const way of ways) {
    const options = { maxTokens: 200, sampling: { ...GREEDY, temperature: 1, seed: way.seed } };
    const got = await world.turn(way.messages, options);
    // The same conversation, said in another session from nothing, with the answers' ids unknown to it.
    const log = await world.host.messages('k');
    expect(log).toEqual([...way.messages, assistant(got.text)]);
    expect(got.finished.recovered?.reason).toContain('cut');
    expect(got.started.cachedTokens).toBe(got.finished.recovered!.from);
    const again = await world.turn(way.messages, options);
    expect(again.ids).toEqual(got.ids);
    world.reopen();
    const asleep = await world.turn(way.messages, options);
    expect(asleep.ids).toEqual(got.ids);
  }
});

test('a conversation that was cut stands where one that never said the rest stands: equal states, bit for bit', async () => {
  const [straight, bent] = [new World(), new World()];
  const options = { maxTokens: 60 };
  const a = await straight.turn([user(prose(400))], options);
  await bent.turn([user(prose(400))], options);
  await bent.turn([user(prose(400)), assistant(a.text), user(prose(500, 5))], options);
  const question = [user(prose(400)), assistant(a.text), user('and now?')];
  const b = await straight.turn(question, options);
  const c = await bent.turn(question, options);
  expect(c.ids).toEqual(b.ids);
  const [x, y] = [...straight.engine.live, ...bent.engine.live];
  expect(y!.header).toEqual(x!.header);
  for (let layer = 0; layer < x!.layers; layer++) {
    expect(y!.hot(layer)).toEqual(x!.hot(layer));
    for (let s = 0; s < x!.segmentsOf(layer); s++) expect(y!.block(layer, s)).toEqual(x!.block(layer, s));
  }
});

test('messages that share no turn: session_diverged and nothing is lost; overwrite begins anew', async () => {
  const world = new World();
  await world.turn([user('hello')]);
  const before = await world.host.messages('k');
  await expect(world.turn([user('other')])).rejects.toMatchObject({ code: 'session_diverged' });
  expect(await world.host.messages('k')).toEqual(before);
  const { text } = await world.turn([user('other')], { overwrite: true });
  expect(await world.host.messages('k')).toEqual([user('other'), assistant(text)]);
});

test('an aborted answer is kept as far as it came, and can be gone on from', async () => {
  const world = new World();
  const whole = await world.turn([user('hello')], LONG, 'whole');
  const controller = new AbortController();
  const events: TurnEvent[] = [];
  let text = '';
  for await (const event of await world.host.turn(
    'k',
    'k',
    request([user('hello')], LONG),
    controller.signal,
  )) {
    events.push(event);
    if (event.type === 'token') text += event.text;
    if (event.type === 'token' && events.length === 30) controller.abort();
  }
  expect(events.at(-1)).toMatchObject({ type: 'failed', error: { code: 'aborted' } });
  const tokens = events.filter((event) => event.type === 'token');
  expect(tokens.length).toBeLessThan(50);
  expect(tokens.map(({ id }) => id)).toEqual(whole.ids.slice(0, tokens.length));
  expect(await world.host.messages('k')).toEqual([user('hello'), assistant(text)]);
  world.reopen();
  const more = await world.turn([user('hello'), assistant(text), user('go on')]);
  expect(more.started.cachedTokens).toBe(
    events.findLast((event) => event.type === 'started')!.promptTokens + tokens.length - 1,
  );
  expect(more.finished.recovered).toBeUndefined();
});

test('a turn aborted during a long prefill goes on from where it stood', async () => {
  const world = new World();
  const controller = new AbortController();
  const prompt = [user(prose(3_000))];
  for await (const event of await world.host.turn('k', 'k', request(prompt), controller.signal))
    if (event.type === 'prefill' && event.position >= 1_500) controller.abort();
  world.reopen();
  const fed = world.engine.fed;
  expect(fed).toBeLessThan(2_000);
  const again = await world.turn(prompt);
  expect(again.started.cachedTokens).toBe(fed);
  expect(again.ids).toEqual((await world.turn(prompt, {}, 'straight')).ids);
});

test('after a crash in a long prefill the turn goes on from the last checkpoint, at most 1,024 tokens back', async () => {
  const world = new World();
  const prompt = [user(prose(3_000))];
  let position = 0;
  world.engine.onSlice = (cache) => {
    position = cache.position;
    if (position >= 2_500) throw new Error('crash');
  };
  await expect(world.turn(prompt)).rejects.toThrow('crash');
  world.engine.onSlice = undefined;
  world.reopen();
  const again = await world.turn(prompt);
  expect(position - again.started.cachedTokens).toBeLessThanOrEqual(1_024);
  expect(again.started.cachedTokens).toBeGreaterThan(0);
  expect(again.finished.recovered).toBeUndefined();
  expect(again.ids).toEqual((await world.turn(prompt, {}, 'straight')).ids);
  expect(world.engine.live.size).toBe(2);
});

test('a crash in mid-answer leaves the last commit, and the same request gives the same tokens', async () => {
  const world = new World();
  const first = await world.turn([user('hello')]);
  const next = [user('hello'), assistant(first.text), user('more')];
  let count = 0;
  world.engine.onSlice = () => {
    if (++count === 30) throw new Error('crash');
  };
  await expect(world.turn(next, LONG)).rejects.toThrow('crash');
  world.engine.onSlice = undefined;
  expect(await world.host.messages('k')).toHaveLength(2);
  world.reopen();
  const again = await world.turn(next, { ...LONG, maxTokens: 100 });
  await world.turn([user('hello')], {}, 'straight');
  expect(again.ids).toEqual((await world.turn(next, { ...LONG, maxTokens: 100 }, 'straight')).ids);
});

test('an interrupted answer that is asked for again is not computed again: same tokens, from the last checkpoint', async () => {
  const world = new World();
  const straight = await world.turn([user('hello')], LONG, 'straight');
  expect(straight.ids.length).toBeGreaterThan(1_300);
  // A crash: only the checkpoint in mid-answer is left.
  world.engine.onSlice = (cache) => {
    if (cache.position >= 1_250) throw new Error('crash');
  };
  await expect(world.turn([user('hello')], LONG)).rejects.toThrow('crash');
  world.engine.onSlice = undefined;
  world.reopen();
  let fed = world.engine.fed;
  const again = await world.turn([user('hello')], LONG);
  expect(again.ids).toEqual(straight.ids);
  expect(again.text).toEqual(straight.text);
  expect(again.started.cachedTokens).toBe(again.started.promptTokens);
  expect(again.finished.usage).toMatchObject({ completionTokens: straight.ids.length });
  expect(world.engine.fed - fed).toBeLessThan(straight.ids.length - 1_000);
  expect(again.finished.recovered).toBeUndefined();
  // Complete now: asked once more, it is sampled anew, as it is under another seed or with penalties.
  fed = world.engine.fed;
  expect((await world.turn([user('hello')], LONG)).ids).toEqual(straight.ids);
  expect(world.engine.fed - fed).toBeGreaterThan(straight.ids.length - 1);
});

test('store: false leaves no row, and does not touch a conversation that is stored', async () => {
  const world = new World();
  const { ids } = await world.turn([user('hello')], { store: false });
  expect(world.store().ids()).toEqual([]);
  expect(world.engine.live.size).toBe(0);
  await expect(world.host.get('k')).rejects.toMatchObject({ code: 'session_not_found' });
  const stored = await world.turn([user('hello')]);
  expect(stored.ids).toEqual(ids);
  const before = world.store().counters.rowsWritten;
  const aside = await world.turn([user('hello'), assistant(stored.text), user('aside')], { store: false });
  expect(aside.started.cachedTokens).toBeGreaterThan(0);
  expect(world.store().counters.rowsWritten).toBe(before);
  expect(await world.host.messages('k')).toHaveLength(2);
  const next = await world.turn([user('hello'), assistant(stored.text), user('aside')]);
  expect(next.ids).toEqual(aside.ids);
});

test('a session that does not exist: session_not_found, nothing written, no object kept', async () => {
  const world = new World();
  await expect(world.host.get('k')).rejects.toMatchObject({ code: 'session_not_found' });
  await expect(world.host.messages('k')).rejects.toMatchObject({ code: 'session_not_found' });
  await expect(world.host.delete('k')).rejects.toMatchObject({ code: 'session_not_found' });
  expect(world.store().counters.rowsWritten).toBe(0);
});

test('create: once; its configuration is kept by later turns', async () => {
  const world = new World();
  const info = await world.host.create('k', 'mine', { cache: { policy: 'full', seed: 5 }, ttlSeconds: 60 });
  expect(info).toMatchObject({
    id: 'mine',
    turns: 0,
    tokens: 0,
    cache: null,
    expiresAt: world.time + 60_000,
  });
  await expect(world.host.create('k', 'mine', {})).rejects.toMatchObject({ code: 'session_exists' });
  await world.turn([user('hello')], { cache: { policy: 'window' } });
  expect(await world.host.get('k')).toMatchObject({ cacheConfig: { policy: 'full', seed: 5 } });
});

test('turns of one session queue; too many are refused with session_busy', async () => {
  const world = new World();
  const running = await world.host.turn('k', 'k', request([user('0')], LONG_SHORT), never);
  const waiting = Array.from({ length: MAX_WAITING_TURNS_PER_SESSION }, (_, i) =>
    world.turn([user(String(i + 1))], { mode: 'append' }),
  );
  await expect(world.turn([user('x')], { mode: 'append' })).rejects.toMatchObject({
    code: 'session_busy',
    data: { retryAfter: expect.any(Number) },
  });
  await read(running);
  await Promise.all(waiting);
  const messages = await world.host.messages('k');
  expect(messages.filter(({ role }) => role === 'user').map(({ content }) => content)).toEqual([
    '0',
    '1',
    '2',
    '3',
    '4',
  ]);
});

test('reads during a turn see the last commit', async () => {
  const world = new World();
  await world.turn([user('hello')]);
  const running = await world.host.turn(
    'k',
    'k',
    request([user('more')], { ...LONG_SHORT, mode: 'append' }),
    never,
  );
  expect(await world.host.messages('k')).toHaveLength(2);
  expect(await world.host.get('k')).toMatchObject({ turns: 1, busy: true });
  await read(running);
  expect(await world.host.messages('k')).toHaveLength(4);
  expect(await world.host.get('k')).toMatchObject({ turns: 2, busy: false });
});

test('before its first commit a session is there with nothing said, and nothing of that is stored', async () => {
  const world = new World();
  const abort = new AbortController();
  const asked = request([user('hello')], { ...LONG, maxTokens: 5_000 });
  const running = await world.host.turn('k', 'one', asked, abort.signal);
  const info = await world.host.get('k');
  expect(info).toMatchObject({ id: 'one', title: 'hello', turns: 0, tokens: 0, busy: true, storedBytes: 0 });
  expect(await world.host.messages('k')).toEqual([]);
  expect(await world.host.cacheMap('k')).toMatchObject({ position: 0, text: [] });
  await world.host.fork('k', { key: 'copy', id: 'copy' });
  expect(await world.host.get('copy')).toMatchObject({ id: 'copy', title: '', turns: 0, busy: false });
  expect(world.store().ids()).toEqual([]);
  // Stopped, it is never missing until what was said is stored.
  const events = running[Symbol.asyncIterator]();
  for (;;) if ((await events.next()).value.type === 'token') break;
  abort.abort();
  await expect.poll(async () => (await world.host.get('k')).busy).toBe(false);
  expect(await world.host.messages('k')).toMatchObject([{ role: 'user' }, { role: 'assistant' }]);
});

test('a first turn that fails leaves no session', async () => {
  const world = new World();
  world.engine.createCache = () => {
    throw new Error('no cache');
  };
  await expect(world.turn([user('hello')])).rejects.toThrow('no cache');
  await expect(world.host.get('k')).rejects.toMatchObject({ code: 'session_not_found' });
});

test('delete ends the running turn and sends the waiting away, then no byte is left', async () => {
  const world = new World();
  await world.turn([user('hello')]);
  const running = await world.host.turn(
    'k',
    'k',
    request([user('more')], { ...LONG, mode: 'append' }),
    never,
  );
  const waiting = world.turn([user('waits')], { mode: 'append' });
  const sent = expect(waiting).rejects.toMatchObject({ code: 'session_not_found' });
  await pause(5);
  await world.host.delete('k');
  await sent;
  expect(world.store().ids()).toEqual([]);
  const events: TurnEvent[] = [];
  for await (const event of running) events.push(event);
  expect(events.at(-1)).toMatchObject({ type: 'failed', error: { code: 'session_not_found' } });
  expect(world.engine.live.size).toBe(0);
  await expect(world.host.get('k')).rejects.toMatchObject({ code: 'session_not_found' });
});

test('a turn that comes while a session is being deleted begins a new one, and the deletion is told as done', async () => {
  const world = new World();
  const running = await world.host.turn('k', 'k', request([user('hello')], LONG), never);
  const gone = world.host.delete('k');
  const next = world.turn([user('anew')]);
  await gone;
  await next;
  await expect(read(running)).rejects.toThrow('session_not_found');
  expect((await world.host.messages('k'))[0]).toEqual(user('anew'));
});

test('what is read while a session is being deleted is not kept', async () => {
  const world = new World();
  const store = new MemoryStore();
  const destroy = store.destroy.bind(store);
  store.destroy = async () => {
    await pause(5);
    await destroy();
  };
  const alarm = { get: async () => null, set: async () => {}, clear: async () => {} };
  const session = new Session('k', world.services, store, alarm);
  await session.turn('k', request([user('secret')]), never, () => {});
  const gone = session.delete();
  await pause(0);
  session.messages();
  await gone;
  expect(() => session.messages()).toThrow('no such session');
});

test('implicit sessions live an idle hour; the alarm waits for a running turn and moves with use', async () => {
  const world = new World();
  await world.turn([user('hello')], { implicit: true });
  expect((await world.host.get('k')).expiresAt).toBe(world.time + 3_600_000);
  world.time += 3_000_000;
  await world.turn([user('more')], { implicit: true, mode: 'append' });
  world.time += 3_000_000;
  await world.host.resume(['k']);
  expect(await world.host.get('k')).toMatchObject({ turns: 2 });
  const running = await world.host.turn(
    'k',
    'k',
    request([user('x')], { ...LONG, implicit: true, mode: 'append' }),
    never,
  );
  world.time += 3_000_000;
  await world.host.resume(['k']);
  expect(world.store().ids().length).toBeGreaterThan(0);
  await read(running);
  world.time += 3_700_000;
  await expect(world.host.get('k')).rejects.toMatchObject({ code: 'session_not_found' });
  await world.host.resume(['k']);
  expect(world.store().ids()).toEqual([]);
});

test('a turn in a session that has expired begins a new one', async () => {
  const world = new World();
  await world.turn([user('hello')], { implicit: true });
  world.time += 3_700_000;
  await world.turn([user('another start')], { implicit: true });
  expect((await world.host.messages('k'))[0]).toEqual(user('another start'));
});

test('sessions that are made and read hold few files open, and none is closed under a call that waits', async () => {
  const world = new World();
  let engine: (engine: FakeEngine) => void = () => {};
  let loading: Promise<FakeEngine> | undefined;
  const open = new Map<string, number>();
  const count = (key: string, by: number) => open.set(key, (open.get(key) ?? 0) + by);
  const services = { ...world.services, loadEngine: async () => loading ?? world.engine };
  const host = new LocalHost(services, (key) => {
    count(key, 1);
    return Object.assign(world.store(key), { close: () => void count(key, -1) });
  });
  const total = () => [...open.values()].reduce((sum, n) => sum + n, 0);
  const keys = Array.from({ length: 2 * MAX_IDLE_SESSIONS }, (_, i) => `s${i}`);
  for (const key of keys) await host.create(key, key, {});
  expect(total()).toBeLessThanOrEqual(MAX_IDLE_SESSIONS);
  await Promise.all(keys.map((key) => host.get(key)));
  expect(total()).toBeLessThanOrEqual(MAX_IDLE_SESSIONS);

  loading = new Promise((resolve) => (engine = resolve));
  const made = host.create('slow', 'slow', {});
  for (const key of keys) await host.get(key);
  expect(open.get('slow')).toBe(1);
  engine(world.engine);
  expect(await made).toMatchObject({ id: 'slow' });
  host.close();
  expect(total()).toBe(0);
});

test('a session that has expired gives its id to one that is created, imported or forked', async () => {
  const world = new World();
  await world.turn([user('source')], {}, 'source');
  for (const make of [
    () => world.host.create('k', 'k', {}),
    () => world.host.fork('source', { key: 'k', id: 'k' }),
  ]) {
    await world.host.create('k', 'k', { ttlSeconds: 60 });
    await expect(make()).rejects.toMatchObject({ code: 'session_exists' });
    world.time += 60_001;
    await expect(world.host.get('k')).rejects.toMatchObject({ code: 'session_not_found' });
    expect(await make()).toMatchObject({ id: 'k', expiresAt: null });
    await world.host.delete('k');
  }
});

test('another model, other numerics: the session is rebuilt from its log and says so', async () => {
  for (const [engine, word] of [
    [new FakeEngine({ numerics: 'fake-2' }), 'fake-2'],
    [new FakeEngine({ fingerprint: 'other-weights' }), 'model'],
  ] as const) {
    const world = new World();
    const first = await world.turn([user(prose(300))]);
    const fed = world.engine.fed;
    world.reopen(engine);
    const next = [user(prose(300)), assistant(first.text), user('more')];
    const second = await world.turn(next);
    expect(second.started.cachedTokens).toBe(0);
    expect(second.finished.recovered).toMatchObject({ from: 0, replayed: fed });
    expect(second.finished.recovered!.reason).toContain('foreign');
    expect(second.finished.recovered!.reason).toContain(word);
    world.reopen();
    const third = await world.turn([...next, assistant(second.text), user('last')]);
    expect(third.finished.recovered).toBeUndefined();
    expect(third.started.cachedTokens).toBeGreaterThan(300);
  }
});

test('states of an older version are passed over: the session is rebuilt from its log and says so', async () => {
  const world = new World();
  const first = await world.turn([user(prose(300))]);
  const fed = world.engine.fed;
  const store = world.store();
  const { head } = readHead(store)!;
  expect(head.states.length).toBeGreaterThan(0);
  store.transaction(() => {
    const states = head.states.map((entry) => {
      const { version, ...older } = readState(store, entry);
      expect(version).toBe(STATE_VERSION);
      const ids = store.ids();
      const stream = new RowStream(store, new RowAllocator(ids, new Set(ids), FIRST_FREE_ROW), RowKind.state);
      stream.push(new TextEncoder().encode(JSON.stringify(older)));
      return { ...entry, refs: stream.end() };
    });
    writeHead(store, { ...head, states });
  });
  world.reopen();
  const second = await world.turn([user(prose(300)), assistant(first.text), user('more')]);
  expect(second.finished.recovered).toMatchObject({ from: 0, replayed: fed });
  expect(second.finished.recovered!.reason).toContain(`has version 1, this is version ${STATE_VERSION}`);
});

test('what does not fit is refused before anything grows, naming the tokens that would', async () => {
  const world = new World({ contextLength: 500 });
  await expect(world.turn([user(prose(600))])).rejects.toMatchObject({
    code: 'context_length_exceeded',
    data: { limit: 499 },
  });
  expect(
    (await world.turn([user(prose(400))], { maxTokens: 5_000 })).finished.usage.completionTokens,
  ).toBeLessThan(100);
  const small = new World({ memoryBytes: 40_000 });
  const refusal = await small.turn([user(prose(3_000))]).catch((error) => error);
  expect(refusal).toMatchObject({ code: 'context_length_exceeded' });
  const { limit } = refusal.data;
  await small.turn([user(prose(limit - 40))], { maxTokens: 20 }, 'other');
  expect(small.store().ids()).toEqual([]);
});

test('many conversations in little memory: all are served, idle caches are forgotten, and all say the same as alone', async () => {
  const size = new FakeEngine().worstCaseBytes({} as never, 200);
  const crowd = new World({ memoryBytes: size * 2.5 });
  const alone = new World();
  const texts = new Map<string, ChatMessage[]>();
  for (let round = 0; round < 3; round++)
    await Promise.all(
      Array.from({ length: 8 }, async (_, i) => {
        const messages = texts.get(`c${i}`) ?? [];
        texts.set(`c${i}`, messages);
        messages.push(user(prose(30, i * 10 + round)));
        const a = await crowd.turn(messages, { maxTokens: 12 }, `c${i}`);
        const b = await alone.turn(messages, { maxTokens: 12 }, `c${i}`);
        expect(a.ids).toEqual(b.ids);
        expect(a.started).toEqual(b.started);
        messages.push(assistant(a.text));
      }),
    );
  expect(crowd.engine.live.size).toBeLessThan(8);
  expect(alone.engine.live.size).toBe(8);
});

test('a reader who lets too much pile up ends the turn; what was generated is kept', async () => {
  const { streamTurn } = await import('../../src/session/turn-stream.ts');
  const seen: TurnEvent[] = [];
  let aborted = false;
  const stream = await streamTurn(
    async (emit, signal) => {
      for (let i = 0; i < 1_000 && !signal.aborted; i++) {
        emit({ type: 'token', id: i, text: 'word' });
        await pause(0);
      }
      aborted = signal.aborted;
    },
    never,
    2_000,
  );
  while (!aborted) await pause(1);
  for await (const event of stream) seen.push(event);
  expect(seen.length).toBeLessThan(60);
  expect(seen.at(-1)).toMatchObject({ type: 'failed', error: { code: 'slow_reader' } });
});

test('a named message that is sent again after its answer was lost is said once, and answered with the same tokens', async () => {
  const world = new World();
  await world.turn([user(prose(200))], {});
  const more = {
    mode: 'append',
    idempotencyKey: 'm1',
    sampling: { ...GREEDY, temperature: 1, seed: 4 },
  } as const;
  const first = await world.turn([user('go on')], more);
  world.reopen();
  const again = await world.turn([user('go on')], more);
  expect(again.ids).toEqual(first.ids);
  expect(again.started.cachedTokens).toBeGreaterThan(200);
  expect((await world.host.messages('k')).length).toBe(4);
  // Another name, or none, says it again; and so does another message under the same name.
  for (const [i, changed] of [{ idempotencyKey: 'm2' }, { idempotencyKey: undefined }].entries()) {
    await world.turn([user('go on')], { ...more, ...changed } as typeof more);
    expect((await world.host.messages('k')).length).toBe(6 + 2 * i);
  }
  await world.turn([user('else')], more);
  await world.turn([user('go on')], more);
  expect((await world.host.messages('k')).length).toBe(12);
});
