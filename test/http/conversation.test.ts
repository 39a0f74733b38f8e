import { createHash } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { fixture } from './fixture.ts';

const user = (content: string) => ({ role: 'user', content });
const assistant = (content: string) => ({ role: 'assistant', content });

describe('without an id', () => {
  test('a resent history finds the session that its opening made', async () => {
    const { chat, host } = fixture();
    await chat({ messages: [user('Hi')] });
    const second: any = await (
      await chat({ messages: [user('Hi'), assistant('Hello there, friend.'), user('And?')] })
    ).json();
    expect(host.turns[1]!.key).toBe(host.turns[0]!.key);
    expect(host.turns[1]!.request).toMatchObject({ implicit: true, mode: 'whole', store: true });
    expect(second.usage.prompt_tokens_details.cached_tokens).toBe(4);
  });

  test('another opening, system prompt or hint is another session', async () => {
    const { chat, host } = fixture();
    await chat({ messages: [user('Hi')] });
    await chat({ messages: [user('Hi ')] });
    await chat({ messages: [{ role: 'system', content: 'x' }, user('Hi')] });
    await chat({ messages: [user('Hi')], prompt_cache_key: 'k' });
    await chat({ messages: [user('Hi')] }, { headers: { 'x-session-affinity': 'k' } });
    expect(new Set(host.turns.map((t) => t.key)).size).toBe(5);
  });

  test('a hint never joins two conversations', async () => {
    const { chat, host } = fixture();
    await chat({ messages: [user('Hi')], prompt_cache_key: 'k' });
    await chat({ messages: [user('Ho')], prompt_cache_key: 'k' });
    expect(host.turns[0]!.key).not.toBe(host.turns[1]!.key);
  });

  test('contents do not run into each other', async () => {
    const { chat, host } = fixture();
    await chat({ messages: [{ role: 'system', content: 'ab' }, user('c')] });
    await chat({ messages: [{ role: 'system', content: 'a' }, user('bc')] });
    expect(host.turns[0]!.key).not.toBe(host.turns[1]!.key);
  });

  test('store: false takes an object of its own and names none', async () => {
    const { chat, host } = fixture();
    const body: any = await (await chat({ store: false })).json();
    await chat({ store: false });
    expect(body.adkvc.session_id).toBeNull();
    expect(host.turns[0]!.request.store).toBe(false);
    expect(host.turns[0]!.key).not.toBe(host.turns[1]!.key);
    expect(host.sessions.size).toBe(0);
  });
});

describe('with session_id', () => {
  test('names the session, and says how messages relate to it', async () => {
    const { chat, host } = fixture();
    const body: any = await (await chat({ session_id: 's1' })).json();
    await chat({ session_id: 's1', session_append: true, messages: [user('more')] });
    await chat({ session_id: 's1', session_overwrite: true, messages: [user('new')] });
    expect(body.adkvc.session_id).toBe('s1');
    expect(new Set(host.turns.map((t) => t.key)).size).toBe(1);
    expect(host.turns.map((t) => [t.request.mode, t.request.overwrite, t.request.implicit])).toEqual([
      ['whole', false, false],
      ['append', false, false],
      ['whole', true, false],
    ]);
  });

  test("the same id of another owner is another object, and its reader's 404", async () => {
    const digest = (key: string): string => createHash('sha256').update(key).digest('hex');
    const { chat, call, host } = fixture({ keys: `ann:${digest('k1')},bob:${digest('k2')}` });
    const as = (key: string) => ({ headers: { authorization: `Bearer ${key}` } });
    await chat({ session_id: 's1' }, as('k1'));
    expect((await call('/v1/sessions/s1', undefined, as('k1'))).status).toBe(200);
    expect((await call('/v1/sessions/s1', undefined, as('k2'))).status).toBe(404);
    await chat({ session_id: 's1' }, as('k2'));
    expect(host.turns[0]!.key).not.toBe(host.turns[1]!.key);
    expect(host.turns[0]!.key).toMatch(/^[0-9a-f]{64}$/);
  });
});
