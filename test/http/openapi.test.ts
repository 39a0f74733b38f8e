import { expect, test } from 'vitest';
import { ROUTES } from '../../src/http/openapi.ts';
import { violations } from '../helpers/json-schema.ts';
import { fixture, MODEL } from './fixture.ts';

const document = async (): Promise<any> => (await fixture().call('/openapi.json')).json();

test('every route of the application is described, and no other', async () => {
  const { app } = fixture();
  const { paths } = await document();
  const served = app.routes
    .filter(({ method }) => method !== 'ALL')
    .map(({ method, path }) => `${method} ${path.replace(/\{[^}]*\}/g, '')}`);
  expect(served.filter((route) => !ROUTES[route])).toEqual([]);
  const described = Object.entries<any>(paths).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => `${method.toUpperCase()} ${path.replace(/\{(\w+)\}/g, ':$1')}`),
  );
  expect(described.sort()).toEqual([...new Set(served)].sort());
});

test('bodies are the schemas that validate', async () => {
  const { paths } = await document();
  const chat = paths['/v1/chat/completions'].post.requestBody.content['application/json'].schema;
  expect(chat.required).toEqual(['model', 'messages']);
  expect(JSON.stringify(chat.properties.temperature)).toContain('"maximum":2');
  expect(JSON.stringify(chat.properties.messages)).toContain('"maxItems":1024');
  const responses = paths['/v1/responses'].post.requestBody.content['application/json'].schema;
  expect(responses.required).toEqual(['model', 'input']);
  expect(responses.properties.input.anyOf.map((one: any) => one.type)).toEqual(['string', 'array']);
  expect(paths['/health'].get.security).toEqual([]);
  expect(paths['/v1/models/{id}'].get.parameters[0]).toMatchObject({ name: 'id', in: 'path' });
});

/** The parts of OpenAPI 3.1 that the document has. https://spec.openapis.org/oas/v3.1.1 */
test('the document is OpenAPI 3.1: parameters are declared once and in full, answers described, references lead somewhere', async () => {
  const all = await document();
  expect(all.openapi).toMatch(/^3\.1\.\d+$/);
  for (const [path, methods] of Object.entries<any>(all.paths))
    for (const [method, operation] of Object.entries<any>(methods)) {
      const name = `${method} ${path}`;
      const parameters: any[] = operation.parameters ?? [];
      expect(new Set(parameters.map((one) => `${one.in} ${one.name}`)).size, name).toBe(parameters.length);
      const inPath = parameters.filter((one) => one.in === 'path');
      expect(inPath.map((one) => one.name).sort(), name).toEqual(
        [...path.matchAll(/\{(\w+)\}/g)].map((match) => match[1]).sort(),
      );
      for (const one of parameters) {
        expect(one.schema.type, `${name} ${one.name}`).toMatch(/^(string|integer)$/);
        expect(one.required, `${name} ${one.name}`).toBe(one.in === 'path');
      }
      for (const answer of Object.values<any>(operation.responses))
        expect(answer.description, name).toEqual(expect.any(String));
      if (method === 'get' || method === 'delete') expect(operation.requestBody, name).toBeUndefined();
    }
  const references = JSON.stringify(all).matchAll(/"\$ref":"#\/([^"]+)"/g);
  for (const [, path] of references)
    expect(
      path!.split('/').reduce((part: any, key) => part?.[key], all),
      path,
    ).toBeDefined();
});

test('what the document refuses the application refuses, and the other way round', async () => {
  const { call } = fixture();
  const { paths } = await document();
  const hello = [{ role: 'user', content: 'Hi' }];
  const chat = { model: MODEL.id, messages: hello };
  const responses = { model: MODEL.id, input: 'Hi' };
  const cases: Record<string, [base: object, ...changes: object[]]> = {
    '/v1/chat/completions': [
      chat,
      ...[{}, { model: 5 }, { model: '' }, { model: undefined }, { messages: undefined }, { messages: [] }],
      ...[{ messages: Array(1_024).fill(hello[0]) }, { messages: Array(1_025).fill(hello[0]) }],
      ...[{ messages: [{ role: 'tool', content: '' }] }, { messages: [{ role: 'developer', content: '' }] }],
      ...[{ messages: [{ role: 'user', content: 5 }] }, { messages: [{ role: 'assistant', content: null }] }],
      { messages: [{ role: 'user', content: [{ type: 'text', text: 'a' }] }] },
      { messages: [{ role: 'user', content: [{ type: 'image_url' }] }] },
      ...[0, 2, -0.1, 2.1, '1', null].map((temperature) => ({ temperature })),
      ...[0, 1, 1.1, 0.5].map((top_p) => ({ top_p })),
      ...[0, -1, 1.5, 40].map((top_k) => ({ top_k })),
      ...[0, 1, -0.1].map((min_p) => ({ min_p })),
      ...[-2, 2, 2.5].flatMap((x) => [{ frequency_penalty: x }, { presence_penalty: x }]),
      ...[0, 1, 10, 11].map((repetition_penalty) => ({ repetition_penalty })),
      ...[0, 1, 2.5, '3'].flatMap((x) => [{ max_tokens: x }, { max_completion_tokens: x }]),
      ...['a', '', [], ['a', 'b', 'c', 'd'], ['a', 'b', 'c', 'd', 'e'], ['a'.repeat(257)], 5].map((stop) => ({
        stop,
      })),
      ...[1, 0.5, 2 ** 53, -5].map((seed) => ({ seed })),
      ...[0, 20, 21].map((top_logprobs) => ({ logprobs: true, top_logprobs })),
      ...[1, 0, null].map((n) => ({ n })),
      ...['text', 'json_object', 'xml'].map((type) => ({ response_format: { type } })),
      { response_format: { type: 'json_schema', json_schema: { schema: { type: 'object' } } } },
      { response_format: { type: 'json_schema', json_schema: {} } },
      ...['a', 'a/b', ''].map((session_id) => ({ session_id })),
      ...[
        { stream: 1 },
        { store: 'no' },
        { user: 5 },
        { user: 'me' },
        { prompt_cache_key: 'k'.repeat(1_025) },
      ],
      { something_new: 1 },
    ],
    '/v1/responses': [
      responses,
      ...[{}, { input: undefined }, { input: 5 }, { input: [] }, { input: hello }, { model: undefined }],
      ...[{ input: [{ type: 'reasoning' }] }, { input: [{ ...hello[0], type: 'message' }] }],
      ...[0, 1, 1.5].map((max_output_tokens) => ({ max_output_tokens })),
      ...[0, 2, 3].map((temperature) => ({ temperature })),
      ...[0, 1, 2].map((top_p) => ({ top_p })),
      ...[{ metadata: { a: 'b' } }, { metadata: { a: 1 } }, { include: ['x'] }, { instructions: 5 }],
      ...[{ text: { format: { type: 'text' } } }, { text: { format: { type: 'x' } } }],
      ...[{ conversation: 'a/b' }, { conversation: 'talk' }, { conversation: { id: 'talk2' } }],
    ],
    '/v1/sessions': [
      {},
      ...[0.5, 1, 4, '4'].map((ratio) => ({ ratio })),
      ...[0, 1, 1.5].map((bytes) => ({ bytes })),
      ...[-1, 0, 64, 65].flatMap((x) => [{ window: x }, { sinks: x }]),
      ...[59, 60, 2_592_000, 2_592_001].map((ttl_seconds) => ({ ttl_seconds })),
      ...[{ id: 'a b' }, { policy: 5 }, { seed: -1 }, { seed: 2 ** 32 - 1 }, { quotas: 'x'.repeat(201) }],
    ],
    '/v1/sessions/{id}/fork': [
      {},
      ...[0, 1, 1_025].map((messages) => ({ messages })),
      ...[{ ttl_seconds: 1 }, { ttl_seconds: 60 }, { id: '' }, { id: 'copy' }],
    ],
  };
  expect(Object.keys(cases).sort()).toEqual(
    Object.keys(paths)
      .filter((path) => paths[path].post?.requestBody?.content['application/json'])
      .sort(),
  );
  await call('/v1/chat/completions', { ...chat, session_id: 's1' });
  for (const [path, [base, ...changes]] of Object.entries(cases)) {
    const schema = paths[path].post.requestBody.content['application/json'].schema;
    for (const change of changes) {
      const body = JSON.parse(JSON.stringify({ ...base, ...change }));
      const { status } = await call(path.replace('{id}', 's1'), body);
      const refused = violations(schema, body);
      expect([path, change, status, refused]).toEqual([
        path,
        change,
        refused.length > 0 ? 400 : expect.toSatisfy((got: number) => got < 300),
        refused,
      ]);
    }
  }
});

test.each([
  ['/v1/sessions', 'limit', ['1', '40'], ['0', '41', 'x', '', '1.5']],
  ['/v1/sessions/s1/cache', 'layer', ['0', '1'], ['-1', '', 'x']],
])('%s: the document tells %s as it is read', async (path, name, good, bad) => {
  const { call, chat } = fixture();
  await chat({ session_id: 's1' });
  const { paths } = await document();
  const { schema } = paths[path.replace('s1', '{id}')].get.parameters.find((one: any) => one.name === name);
  for (const [values, status] of [
    [good, 200],
    [bad, 400],
  ] as const)
    for (const value of values) {
      expect((await call(`${path}?${name}=${value}`)).status, value).toBe(status);
      const given = value === '' ? value : Number(value);
      expect(violations(schema, given).length === 0, value).toBe(status === 200);
    }
});

test('the page holds all routes, runs nothing and loads nothing', async () => {
  const response = await fixture().call('/docs');
  expect(response.headers.get('content-type')).toContain('text/html');
  const policy = response.headers.get('content-security-policy')!;
  expect(policy).toMatch(/^default-src 'none'; style-src 'sha256-[\w+/]+='; base-uri 'none'/);
  const page = await response.text();
  expect(page).not.toMatch(/<script|<link|src=|style="/);
  for (const path of Object.keys((await document()).paths)) expect(page).toContain(path);
  const style = /<style>([\s\S]*)<\/style>/.exec(page)![1]!;
  const digest = Buffer.from(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(style)));
  expect(policy).toContain(digest.toString('base64'));
});

test('what deletion does not reach, and what a checksum is not, is said where it is read', async () => {
  const { call } = fixture();
  const { paths } = (await (await call('/openapi.json')).json()) as any;
  expect(paths['/v1/sessions/{id}'].delete.description).toMatch(/30 days.*point-in-time recovery/);
  expect(paths['/v1/sessions/{id}/export'].get.description).toMatch(/no signature/);
  expect(await (await call('/docs')).text()).toContain('30 days');
});
