import { expect, test } from 'vitest';
import { DEFAULT_CACHE } from '../../src/cache/policy.ts';
import { World } from '../helpers/sessions.ts';
import { fixture, MODEL } from './fixture.ts';

const body = async (response: Response): Promise<any> => response.json();

test('a session is created, read, listed with its messages, and deleted', async () => {
  const { call, chat, host } = fixture();
  const created = await call('/v1/sessions', { id: 's1', policy: 'uniform', ratio: 4, ttl_seconds: 3600 });
  expect(created.status).toBe(201);
  expect(await body(created)).toMatchObject({
    id: 's1',
    object: 'session',
    created_at: 1_700_000_000,
    expires_at: 1_700_003_600,
    cache_config: {
      policy: 'uniform',
      ratio: 4,
      bytes: null,
      quotas: null,
      window: DEFAULT_CACHE.window,
      sinks: 4,
    },
  });
  await chat({ session_id: 's1' });
  expect(await body(await call('/v1/sessions/s1'))).toMatchObject({ id: 's1', turns: 1 });
  expect(await body(await call('/v1/sessions/s1/messages'))).toEqual({
    object: 'list',
    data: [
      { role: 'user', content: 'Hi' },
      { role: 'assistant', content: 'Hello there, friend.' },
    ],
  });
  const deleted = await call('/v1/sessions/s1', undefined, { method: 'DELETE' });
  expect(await body(deleted)).toEqual({ id: 's1', object: 'session.deleted', deleted: true });
  expect((await call('/v1/sessions/s1')).status).toBe(404);
  expect(host.sessions.size).toBe(0);
});

test('a session without an id gets one', async () => {
  const { call } = fixture();
  expect((await body(await call('/v1/sessions', {}))).id).toMatch(/^sess_[0-9a-f]{32}$/);
});

test('an id that exists is a conflict', async () => {
  const { call } = fixture();
  await call('/v1/sessions', { id: 's1' });
  const again = await call('/v1/sessions', { id: 's1' });
  expect(again.status).toBe(409);
  expect((await body(again)).error.code).toBe('session_exists');
});

test.each([
  [{ ratio: 0.5 }, 'ratio'],
  [{ ratio: 4, bytes: 1e6 }, 'bytes'],
  [{ bytes: 1.5 }, 'bytes'],
  [{ window: 65 }, 'window'],
  [{ ttl_seconds: 1 }, 'ttl_seconds'],
  [{ id: '' }, 'id'],
  [{ policy: 5 }, 'policy'],
  [{ quotas: 5 }, 'quotas'],
])('%o is refused by name', async (fields, param) => {
  const response = await fixture().call('/v1/sessions', fields);
  expect(response.status).toBe(400);
  expect((await body(response)).error.param).toBe(param);
});

test.each(['/v1/sessions/none', '/v1/sessions/none/messages', `/v1/sessions/${'x'.repeat(200)}`])(
  'GET %s is 404 and writes nothing',
  async (path) => {
    const { call, host } = fixture();
    const response = await call(path);
    expect(response.status).toBe(404);
    expect((await body(response)).error.code).toBe('session_not_found');
    expect(host.sessions.size).toBe(0);
  },
);

test('models are listed with their defaults', async () => {
  const { call } = fixture();
  const list = await body(await call('/v1/models'));
  expect(list.data.map((m: any) => m.id)).toEqual([MODEL.id, 'other-name']);
  expect(await body(await call(`/v1/models/${MODEL.id}`))).toMatchObject({
    id: MODEL.id,
    object: 'model',
    owned_by: 'adkvc',
    context_length: 8192,
    defaults: { temperature: 0.2, top_p: 0.9, max_tokens: 512 },
    cache: { policy: 'adkvc' },
  });
  expect((await call('/v1/models/none')).status).toBe(404);
});

test('unknown paths and methods are errors of the same shape', async () => {
  const { call } = fixture();
  const unknown = await call('/v1/nothing');
  expect([unknown.status, (await body(unknown)).error.code]).toEqual([404, 'unknown_url']);
  const method = await call('/v1/sessions/s1', {}, { method: 'PUT' });
  expect([method.status, (await body(method)).error.message]).toEqual([
    405,
    'PUT is not allowed here: use GET or DELETE.',
  ]);
  expect(method.headers.get('allow')).toBe('GET, DELETE');
});

test('every answer carries a request id, the given one where there is one', async () => {
  const { call, chat } = fixture();
  expect((await call('/health')).headers.get('x-request-id')).toMatch(/^req_/);
  expect((await call('/v1/nothing')).headers.get('x-request-id')).toMatch(/^req_/);
  expect((await chat({ stream: true })).headers.get('x-request-id')).toMatch(/^req_/);
  const given = await call('/v1/models', undefined, { headers: { 'x-request-id': 'abc-1' } });
  expect(given.headers.get('x-request-id')).toBe('abc-1');
});

test('a session is forked, exported and imported; each copy is a session of its own', async () => {
  const { call, chat } = fixture();
  await chat({ session_id: 's1' });
  const forked = await body(await call('/v1/sessions/s1/fork', { id: 's2', messages: 1, ttl_seconds: 60 }));
  expect(forked).toMatchObject({ id: 's2', object: 'session', expires_at: 1_700_000_060 });
  expect((await body(await call('/v1/sessions/s2/messages'))).data).toHaveLength(1);
  const named = await body(await call('/v1/sessions/s1/fork', {}));
  expect(named.id).toMatch(/^sess_[0-9a-f]{32}$/);

  const exported = await call('/v1/sessions/s1/export');
  expect(exported.headers.get('content-type')).toBe('application/octet-stream');
  expect(exported.headers.get('content-disposition')).toBe('attachment; filename="s1.adkvc"');
  const file = await exported.bytes();
  expect(exported.headers.get('content-length')).toBe(String(file.length));
  const headers = { 'content-type': 'application/octet-stream' };
  const send = (query: string, bytes: Uint8Array = file, more: RequestInit = {}) =>
    call(`/v1/sessions/import${query}`, undefined, {
      method: 'POST',
      headers,
      body: bytes as BodyInit,
      ...more,
    });
  const imported = await send('?id=s3&ttl_seconds=120');
  expect([imported.status, await body(imported)]).toMatchObject([
    201,
    { id: 's3', expires_at: 1_700_000_120 },
  ]);
  expect((await body(await call('/v1/sessions/s3/messages'))).data).toHaveLength(2);

  const refusals: [Promise<Response>, number, string][] = [
    [send('?id=s3'), 409, 'session_exists'],
    [send('?id=s4', new TextEncoder().encode('nothing')), 400, 'not_an_export'],
    [send('?ttl_seconds=1'), 400, 'invalid_input'],
    [send('?ttl_seconds=x'), 400, 'invalid_input'],
    [send('?id=%2F'), 400, 'invalid_input'],
    [send('', file, { headers: { ...headers, 'content-length': '64000001' } }), 413, 'export_too_large'],
    [send('', file, { headers: { 'content-type': 'application/json' } }), 415, 'unsupported_media_type'],
    [send('', file, { headers: { 'content-type': 'text/plain' } }), 415, 'unsupported_media_type'],
    [call('/v1/sessions/s1/fork', { messages: 0 }), 400, 'invalid_input'],
    [call('/v1/sessions/s1/fork', { id: 's2' }), 409, 'session_exists'],
    [call('/v1/sessions/none/fork', {}), 404, 'session_not_found'],
    [call('/v1/sessions/none/export'), 404, 'session_not_found'],
  ];
  for (const [answer, status, code] of refusals) {
    const response = await answer;
    expect([response.status, (await body(response)).error.code]).toEqual([status, code]);
  }
});

test('the cache is told layer by layer, with a legend', async () => {
  const { call, chat } = fixture();
  await chat({ session_id: 's1' });
  const map = await body(await call('/v1/sessions/s1/cache'));
  expect(map).toMatchObject({
    object: 'session.cache',
    session_id: 's1',
    layers: 2,
    kv_heads: 1,
    tokens: 9,
    exact: [
      [0, 4],
      [7, 2],
    ],
    evicted: [[5, 2]],
    closed: [],
  });
  expect(map.data.map((one: any) => one.layer)).toEqual([0, 1]);
  expect(map.tiers.at(-1)).toEqual({ id: 15, name: 'drop', key_bits: 0, value_bits: 0 });
  expect((await body(await call('/v1/sessions/s1/cache?layer=1'))).data).toHaveLength(1);
  for (const bad of ['-1', 'x', '1.5']) {
    const response = await call(`/v1/sessions/s1/cache?layer=${bad}`);
    expect([response.status, (await body(response)).error.param]).toEqual([400, 'layer']);
  }
  expect((await call('/v1/sessions/none/cache')).status).toBe(404);
});

test('sessions are listed page by page, and whatever makes one says whose directory it belongs to', async () => {
  const { call, chat, host } = fixture();
  for (const id of ['s1', 's2', 's3']) await call('/v1/sessions', { id });
  const first = await body(await call('/v1/sessions?limit=2'));
  expect(first).toMatchObject({ object: 'list', last_id: 's2', has_more: true, total: 3, quota: 1_000 });
  expect(first.data.map((one: any) => one.id)).toEqual(['s3', 's2']);
  const rest = await body(await call('/v1/sessions?limit=2&after=s2'));
  expect(rest.data.map((one: any) => one.id)).toEqual(['s1']);
  for (const bad of ['limit=0', 'limit=41', 'limit=x', 'after=%2F'])
    expect((await call(`/v1/sessions?${bad}`)).status).toBe(400);
  await chat({ session_id: 's9' });
  const { request, key } = host.turns.at(-1)!;
  expect(request.listing).toEqual({ directory: expect.stringMatching(/^[0-9a-f]{64}$/), key });
});

test('asking for the headers of an export takes no place from those who read one', async () => {
  const { call } = fixture({ anonymous: true }, undefined, new World().host);
  await call('/v1/sessions', { id: 's1' });
  for (let i = 0; i < 3; i++) {
    const head = await call('/v1/sessions/s1/export', undefined, { method: 'HEAD' });
    expect([head.status, Number(head.headers.get('content-length'))]).toEqual([200, expect.any(Number)]);
  }
  const whole = await call('/v1/sessions/s1/export');
  expect((await whole.arrayBuffer()).byteLength).toBe(Number(whole.headers.get('content-length')));
});

test('a fork needs no body, whether the host gives none or an empty one', async () => {
  const { call, chat } = fixture();
  await chat({ session_id: 's1' });
  for (const body of [undefined, '']) {
    const forked = await call('/v1/sessions/s1/fork', undefined, {
      method: 'POST',
      ...(body === undefined ? {} : { body }),
      headers: { 'content-type': 'application/json' },
    });
    expect(forked.status).toBe(201);
  }
  expect((await call('/v1/sessions', '')).status).toBe(400);
});
