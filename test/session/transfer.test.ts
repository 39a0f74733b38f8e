import { expect, test } from 'vitest';
import { checksum } from '../../src/session/checksum.ts';
import { MAX_EXPORT_BYTES } from '../../src/session/limits.ts';
import { FakeEngine } from '../helpers/fake-engine.ts';
import { assistant, GREEDY, prose, read, request, system, user, World } from '../helpers/sessions.ts';

const never = new AbortController().signal;
const HOT = { maxTokens: 40, sampling: { ...GREEDY, temperature: 1, seed: 3 } };
const bytesOf = async (stream: ReadableStream<Uint8Array>) =>
  new Uint8Array(await new Response(stream as BodyInit).arrayBuffer());
const streamOf = (bytes: Uint8Array, chunk = 1_000) =>
  new ReadableStream<Uint8Array>({
    start(controller) {
      for (let at = 0; at < bytes.length; at += chunk) controller.enqueue(bytes.slice(at, at + chunk));
      controller.close();
    },
  });

/** Three turns of a conversation that fills some segments. */
async function conversation(world = new World({ massBytes: 2 }), key = 'k') {
  const messages = [system(prose(700, 7))];
  for (let turn = 0; turn < 3; turn++) {
    messages.push(user(prose(150, turn + 1)));
    messages.push(assistant((await world.turn(messages, HOT, key)).text));
  }
  return { world, messages };
}

test('a fork says what the original says next, reuses as much, and neither is touched by the other', async () => {
  const { world, messages } = await conversation();
  const info = await world.host.fork('k', { key: 'f', id: 'fork' });
  expect(info).toMatchObject({ id: 'fork', turns: 3, tokens: (await world.host.get('k')).tokens });
  expect(await world.host.messages('f')).toEqual(messages);
  const next = [...messages, user(prose(90, 8))];
  const copy = await world.turn(next, HOT, 'f');
  expect(await world.host.messages('k')).toEqual(messages);
  const original = await world.turn(next, HOT);
  expect(copy.ids).toEqual(original.ids);
  expect(copy.started).toEqual(original.started);
  expect(copy.finished.recovered).toBeUndefined();

  await world.host.delete('k');
  world.reopen();
  const further = [...next, assistant(copy.text), user('more')];
  const rest = await world.turn(further, HOT, 'f');
  expect(rest.started.cachedTokens).toBeGreaterThan(copy.started.promptTokens);
  await expect(world.host.get('k')).rejects.toMatchObject({ code: 'session_not_found' });
});

test.each([1, 2, 3, 5])(
  'a fork at message %i goes on as a conversation that never said the rest, from a stored state',
  async (count) => {
    const { world, messages } = await conversation();
    await world.host.fork('k', { key: 'f', id: 'f' }, { messages: count });
    expect(await world.host.messages('f')).toEqual(messages.slice(0, count));
    const next = [...messages.slice(0, count), user('and now?')];
    const forked = await world.turn([user('and now?')], { ...HOT, mode: 'append' }, 'f');
    // The same conversation, cut in the session itself.
    const cut = await world.turn(next, { ...HOT, overwrite: true });
    expect(forked.ids).toEqual(cut.ids);
    expect(await world.host.messages('f')).toEqual([...next, assistant(forked.text)]);
    // The system's 700 positions: their state of position 640 at least.
    expect(forked.started.cachedTokens).toBeGreaterThanOrEqual(640);
  },
);

test('a fork of nothing, of more messages than there are, onto a session that exists', async () => {
  const { world } = await conversation();
  const to = { key: 'f', id: 'f' };
  await expect(world.host.fork('none', to)).rejects.toMatchObject({ code: 'session_not_found' });
  await expect(world.host.fork('k', to, { messages: 9 })).rejects.toMatchObject({ param: 'messages' });
  await expect(world.host.fork('k', { key: 'k', id: 'k' })).rejects.toMatchObject({ code: 'session_exists' });
  expect(world.stores.get('f')?.ids() ?? []).toEqual([]);
  expect(await world.host.get('k')).toMatchObject({ turns: 3 });
});

test('an export that is read slowly is of one commit, whatever turns and deletions come meanwhile', async () => {
  const { world, messages } = await conversation();
  const at = await bytesOf((await world.host.export('k')).stream);
  const { bytes, stream } = await world.host.export('k');
  const reader = stream.getReader();
  const parts = [(await reader.read()).value!];
  for (let turn = 0; turn < 6; turn++)
    await world.turn([user(prose(300, 20 + turn))], { ...HOT, mode: 'append' });
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
  }
  const late = new Uint8Array(await new Blob(parts as BlobPart[]).arrayBuffer());
  expect(late.length).toBe(bytes);
  expect(late).toEqual(at);
  expect((await world.host.messages('k')).length).toBe(messages.length + 12);

  // The rows that it held are free again: as many are stored as without it.
  const other = await conversation();
  for (let turn = 0; turn < 6; turn++)
    await other.world.turn([user(prose(300, 20 + turn))], { ...HOT, mode: 'append' });
  for (const each of [world, other.world])
    await each.turn([user(prose(300, 40))], { ...HOT, mode: 'append' });
  expect(world.store().size().rows).toBeLessThanOrEqual(other.world.store().size().rows + 32);

  const gone = (await world.host.export('k')).stream.getReader();
  await gone.read();
  await world.host.delete('k');
  await expect(
    (async () => {
      while (!(await gone.read()).done);
    })(),
  ).rejects.toMatchObject({ code: 'corrupt_data' });
});

test('exports of one session are limited, and an abandoned one gives its place back', async () => {
  const { world } = await conversation();
  const first = await world.host.export('k');
  await world.host.export('k');
  await expect(world.host.export('k')).rejects.toMatchObject({ code: 'session_busy' });
  await first.stream.cancel();
  await world.host.export('k');
});

test('an export of a damaged session leaves the damaged state out, and its copy goes on', async () => {
  const { world, messages } = await conversation();
  const store = world.store();
  const whole = await bytesOf((await world.host.export('k')).stream);
  for (const id of store.ids().filter((row) => row >= 64)) {
    const row = store.get(id)!;
    row[row.length - 1]! ^= 1;
    store.transaction(() => store.put(id, row));
  }
  world.reopen();
  const file = await bytesOf((await world.host.export('k')).stream);
  expect(file.length).toBeLessThan(whole.length);
  const there = new World({ massBytes: 2 });
  await there.host.import('k', 'copy', streamOf(file));
  const next = [...messages, user('more')];
  const undamaged = await conversation();
  expect((await there.turn(next, HOT)).ids).toEqual((await undamaged.world.turn(next, HOT)).ids);
});

test('an import elsewhere goes on with the same tokens from the same state, with its own life time', async () => {
  const { world, messages } = await conversation();
  const { bytes, stream } = await world.host.export('k');
  const file = await bytesOf(stream);
  expect(file.length).toBe(bytes);
  for (const chunk of [7, 65_536, file.length]) {
    const there = new World({ massBytes: 2 });
    const info = await there.host.import('k', 'copy', streamOf(file, chunk), { ttlSeconds: 60 });
    expect(info).toMatchObject({ id: 'copy', turns: 3, expiresAt: there.time + 60_000 });
    expect(await there.host.messages('k')).toEqual(messages);
    const next = [...messages, user('more')];
    const original = await (await conversation()).world.turn(next, HOT);
    const copy = await there.turn(next, HOT);
    expect(copy.ids).toEqual(original.ids);
    expect(copy.started).toEqual(original.started);
    expect(copy.finished.recovered).toBeUndefined();
    await expect(there.host.import('k', 'copy', streamOf(file))).rejects.toMatchObject({
      code: 'session_exists',
    });
  }
});

test('a session without a turn is exported and imported, too', async () => {
  const world = new World();
  await world.host.create('k', 'k', { cache: { policy: 'full' }, ttlSeconds: 500 });
  const { stream } = await world.host.export('k');
  const there = new World();
  const info = await there.host.import('k', 'k', stream);
  expect(info).toMatchObject({ turns: 0, cacheConfig: { policy: 'full' }, expiresAt: there.time + 500_000 });
  expect((await there.turn([user('hello')], HOT)).ids).toEqual((await world.turn([user('hello')], HOT)).ids);
});

/** What an import of these bytes is refused as; nothing may be left of it. */
async function refusal(file: Uint8Array, world = new World({ massBytes: 2 })): Promise<string> {
  const outcome = await world.host.import('k', 'k', streamOf(file, 50_000)).then(
    () => 'taken',
    (error) => {
      expect(error.message).not.toBe('');
      return error.code as string;
    },
  );
  if (outcome !== 'taken') {
    expect(world.store().ids(), outcome).toEqual([]);
    await expect(world.host.get('k')).rejects.toMatchObject({ code: 'session_not_found' });
  }
  return outcome;
}

test('refused by name: cut anywhere, any bit flipped, lengthened, no export at all', async () => {
  const { world } = await conversation();
  const file = await bytesOf((await world.host.export('k')).stream);
  expect(await refusal(file)).toBe('taken');
  expect(await refusal(new Uint8Array(0))).toBe('export_truncated');
  expect(await refusal(new TextEncoder().encode(prose(500)))).toBe('not_an_export');
  expect(await refusal(new Uint8Array([...file, 0]))).toBe('export_corrupt');

  const places = new Set([...Array(40).keys(), file.length - 1]);
  const steps = 160;
  for (let i = 0; i < steps; i++) places.add(Math.floor((file.length * (i + 0.37)) / steps));
  const codes = new Map<string, number>();
  for (const at of places) {
    expect(await refusal(file.slice(0, at)), `cut at ${at}`).toBe('export_truncated');
    const flipped = file.slice();
    flipped[at]! ^= 1 << (at % 8);
    const code = await refusal(flipped);
    codes.set(code, (codes.get(code) ?? 0) + 1);
  }
  console.log(`a bit flipped at each of ${places.size} places:`, Object.fromEntries(codes));
  expect([...codes.keys()].sort()).toEqual(['export_corrupt', 'not_an_export', 'unsupported_export_version']);
});

/** The file with another manifest, its checksums made right. */
function forge(file: Uint8Array, change: (manifest: any) => unknown): Uint8Array {
  const view = new DataView(file.buffer, file.byteOffset);
  const size = view.getUint32(12, true);
  const manifest = JSON.parse(new TextDecoder().decode(file.subarray(32, 32 + size)));
  const text = new TextEncoder().encode(JSON.stringify(change(manifest) ?? manifest));
  const out = new Uint8Array(file.length - size + text.length);
  out.set(file.subarray(0, 32));
  out.set(text, 32);
  out.set(file.subarray(32 + size), 32 + text.length);
  const header = new DataView(out.buffer);
  header.setUint32(12, text.length, true);
  header.setFloat64(16, out.length, true);
  header.setUint32(24, checksum(text), true);
  header.setUint32(28, checksum(out.subarray(0, 28)), true);
  return out;
}

test('refused by name: foreign model, other layout, too large, and forged manifests with right checksums', async () => {
  const { world } = await conversation();
  const file = await bytesOf((await world.host.export('k')).stream);
  expect(await refusal(forge(file, () => undefined))).toBe('taken');
  const foreign = new World({ massBytes: 2 });
  foreign.reopen(new FakeEngine({ massBytes: 2, fingerprint: 'others' }));
  expect(await refusal(file, foreign)).toBe('foreign_model');
  expect(await refusal(forge(file, (m) => void (m.engine.layoutVersion = 99)))).toBe('unsupported_layout');

  const large = file.slice();
  const header = new DataView(large.buffer);
  header.setFloat64(16, MAX_EXPORT_BYTES + 1, true);
  header.setUint32(28, checksum(large.subarray(0, 28)), true);
  expect(await refusal(large)).toBe('export_too_large');

  const forgeries: ((m: any) => unknown)[] = [
    () => 'text',
    () => [],
    (m) => void delete m.log,
    (m) => void (m.more = 1),
    (m) => void (m.log.ids[3] = 1e9),
    (m) => void (m.log.ids[3] = -1),
    (m) => void (m.log.fed += 1),
    (m) => void (m.log.messages[1].end = 1),
    (m) => void (m.log.messages[1].role = 'tool'),
    (m) => void (m.engine = null),
    (m) => void (m.cacheConfig.window = 1e9),
    (m) => void (m.state.header.config.policy = 'full'),
    (m) => void (m.state.header.model = 'another'),
    (m) => void (m.state.hot.refs[0][0] = 0),
    (m) => void (m.state.hot.refs[0][2] = 1),
    (m) => void (m.state.extents[0].refs[0][1] ^= 1),
    (m) => void (m.state.extents[0].refs[0][0] = m.state.hot.refs[0][0]),
  ];
  for (const change of forgeries)
    expect(await refusal(forge(file, change)), String(change)).toBe('export_corrupt');
});

test('numerics of another host: taken, and the state is made again from the log', async () => {
  const { world, messages } = await conversation();
  const there = new World({ massBytes: 2 });
  there.reopen(new FakeEngine({ massBytes: 2, numerics: 'fake-2' }));
  await there.host.import('k', 'k', (await world.host.export('k')).stream);
  const next = await there.turn([...messages, user('more')], HOT);
  expect(next.started.cachedTokens).toBe(0);
  expect(next.finished.recovered!.reason).toContain('foreign');
});

test('what another host computed is told only as long as the conversation begins with it', async () => {
  const { world, messages } = await conversation();
  const { stream } = await world.host.export('k');
  const there = new World({ massBytes: 2, numerics: 'elsewhere' });
  await there.host.import('k', 'k', stream, { foreignNumerics: true });
  const foreign = async (key = 'k') => (await there.host.get(key)).foreign?.numerics;
  await there.turn([...messages, user('go on')], HOT);
  expect(await foreign()).toBe(world.engine.numerics);
  const fork = (id: string, kept: number) => there.host.fork('k', { key: id, id }, { messages: kept });
  await fork('whole', messages.length);
  await fork('begin', 1);
  expect([await foreign('whole'), await foreign('begin')]).toEqual([world.engine.numerics, undefined]);
  await there.host.unsay('k', messages.length + 2);
  expect(await foreign()).toBe(world.engine.numerics);
  await there.turn([user('something else')], { ...HOT, overwrite: true });
  expect(await foreign()).toBeUndefined();
});

test('an import whose sender goes silent leaves no session, and its rows are cleared away', async () => {
  const { world } = await conversation();
  const file = await bytesOf((await world.host.export('k')).stream);
  const there = new World({ massBytes: 2 });
  // The process dies in the middle of it.
  void there.host.import(
    'k',
    'k',
    new ReadableStream({ start: (controller) => controller.enqueue(file.slice(0, file.length - 9)) }),
  );
  await expect.poll(() => there.store().ids().length).toBeGreaterThan(0);
  const half = there.store();
  const copyOf = () => {
    const again = new World({ massBytes: 2 });
    again.store().transaction(() => {
      for (const id of half.ids()) again.store().put(id, half.get(id)!);
    });
    return again;
  };
  const resumed = copyOf();
  await expect(resumed.host.get('k')).rejects.toMatchObject({ code: 'session_not_found' });
  await resumed.host.resume(['k']);
  expect(resumed.store().ids()).toEqual([]);
  const used = copyOf();
  await used.host.import('k', 'k', streamOf(file));
  expect(await used.host.get('k')).toMatchObject({ turns: 3 });
  const turned = copyOf();
  await turned.turn([user('hello')], HOT);
  expect(await turned.host.get('k')).toMatchObject({ turns: 1 });
  const reading = await read(await turned.host.turn('k', 'k', request([user('hello')], HOT), never));
  expect(reading.finished.recovered?.reason).not.toContain('damaged');
});
