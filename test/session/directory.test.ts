import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { Directory, LocalDirectories } from '../../src/session/directory.ts';
import { UNSEEN_ENTRY_MS } from '../../src/session/limits.ts';
import { LocalHost } from '../../src/session/local-host.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import { NodeSqliteStore } from '../../src/session/store/node-sqlite.ts';
import { read, request, user, World } from '../helpers/sessions.ts';

const never = new AbortController().signal;
const entry = (key: string, implicit = false) => ({ key, id: `id-${key}`, createdAt: 5, implicit });
const names = async (host: LocalHost, directory = 'd') =>
  (await host.list(directory, { limit: 40 })).sessions.map(({ id }) => id);

test('entries outlive the process, newest first; the quota is met by name, for implicit ones apart', async () => {
  const store = new MemoryStore();
  const directory = new Directory(store, 3);
  for (const key of ['a', 'b', 'c', 'b']) await directory.add(entry(key));
  await expect(directory.add(entry('d'))).rejects.toMatchObject({
    code: 'session_quota_exceeded',
    data: { limit: 3 },
  });
  await directory.add(entry('i', true));
  await directory.remove('b');
  await directory.remove('never there');
  await directory.add(entry('d'));
  expect(directory.list().map(({ key }) => key)).toEqual(['d', 'i', 'c', 'a']);
  expect(new Directory(store).list()).toEqual(directory.list());
  expect(store.size().rows).toBe(4);
});

test('made by create, turn, fork and import; gone by delete, expiry and expiry found by a turn', async () => {
  const world = new World();
  const listing = (key: string) => ({ directory: 'd', key });
  const { host } = world;
  await host.create('a', 'a', { listing: listing('a'), ttlSeconds: 100 });
  await read(await host.turn('b', 'b', request([user('x')], { listing: listing('b') }), never));
  await read(await host.turn('s', 's', request([user('x')], { listing: listing('s'), store: false }), never));
  await host.fork('b', { key: 'c', id: 'c' }, { listing: listing('c') });
  await host.import('e', 'e', (await host.export('b')).stream, { listing: listing('e') });
  expect(await names(host)).toEqual(['e', 'c', 'b', 'a']);
  expect(await names(host, 'other')).toEqual([]);
  const writes = world.services;
  expect(writes.directories).toBeUndefined();

  expect(await host.list('d', { limit: 2 })).toMatchObject({ last: 'c', more: true, total: 4 });
  expect(await host.list('d', { limit: 2, after: 'c' })).toMatchObject({ last: 'a', more: false });
  await expect(host.list('d', { limit: 2, after: 'z' })).rejects.toMatchObject({ param: 'after' });

  await host.delete('c');
  world.time += 100_001;
  await host.resume(['a']);
  expect(await names(host)).toEqual(['e', 'b']);
  // Expired, and made anew by a turn: listed again.
  await host.create('f', 'f', { listing: listing('f'), ttlSeconds: 100 });
  world.time += 100_001;
  await read(await host.turn('f', 'f', request([user('x')], { listing: listing('f') }), never));
  expect(await names(host)).toEqual(['f', 'e', 'b']);
});

test('over its quota an owner gets no session, by no way, and nothing is left of the attempt', async () => {
  const world = new World();
  const directories = new LocalDirectories(() => new MemoryStore(), 1);
  const stores = new Map<string, MemoryStore>();
  const store = (key: string) => stores.get(key) ?? stores.set(key, new MemoryStore()).get(key)!;
  const host = new LocalHost({ ...world.services, directories }, store);
  const listing = (key: string) => ({ directory: 'd', key });
  await host.create('a', 'a', { listing: listing('a') });
  const code = { code: 'session_quota_exceeded' };
  await expect(host.create('b', 'b', { listing: listing('b') })).rejects.toMatchObject(code);
  const asked = request([user('x')], { listing: listing('b') });
  await expect(host.turn('b', 'b', asked, never)).rejects.toMatchObject(code);
  await expect(host.fork('a', { key: 'b', id: 'b' }, { listing: listing('b') })).rejects.toMatchObject(code);
  expect(store('b').ids()).toEqual([]);
  await expect(host.get('b')).rejects.toMatchObject({ code: 'session_not_found' });
  // Not for sessions that are there, nor for another owner.
  await read(await host.turn('a', 'a', request([user('x')], { listing: listing('a') }), never));
  await host.create('b', 'b', { listing: { directory: 'other', key: 'b' } });
  await host.delete('a');
  await host.create('c', 'c', { listing: listing('c') });
});

test('first turns that are refused, fail or are deleted leave no entry, and so do not use up the quota', async () => {
  const world = new World();
  const directories = new LocalDirectories(() => new MemoryStore(), 2);
  const host = new LocalHost({ ...world.services, directories }, (key) => world.store(key));
  const begin = (key: string) =>
    host.turn(key, key, request([user('x')], { listing: { directory: 'd', key }, maxTokens: 900 }), never);
  const { createCache } = world.engine;
  world.engine.createCache = () => {
    throw new Error('no cache');
  };
  for (const key of ['a', 'b', 'c']) await expect(begin(key)).rejects.toThrow('no cache');
  world.engine.createCache = createCache;
  for (const key of ['d', 'e', 'f']) {
    const running = await begin(key);
    await host.delete(key);
    await expect(read(running)).rejects.toThrow('session_not_found');
  }
  expect(await directories.list('d')).toEqual([]);
  await read(await begin('g'));
  expect(await names(host)).toEqual(['g']);
});

test('an entry whose session never came, or is gone, is removed once it is old', async () => {
  const world = new World();
  const directories = new LocalDirectories(() => new MemoryStore());
  const host = new LocalHost({ ...world.services, directories }, () => new MemoryStore());
  await directories.add('d', { ...entry('a'), createdAt: world.time });
  expect(await names(host)).toEqual([]);
  expect(await directories.list('d')).toHaveLength(1);
  world.time += UNSEEN_ENTRY_MS + 1;
  expect(await names(host)).toEqual([]);
  expect(await directories.list('d')).toEqual([]);
});

test('an entry that is left over at the end of a page does not break off the list', async () => {
  const world = new World();
  const directories = new LocalDirectories(() => new MemoryStore());
  const host = new LocalHost({ ...world.services, directories }, (key) => world.store(key));
  await host.create('a', 'a', { listing: { directory: 'd', key: 'a' } });
  await directories.add('d', { ...entry('left'), createdAt: world.time });
  await host.create('b', 'b', { listing: { directory: 'd', key: 'b' } });
  world.time += UNSEEN_ENTRY_MS + 1;
  const first = await host.list('d', { limit: 2 });
  expect(first).toMatchObject({ sessions: [{ id: 'b' }], more: true });
  expect(await host.list('d', { limit: 2, after: first.last! })).toMatchObject({ sessions: [{ id: 'a' }] });
  // It goes where no page ends with it.
  expect(await names(host)).toEqual(['b', 'a']);
  expect(await directories.list('d')).toHaveLength(2);
});

test('an entry that comes while the last one goes stays', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'adkvc-directory-'));
  const open = () => new Directory(new NodeSqliteStore(join(folder, 'd.directory')));
  const directory = open();
  await directory.add(entry('a'));
  await Promise.all([directory.remove('a'), directory.add(entry('b'))]);
  expect(directory.list()).toEqual([entry('b')]);
  expect(open().list()).toEqual([entry('b')]);
  rmSync(folder, { recursive: true });
});

test('a file that is damaged keeps nobody from the other conversations, and can be deleted', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'adkvc-damaged-'));
  const world = new World();
  const listed = new MemoryStore();
  const directories = new LocalDirectories(() => listed);
  const open = () =>
    new LocalHost(
      { ...world.services, directories },
      (key) => new NodeSqliteStore(join(folder, `${key}.sqlite`)),
    );
  const first = open();
  for (const key of ['a', 'b', 'c']) {
    const asked = request([user('x')], { listing: { directory: 'd', key } });
    await read(await first.turn(key, key, asked, never));
  }
  first.close();
  writeFileSync(join(folder, 'a.sqlite'), 'no database');
  const cut = readFileSync(join(folder, 'b.sqlite'));
  writeFileSync(join(folder, 'b.sqlite'), cut.fill(255, 65_536));
  const host = open();
  await host.resume(['a', 'b', 'c']);
  expect(await names(host)).toEqual(['c']);
  for (const key of ['a', 'b']) {
    await expect(host.get(key)).rejects.toMatchObject({ code: 'corrupt_data' });
    await host.delete(key);
    await expect(host.get(key)).rejects.toMatchObject({ code: 'session_not_found' });
  }
  host.close();
  rmSync(folder, { recursive: true });
});

test('a session whose first turn takes longer than entries wait for theirs stays listed', async () => {
  const world = new World();
  const { host } = world;
  const asked = request([user('A question')], { listing: { directory: 'd', key: 'k' } });
  const running = await host.turn('k', 'k', asked, never);
  world.time += UNSEEN_ENTRY_MS + 1;
  const title = async () => (await host.list('d', { limit: 1 })).sessions.map((info) => info.title);
  expect(await title()).toEqual(['A question']);
  await read(running);
  expect(await title()).toEqual(['A question']);
});

test('deletion removes every byte: no file is left, and no text in any that is', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'adkvc-delete-'));
  const world = new World();
  const host = new LocalHost(
    {
      ...world.services,
      directories: new LocalDirectories((name) => new NodeSqliteStore(join(folder, `${name}.directory`))),
    },
    (key) => new NodeSqliteStore(join(folder, `${key}.sqlite`)),
  );
  const secret = 'The password is swordfish-7781';
  for (const key of ['kept', 'gone']) {
    const asked = request([user(`${secret} of ${key}`)], { listing: { directory: 'd', key } });
    await read(await host.turn(key, key, asked, never));
  }
  const holding = (text: string) =>
    readdirSync(folder).filter((file) => readFileSync(join(folder, file)).includes(text));
  expect(holding('swordfish-7781 of gone').length).toBeGreaterThan(0);
  await host.delete('gone');
  expect(holding('swordfish-7781 of gone')).toEqual([]);
  expect(readdirSync(folder).filter((file) => file.startsWith('gone'))).toEqual([]);
  expect(await names(host)).toEqual(['kept']);
  await host.delete('kept');
  expect(readdirSync(folder)).toEqual([]);
  expect(existsSync(folder)).toBe(true);
  host.close();
  rmSync(folder, { recursive: true });
});
