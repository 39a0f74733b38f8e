import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import type { ChatMessage } from '../../src/engine/types.ts';
import { FIRST_FREE_ROW, readHead } from '../../src/session/head.ts';
import { SPILL_TOKENS } from '../../src/session/limits.ts';
import { readState, refsOf } from '../../src/session/state.ts';
import { BlockFileStore } from '../../src/session/store/block-file.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import { NodeSqliteStore } from '../../src/session/store/node-sqlite.ts';
import type { SessionStore } from '../../src/session/store/session-store.ts';
import { Files } from '../helpers/crashing-file.ts';
import { bytesOf, rowsOf, storeOf } from '../helpers/held-state.ts';
import { assistant, GREEDY, prose, user, World } from '../helpers/sessions.ts';

/** Answers long enough for several spills, across the end of an epoch; an end of its own would stop them. */
const OPTIONS = { maxTokens: 150, sampling: { ...GREEDY, temperature: 1, seed: 4 } };
const SHAPE = { layers: 3, tokenBytes: 8 };

/** Every row that a stored state needs. */
function named(store: SessionStore): Set<number> {
  const rows = new Set<number>();
  for (const entry of readHead(store)!.head.states)
    for (const [row] of [...entry.refs, ...refsOf(readState(store, entry))]) rows.add(row);
  return rows;
}

/** What the resident cache of a world's only session holds. */
const held = (world: World): unknown[] => bytesOf([...world.engine.live][0]!);

/** Tells of each transaction when it is over. */
class WatchedStore extends MemoryStore {
  onCommit: (() => void) | undefined;
  override transaction<T>(fn: () => T): T {
    const result = super.transaction(fn);
    this.onCommit?.();
    return result;
  }
}

/** A conversation of two turns, forked in mind by a third that is asked again: two kept states at least. */
async function scene(store: SessionStore = new WatchedStore()) {
  const world = new World(SHAPE);
  world.stores.set('k', store);
  const messages: ChatMessage[] = [user(prose(300, 1))];
  messages.push(assistant((await world.turn(messages, OPTIONS)).text));
  messages.push(user(prose(90, 2)));
  messages.push(assistant((await world.turn(messages, OPTIONS)).text));
  messages.push(user(prose(20, 3)));
  return { world, store, messages };
}

test('what is spilled belongs to nobody before the commit, and the commit goes on from it', async () => {
  const { world, store, messages } = await scene();
  const watched = store as WatchedStore;
  const head = readHead(store)!.head;
  const before = rowsOf(store);
  const mine = named(store);
  expect(head.states.length).toBeGreaterThan(1);
  const written: number[] = [];
  let last = store.counters.rowsWritten;
  let bytes = store.counters.bytesWritten;
  const begin = { rows: last, bytes };
  let atCommit = 0;
  watched.onCommit = () => {
    written.push(store.counters.rowsWritten - last);
    atCommit = store.counters.bytesWritten - bytes;
    last = store.counters.rowsWritten;
    bytes = store.counters.bytesWritten;
    if (readHead(store)!.head.log.fed !== head.log.fed) return;
    // A spill: the head and all that it names are as they were.
    for (const [id, row] of before)
      if (id < FIRST_FREE_ROW || mine.has(id)) expect(store.get(id)).toEqual(row);
  };
  const outcome = await world.turn(messages, OPTIONS);
  expect(outcome.ids.length).toBeGreaterThan(5 * SPILL_TOKENS);
  expect(written.length).toBeGreaterThan(5);
  expect(outcome.finished.rows).toEqual({ written: last - begin.rows, bytes: bytes - begin.bytes });
  // Without spills the commit would have written all of it.
  expect(atCommit).toBeLessThan(0.75 * (bytes - begin.bytes));
  const exact = readState(store, readHead(store)!.head.states.at(-1)!).exact.pieces;
  expect(exact.length).toBeGreaterThan(1);
});

test('ended between any two transactions of a turn: no committed turn is lost, the same request gives the same tokens and states', async () => {
  const { world, store, messages } = await scene();
  const copies: Map<number, Uint8Array>[] = [];
  (store as WatchedStore).onCommit = () => copies.push(rowsOf(store));
  const undisturbed = await world.turn(messages, OPTIONS);
  const end = held(world);
  expect(copies.length).toBeGreaterThan(5);
  // The last one is of the commit.
  for (const rows of copies.slice(0, -1)) {
    const next = new World(SHAPE);
    next.stores.set('k', storeOf(rows));
    expect(await next.host.messages('k')).toEqual(messages.slice(0, -1));
    const outcome = await next.turn(messages, OPTIONS);
    expect(outcome.started).toEqual(undisturbed.started);
    expect(outcome.ids).toEqual(undisturbed.ids);
    expect(outcome.finished.recovered).toBeUndefined();
    expect(held(next)).toEqual(end);
    // Rows that were left over are overwritten: no more of them than without the crash.
    expect(next.store().ids().length).toBeLessThanOrEqual(world.store().ids().length);
    next.reopen();
    await next.turn([...messages, assistant(outcome.text), user('on')], OPTIONS);
    expect(next.engine.live.size).toBe(1);
  }
});

test('a session that begins has nothing spilled: rows without a head would be nobody’s', async () => {
  const world = new World(SHAPE);
  const store = new WatchedStore();
  world.stores.set('k', store);
  let transactions = 0;
  store.onCommit = () => {
    transactions++;
    expect(readHead(store)).toBeDefined();
  };
  await world.turn([user(prose(100))], OPTIONS);
  expect(transactions).toBe(1);
});

test('with store: false nothing is spilled, either', async () => {
  const { world, store, messages } = await scene();
  const { rowsWritten } = store.counters;
  await world.turn(messages, { ...OPTIONS, store: false });
  expect(store.counters.rowsWritten).toBe(rowsWritten);
});

test('an export that is opened before or between spills is of the last commit', async () => {
  const { world, store, messages } = await scene();
  const whole = async (stream: ReadableStream<Uint8Array>) =>
    new Uint8Array(await new Response(stream).arrayBuffer());
  const expected = await whole((await world.host.export('k')).stream);
  const streams = [(await world.host.export('k')).stream];
  let spills = 0;
  const opened: Promise<void>[] = [];
  (store as WatchedStore).onCommit = () => {
    if (++spills === 3) opened.push(world.host.export('k').then(({ stream }) => void streams.push(stream)));
  };
  await world.turn(messages, OPTIONS);
  await Promise.all(opened);
  expect(spills).toBeGreaterThan(4);
  expect(streams.length).toBe(2);
  for (const stream of streams) expect(await whole(stream)).toEqual(expected);
});

test('deleted, or aborted, after a spill: no row stays, or the answer so far', async () => {
  for (const how of ['delete', 'abort'] as const) {
    const { world, store, messages } = await scene();
    const before = await world.host.messages('k');
    const controller = new AbortController();
    let gone: Promise<void> | undefined;
    (store as WatchedStore).onCommit = () => {
      if (how === 'delete') gone ??= world.host.delete('k');
      else controller.abort();
    };
    const request = { ...OPTIONS, mode: 'whole' as const };
    const events = await world.host.turn(
      'k',
      'id-k',
      { messages, overwrite: false, store: true, implicit: false, stop: [], ...request },
      controller.signal,
    );
    for await (const _ of events);
    await gone;
    if (how === 'delete') expect(store.ids()).toEqual([]);
    else {
      const said = await world.host.messages('k');
      expect(said.slice(0, before.length)).toEqual(before);
      (store as WatchedStore).onCommit = undefined;
      const straight = (await scene()).world.turn(messages, OPTIONS);
      expect((await world.turn(messages, OPTIONS)).ids).toEqual((await straight).ids);
    }
    expect(world.engine.live.size).toBeLessThanOrEqual(1);
  }
});

test('asked again and edited after spills: as if the conversation had gone that way from the start', async () => {
  const { world, messages } = await scene();
  await world.turn(messages, OPTIONS);
  const edited = [...messages.slice(0, 2), user(prose(40, 8))];
  const otherwise = { ...OPTIONS, sampling: { ...OPTIONS.sampling, seed: 6 } };
  for (const asked of [messages, edited]) {
    const outcome = await world.turn(asked, otherwise);
    const other = await scene();
    const straight = await other.world.turn(asked, otherwise);
    expect(outcome.ids).toEqual(straight.ids);
    expect(held(world)).toEqual(held(other.world));
  }
});

test('every store: a conversation with spills, asleep between its turns, says and stores what one in memory does', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'adkvc-spill-'));
  const files = new Files();
  try {
    const memory = await scene();
    const expected = await memory.world.turn(memory.messages, OPTIONS);
    const end = held(memory.world);
    for (const open of [
      () => new NodeSqliteStore(join(folder, 'k.sqlite')),
      () => new BlockFileStore('k', files),
    ]) {
      const other = await scene(open());
      other.world.reopen();
      const outcome = await other.world.turn(other.messages, OPTIONS);
      expect(outcome.ids).toEqual(expected.ids);
      expect(outcome.finished.rows).toEqual(expected.finished.rows);
      other.world.reopen();
      // Restored once more: the state that was stored is the one that was reached.
      const on = [...other.messages, assistant(outcome.text), user('on')];
      const straight = await memory.world.turn(on, OPTIONS);
      expect((await other.world.turn(on, OPTIONS)).ids).toEqual(straight.ids);
      other.world.host.close();
      memory.world.reopen();
      await memory.world.turn(memory.messages, OPTIONS);
      expect(held(memory.world)).toEqual(end);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
