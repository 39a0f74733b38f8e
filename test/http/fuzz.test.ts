import { expect, test } from 'vitest';
import { World } from '../helpers/sessions.ts';
import { fixture } from './fixture.ts';

/** Bodies that no client sends on purpose. Each must be answered as the client's error or as a turn, never as the server's failure. */
const COUNT = Number(process.env.ADKVC_FAULTS ? 10_000 : 2_000);
const SEED = 20_260;

function generator(seed: number): () => number {
  let x = seed;
  return () => {
    x = (Math.imul(x ^ (x >>> 15), 0x2c1b3c6d) + 0x9e3779b9) | 0;
    x ^= x >>> 12;
    return (x >>> 0) / 2 ** 32;
  };
}

test(`${COUNT} malformed bodies and queries, seed ${SEED}: never a 5xx, always an error of the same shape`, async () => {
  // Real sessions over a double of the engine, so that what a body leads to is fuzzed, too.
  const { call } = fixture({ anonymous: true }, undefined, new World().host);
  await call('/v1/sessions', { id: 's1' });
  const random = generator(SEED);
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)]!;
  const atoms = (): unknown =>
    pick<() => unknown>([
      () => null,
      () => random() > 0.5,
      () => pick([0, -1, 1e308, -0.5, 2 ** 53, 1, 3, 0.7]),
      () =>
        pick([
          '',
          'x',
          'user',
          'fake-model',
          '\u0000',
          '\ud800',
          '__proto__',
          'a'.repeat(3_000),
          '💥',
          's1',
          'none',
        ]),
      () => [],
      () => ({}),
    ])();
  const value = (depth: number): unknown => {
    const kind = random();
    if (depth === 0 || kind < 0.5) return atoms();
    if (kind < 0.75) return Array.from({ length: Math.floor(random() * 4) }, () => value(depth - 1));
    return Object.fromEntries(
      Array.from({ length: Math.floor(random() * 4) }, () => [pick(KEYS), value(depth - 1)]),
    );
  };
  const KEYS = [
    ...[
      'model',
      'messages',
      'role',
      'content',
      'type',
      'text',
      'stream',
      'max_tokens',
      'temperature',
      'stop',
      'seed',
      'n',
    ],
    ...[
      'logprobs',
      'top_logprobs',
      'session_id',
      'session_append',
      'session_overwrite',
      'store',
      'response_format',
      'tools',
    ],
    ...[
      'input',
      'instructions',
      'previous_response_id',
      'id',
      'policy',
      'ratio',
      'bytes',
      'ttl_seconds',
      '__proto__',
      'toJSON',
    ],
  ];
  const valid: Record<string, () => Record<string, unknown>> = {
    '/v1/chat/completions': () => ({
      model: 'fake-model',
      messages: [{ role: 'user', content: 'Hi' }],
      max_tokens: 3,
    }),
    '/v1/responses': () => ({ model: 'fake-model', input: 'Hi', max_output_tokens: 3 }),
    '/v1/sessions': () => ({ policy: 'adkvc' }),
    '/v1/sessions/s1/fork': () => ({ messages: 1 }),
  };
  const body = (path: string): string => {
    const base = valid[path]!();
    for (let i = 0; i <= random() * 3; i++) base[pick(KEYS)] = value(3);
    let text = JSON.stringify(base);
    const how = random();
    if (how < 0.25) text = text.slice(0, Math.floor(random() * text.length));
    else if (how < 0.4) {
      const at = Math.floor(random() * text.length);
      text = text.slice(0, at) + String.fromCharCode(Math.floor(random() * 0x500)) + text.slice(at + 1);
    } else if (how < 0.45) text = '['.repeat(5_000);
    else if (how < 0.5) text = JSON.stringify(value(2)) ?? '';
    return text;
  };
  const statuses = new Map<number, number>();
  for (let i = 0; i < COUNT; i++) {
    let response: Response;
    let sent: string;
    const kind = random();
    if (kind < 0.1) {
      sent = pick(['/v1/sessions?', '/v1/sessions/s1/cache?', '/v1/sessions/none/export?', '/v1/models/']);
      sent +=
        encodeURIComponent(String(pick(KEYS))) +
        '=' +
        encodeURIComponent(String(pick(['-1', 'x', '1e9', '', '%', 'NaN'])));
      sent = pick([
        sent,
        sent.replace('?', '?limit='),
        sent.replace('?', '?layer='),
        sent.replace('?', '?after='),
      ]);
      response = await call(sent);
    } else if (kind < 0.2) {
      const file = Uint8Array.from({ length: Math.floor(random() * 200) }, () => random() * 256);
      sent = `import of ${file}`;
      response = await call('/v1/sessions/import', undefined, {
        method: 'POST',
        body: file,
        headers: { 'content-type': 'application/octet-stream' },
      });
    } else {
      const path = pick(Object.keys(valid));
      sent = `${path} ${body(path)}`;
      response = await call(path, sent.slice(path.length + 1));
    }
    statuses.set(response.status, (statuses.get(response.status) ?? 0) + 1);
    expect(response.status, sent).toBeLessThan(500);
    const text = await response.text();
    if (response.status >= 400) {
      const { error } = JSON.parse(text);
      expect(error, sent).toMatchObject({
        message: expect.any(String),
        type: expect.any(String),
        code: expect.any(String),
      });
      expect(error.code).not.toBe('internal_error');
    } else expect(text).not.toContain('internal_error');
  }
  console.log(`seed ${SEED}, ${COUNT} requests by status:`, Object.fromEntries([...statuses].sort()));
  expect(statuses.get(400)).toBeGreaterThan(COUNT / 3);
}, 120_000);
