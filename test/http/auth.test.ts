import { createHash } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { parseKeys } from '../../src/http/auth.ts';
import { fixture } from './fixture.ts';

const digest = (key: string): string => createHash('sha256').update(key).digest('hex');
const bearer = (key: string) => ({ headers: { authorization: `Bearer ${key}` } });
const code = async (response: Response): Promise<unknown> => ((await response.json()) as any).error.code;

describe('keys', () => {
  test('without keys every /v1 route answers 503 with the command that sets them; /health is public', async () => {
    const { call, chat } = fixture({});
    for (const response of [await call('/v1/models'), await chat(), await call('/v1/nothing')]) {
      expect(response.status).toBe(503);
      const { error }: any = await response.json();
      expect(error.code).toBe('no_keys_configured');
      expect(error.message).toContain('wrangler secret put ADKVC_KEYS');
    }
    expect((await call('/health')).status).toBe(200);
  });

  test('a known key is let in, others are not', async () => {
    const { call } = fixture({ keys: `ann:${digest('right')}\n bob:${digest('other').toUpperCase()}` });
    expect((await call('/v1/models', undefined, bearer('right'))).status).toBe(200);
    expect((await call('/v1/models', undefined, bearer('other'))).status).toBe(200);
    for (const init of [
      {},
      bearer('wrong'),
      { headers: { authorization: digest('right') } },
      bearer(digest('right')),
    ]) {
      const response = await call('/v1/models', undefined, init);
      expect(response.status).toBe(401);
      expect(await code(response)).toBe('invalid_api_key');
    }
  });

  test('a replaced key keeps its owner, and so its sessions', async () => {
    const keys = [];
    for (const secret of ['k1', 'k2']) {
      const { chat, host } = fixture({ keys: `ann:${digest(secret)}` });
      await chat({ session_id: 's' }, bearer(secret));
      keys.push(host.turns[0]!.key);
    }
    expect(keys[0]).toBe(keys[1]);
  });

  test('keys win over the anonymous mode', async () => {
    const { call } = fixture({ keys: `ann:${digest('k')}`, anonymous: true });
    expect((await call('/v1/models')).status).toBe(401);
  });

  test.each(['ann', 'ann:xyz', `an n:${'a'.repeat(64)}`, `anonymous:${'a'.repeat(64)}`])(
    'a malformed entry serves nobody and is not repeated: %s',
    async (keys) => {
      expect(() => parseKeys(keys)).toThrow('Entry 1 of ADKVC_KEYS');
      const response = await fixture({ keys }).call('/v1/models', undefined, bearer('x'));
      expect(response.status).toBe(503);
      expect(JSON.stringify(await response.json())).not.toContain(keys);
    },
  );
});

describe('anonymous mode', () => {
  test.each(['localhost:8787', '127.0.0.1:8787', '[::1]:8787', 'LOCALHOST'])(
    'answers to %s',
    async (host) => {
      expect((await fixture().call('/v1/models', undefined, { headers: { host } })).status).toBe(200);
    },
  );

  test.each([
    'evil.example',
    'localhost.evil.example:8787',
    '127.0.0.1.evil.example',
    '192.168.1.5:8787',
    'localhost:8787@evil',
  ])('does not answer to %s', async (host) => {
    const response = await fixture().call('/v1/models', undefined, { headers: { host } });
    expect(response.status).toBe(403);
    expect(await code(response)).toBe('forbidden_host');
  });

  test.each([
    'http://localhost:3000',
    'https://localhost:8787',
    'http://evil.example',
    'null',
    'http://127.0.0.1:8787',
  ])('refuses the origin %s at localhost:8787', async (origin) => {
    const response = await fixture().call('/v1/models', undefined, { headers: { origin } });
    expect(response.status).toBe(403);
    expect(await code(response)).toBe('forbidden_origin');
  });

  test('lets its own page in', async () => {
    const response = await fixture().call('/v1/models', undefined, {
      headers: { origin: 'http://localhost:8787' },
    });
    expect(response.status).toBe(200);
  });

  test.each(['text/plain', 'application/x-www-form-urlencoded', ''])(
    'refuses a post as "%s"',
    async (type) => {
      const response = await fixture().chat({}, { headers: { 'content-type': type } });
      expect(response.status).toBe(415);
      expect(await code(response)).toBe('unsupported_media_type');
    },
  );

  test('takes JSON with a charset', async () => {
    expect(
      (await fixture().chat({}, { headers: { 'content-type': 'application/json; charset=utf-8' } })).status,
    ).toBe(200);
  });
});
