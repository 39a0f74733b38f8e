import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import { AdkvcError } from '../../src/core/errors.ts';
import { MAX_SCHEMA_DEPTH, MAX_SCHEMA_NODES, MAX_SCHEMA_WAYS } from '../../src/engine/json/schema.ts';
import { MAX_BODY_BYTES, MAX_MESSAGES, MAX_STOP_LENGTH, MAX_STOP_STRINGS } from '../../src/http/limits.ts';
import { Directory } from '../../src/session/directory.ts';
import {
  MAX_BUFFERED_BYTES,
  MAX_SESSIONS_PER_KEY,
  REQUESTS_BURST,
  REQUESTS_PER_SECOND,
} from '../../src/session/limits.ts';
import { LocalRates } from '../../src/session/rate.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import { World } from '../helpers/sessions.ts';
import { fixture, MODEL } from './fixture.ts';

const digest = async (key: string): Promise<string> =>
  Buffer.from(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(key))).toString('hex');
const keyed = async () => fixture({ keys: `ann:${await digest('ann-key')} bob:${await digest('bob-key')}` });
const as = (key: string): RequestInit => ({
  headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
});
const hello = { model: MODEL.id, messages: [{ role: 'user', content: 'Hi' }] };
const code = async (response: Response): Promise<[number, string]> => [
  response.status,
  ((await response.json()) as any).error.code,
];
const commas = (n: number) => n.toLocaleString('en-US');

/** The README's lines, by how they begin. */
const LINES: Record<string, () => Promise<void>> = {
  'A stranger without a key': async () => {
    const open = ['/health', '/docs', '/openapi.json'];
    for (const [fix, expected] of [
      [await keyed(), 401],
      [fixture({}), 503],
    ] as const)
      for (const { method, path } of fix.app.routes) {
        if (method === 'ALL') continue;
        const url = path.replace(/:id(\{[^}]*\})?/, 'x');
        const response = await fix.call(url, method === 'POST' ? {} : undefined, { method });
        expect([method, url, response.status]).toEqual([method, url, open.includes(url) ? 200 : expected]);
      }
  },
  'A leaked configuration': async () => {
    const { call } = fixture({ keys: 'ann:plain-secret-key' });
    const response = await call('/v1/models', undefined, as('plain-secret-key'));
    const body = await response.text();
    expect([response.status, body.includes('invalid_keys_configured')]).toEqual([503, true]);
    expect(body).not.toContain('plain-secret-key');
  },
  "Another key's session": async () => {
    const { call } = await keyed();
    await call('/v1/sessions', { id: 'mine' }, as('ann-key'));
    const response = await call('/v1/responses', { model: MODEL.id, input: 'Hi' }, as('ann-key'));
    const { id } = (await response.json()) as any;
    const read = async (key: string, session: string) =>
      (await call(`/v1/sessions/${session}`, undefined, as(key))).status;
    expect([
      await read('ann-key', 'mine'),
      await read('bob-key', 'mine'),
      await read('bob-key', 'none'),
    ]).toEqual([200, 404, 404]);
    const request = { model: MODEL.id, input: 'Hi', previous_response_id: id };
    expect(await code(await call('/v1/responses', request, as('bob-key')))).toEqual([
      404,
      'response_not_found',
    ]);
  },
  'An id cannot be guessed': async () => {
    const { call } = fixture();
    const ids = new Set<string>();
    for (let i = 0; i < 50; i++) ids.add(((await (await call('/v1/sessions', {})).json()) as any).id);
    expect(ids.size).toBe(50);
    for (const id of ids) expect(id).toMatch(/^sess_[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}$/);
  },
  'A page of another site': async () => {
    const { call } = fixture();
    const from = (headers: Record<string, string>) => call('/v1/chat/completions', hello, { headers });
    expect(await code(await from({ host: 'evil.example' }))).toEqual([403, 'forbidden_host']);
    expect(await code(await from({ origin: 'https://evil.example' }))).toEqual([403, 'forbidden_origin']);
    expect(await code(await from({ 'content-type': 'text/plain' }))).toEqual([415, 'unsupported_media_type']);
    const preflight = await call('/v1/chat/completions', undefined, {
      method: 'OPTIONS',
      headers: { origin: 'https://evil.example', 'access-control-request-method': 'POST' },
    });
    for (const response of [preflight, await from({}), await call('/health')])
      expect([...response.headers.keys()].filter((name) => name.startsWith('access-control'))).toEqual([]);
    expect(preflight.status).toBe(403);
  },
  'An answer cannot be run': async () => {
    const { call, chat, app, host } = fixture();
    const routes = app.routes.filter(({ method }) => method !== 'ALL');
    const answers = await Promise.all(
      routes.map(({ method, path }) =>
        call(path.replace(/:id(\{[^}]*\})?/, 'x'), method === 'POST' ? {} : undefined, { method }),
      ),
    );
    answers.push(await chat(), await chat({ n: 2 }), await chat({ stream: true }), await call('/v1/nothing'));
    answers.push(
      await call('/v1/models', undefined, { method: 'PUT' }),
      await call('/health', undefined, { method: 'HEAD' }),
    );
    host.refusal = new AdkvcError('session_busy', 'busy');
    answers.push(await chat());
    host.turn = async () => {
      throw new Error('inside');
    };
    const log = vi.spyOn(console, 'error').mockImplementation(() => {});
    answers.push(await chat());
    log.mockRestore();
    expect(new Set(answers.map(({ status }) => status))).toEqual(
      new Set([200, 201, 400, 404, 405, 415, 429, 500]),
    );
    for (const { url, status, headers } of answers)
      expect([status, Object.fromEntries(headers)], url).toEqual([
        status,
        expect.objectContaining({
          'content-security-policy': expect.stringMatching(/^default-src 'none'/),
          'cross-origin-resource-policy': 'same-origin',
          'referrer-policy': 'no-referrer',
          'x-content-type-options': 'nosniff',
          'cache-control': expect.stringMatching(/^(no-store|no-cache, no-transform)$/),
        }),
      ]);
  },
  [`A large body is refused at ${commas(MAX_BODY_BYTES)} bytes`]: async () => {
    const { call } = fixture();
    let sent = 0;
    const body = new ReadableStream<Uint8Array>({
      pull(controller) {
        sent += 100_000;
        controller.enqueue(new Uint8Array(100_000).fill(0x20));
      },
    });
    const init = { method: 'POST', body, duplex: 'half', headers: { 'content-type': 'application/json' } };
    expect(await code(await call('/v1/chat/completions', undefined, init as RequestInit))).toEqual([
      413,
      'request_too_large',
    ]);
    expect(sent).toBeLessThan(MAX_BODY_BYTES + 500_000);
  },
  [`Many messages are refused at ${commas(MAX_MESSAGES)}`]: async () => {
    const { chat } = fixture();
    const messages = (n: number) => Array.from({ length: n }, () => ({ role: 'user', content: 'a' }));
    expect((await chat({ messages: messages(MAX_MESSAGES) })).status).toBe(200);
    expect((await chat({ messages: messages(MAX_MESSAGES + 1) })).status).toBe(400);
  },
  'A long answer': async () => {
    const { chat } = fixture();
    expect((await chat({ max_tokens: MODEL.contextLength })).status).toBe(200);
    expect((await chat({ max_tokens: MODEL.contextLength + 1 })).status).toBe(400);
  },
  [`Many stop strings, or long ones, are refused at ${MAX_STOP_STRINGS} and ${MAX_STOP_LENGTH}`]:
    async () => {
      const { chat } = fixture();
      const stops = (n: number, length: number) => Array.from({ length: n }, () => 's'.repeat(length));
      expect((await chat({ stop: stops(MAX_STOP_STRINGS, MAX_STOP_LENGTH) })).status).toBe(200);
      expect((await chat({ stop: stops(MAX_STOP_STRINGS + 1, 1) })).status).toBe(400);
      expect((await chat({ stop: stops(1, MAX_STOP_LENGTH + 1) })).status).toBe(400);
    },
  [`A schema that grows without end is refused at ${commas(MAX_SCHEMA_NODES)} parts, ${MAX_SCHEMA_DEPTH} levels or ${commas(MAX_SCHEMA_WAYS)} ways to begin a value`]:
    async () => {
      const { call, chat } = fixture();
      const status = async (schema: object) =>
        (await chat({ response_format: { type: 'json_schema', json_schema: { schema } } })).status;
      const wide = (n: number) => ({ anyOf: Array.from({ length: n - 1 }, () => ({ type: 'null' })) });
      const deep = (n: number) => {
        let schema: object = { type: 'null' };
        for (let i = 0; i < n; i++) schema = { items: schema };
        return schema;
      };
      expect([await status(wide(MAX_SCHEMA_NODES)), await status(wide(MAX_SCHEMA_NODES + 1))]).toEqual([
        200, 400,
      ]);
      expect([await status(deep(MAX_SCHEMA_DEPTH)), await status(deep(MAX_SCHEMA_DEPTH + 1))]).toEqual([
        200, 400,
      ]);
      // Ten references to ten references, and so on: ten ways to the power of the levels.
      const multiplied = (levels: number) => {
        const ten = (to: object) => ({ anyOf: Array.from({ length: 10 }, () => to) });
        const $defs: Record<string, object> = { d0: { type: 'null' } };
        for (let i = 1; i <= levels; i++) $defs[`d${i}`] = ten({ $ref: `#/$defs/d${i - 1}` });
        return { $ref: `#/$defs/d${levels}`, $defs };
      };
      const levels = Math.log10(MAX_SCHEMA_WAYS);
      expect([await status(multiplied(levels)), await status(multiplied(levels + 1))]).toEqual([200, 400]);
      // So deep that nothing recursive could read it, also where its content is nobody's business.
      for (const keyword of ['items', 'default', 'enum']) {
        const value = `${'['.repeat(20_000)}${']'.repeat(20_000)}`;
        const schema =
          keyword === 'items'
            ? `${'{"items":'.repeat(20_000)}{}${'}'.repeat(20_000)}`
            : `{"${keyword}":${value}}`;
        const request = JSON.stringify({
          ...hello,
          response_format: { type: 'json_schema', json_schema: { schema: 0 } },
        });
        expect(
          (
            await call('/v1/chat/completions', request.replace('"schema":0', `"schema":${schema}`), {
              method: 'POST',
              headers: { 'content-type': 'application/json' },
            })
          ).status,
        ).toBe(400);
      }
    },
  [`Many requests of one key are refused beyond ${REQUESTS_BURST} at once and ${REQUESTS_PER_SECOND} a second`]:
    async () => {
      const clock = { now: 0 };
      const keys = `ann:${await digest('ann-key')} bob:${await digest('bob-key')}`;
      const { call } = fixture({ keys }, new LocalRates(() => clock.now));
      const ask = (key: string) => call('/v1/models', undefined, as(key));
      for (let i = 0; i < REQUESTS_BURST; i++) {
        const response = await ask('ann-key');
        expect(response.status).toBe(200);
        expect(response.headers.get('x-ratelimit-remaining-requests')).toBe(String(REQUESTS_BURST - 1 - i));
      }
      const refused = await ask('ann-key');
      expect(refused.headers.get('retry-after')).toBe('1');
      expect(await code(refused)).toEqual([429, 'rate_limit_exceeded']);
      expect((await ask('bob-key')).status).toBe(200);
      clock.now += 1_000;
      const statuses = [];
      for (let i = 0; i <= REQUESTS_PER_SECOND; i++) statuses.push((await ask('ann-key')).status);
      expect(statuses).toEqual([...Array.from({ length: REQUESTS_PER_SECOND }, () => 200), 429]);
    },
  [`Many sessions of one key are refused at ${commas(MAX_SESSIONS_PER_KEY)}`]: async () => {
    const directory = new Directory(new MemoryStore());
    const add = (i: number, implicit: boolean) =>
      directory.add({ key: `${implicit}${i}`, id: `${i}`, createdAt: 0, implicit });
    for (let i = 0; i < MAX_SESSIONS_PER_KEY; i++) {
      await add(i, false);
      await add(i, true);
    }
    for (const implicit of [false, true])
      await expect(add(MAX_SESSIONS_PER_KEY, implicit)).rejects.toMatchObject({
        code: 'session_quota_exceeded',
        data: { limit: MAX_SESSIONS_PER_KEY },
      });
  },
  'A file that was changed is refused': async () => {
    const world = new World();
    const { call } = fixture({ anonymous: true }, undefined, world.host);
    await call('/v1/sessions', { id: 'original' });
    const file = new Uint8Array(await (await call('/v1/sessions/original/export')).arrayBuffer());
    const bring = (body: Uint8Array<ArrayBuffer>) =>
      call('/v1/sessions/import', undefined, {
        method: 'POST',
        body,
        headers: { 'content-type': 'application/octet-stream' },
      });
    for (const at of [20, 40, file.length - 1]) {
      const changed = file.slice();
      changed[at]! ^= 1;
      expect(await code(await bring(changed))).toEqual([400, 'export_corrupt']);
    }
    expect(await code(await bring(file.slice(0, -1)))).toEqual([400, 'export_truncated']);
    expect((await bring(file)).status).toBe(201);
  },
  'A queue is bounded': async () => {
    const { chat, host } = fixture();
    host.refusal = new AdkvcError('session_busy', 'busy', { data: { retryAfter: 7 } });
    const response = await chat();
    expect([response.status, response.headers.get('retry-after')]).toEqual([429, '7']);
  },
  [`A client that reads slowly is let go at ${commas(MAX_BUFFERED_BYTES)} bytes`]: async () => {
    const { chat, host } = fixture();
    host.pieces = Array.from({ length: 60 }, () => 'x'.repeat(MAX_BUFFERED_BYTES / 40));
    const response = await chat({ stream: true });
    await expect.poll(() => host.turns[0]!.signal.aborted).toBe(true);
    await expect(response.text()).rejects.toThrow(/too slowly/);
  },
  'A failure inside': async () => {
    const { chat, host } = fixture();
    const log = vi.spyOn(console, 'error').mockImplementation(() => {});
    host.turn = async () => {
      throw new Error('table cells at /srv/inside.sqlite');
    };
    const response = await chat();
    expect(response.status).toBe(500);
    expect(await response.text()).not.toContain('inside.sqlite');
    log.mockRestore();
  },
  'Neither keys nor what was said': async () => {
    const { call, host } = await keyed();
    const logs = (['log', 'info', 'warn', 'error', 'debug'] as const).map((level) =>
      vi.spyOn(console, level).mockImplementation(() => {}),
    );
    const body = { ...hello, messages: [{ role: 'user', content: 'WHAT-WAS-SAID' }] };
    await call('/v1/chat/completions', body, as('ann-key'));
    await call('/v1/chat/completions', '{"messages": "WHAT-WAS-SAID', as('ann-key'));
    await call('/v1/chat/completions', body, as('stolen-key'));
    host.turn = async () => {
      throw new Error('the disk is full');
    };
    await call('/v1/chat/completions', body, as('ann-key'));
    const counters = await (await call('/metrics', undefined, as('ann-key'))).text();
    const written = logs.flatMap((log) =>
      log.mock.calls.flat().map((one) => (one instanceof Error ? `${one.stack}` : String(one))),
    );
    for (const log of logs) log.mockRestore();
    expect(written.length).toBeGreaterThan(0);
    expect([...written, counters].join('\n')).not.toMatch(/WHAT-WAS-SAID|ann-key|stolen-key/);
  },
};

const readme = readFileSync(join(import.meta.dirname, '../../README.md'), 'utf8');
const section = /### Security\n([\s\S]*?)\n##/.exec(readme)![1]!;
const promises = section
  .split('\n')
  .filter((line) => line.startsWith('- '))
  .map((line) => line.slice(2));

test('the README promises what is tested here, line by line', () => {
  expect(promises.length).toBe(Object.keys(LINES).length);
  for (const [i, begins] of Object.keys(LINES).entries())
    expect(promises[i]!.slice(0, begins.length)).toBe(begins);
});

test.each(Object.entries(LINES))('%s', (_line, check) => check());
