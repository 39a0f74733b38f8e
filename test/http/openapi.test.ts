import { expect, test } from 'vitest';
import { ROUTES } from '../../src/http/openapi.ts';
import { fixture } from './fixture.ts';

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
