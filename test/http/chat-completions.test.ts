import { afterEach, describe, expect, test, vi } from 'vitest';
import { AdkvcError } from '../../src/core/errors.ts';
import { HEARTBEAT_MS } from '../../src/http/limits.ts';
import { MAX_BUFFERED_BYTES } from '../../src/session/limits.ts';
import { fixture, MODEL, readSse } from './fixture.ts';

afterEach(() => void vi.useRealTimers());

describe('a whole answer', () => {
  test('has the shape that clients of OpenAI expect', async () => {
    const { chat } = fixture();
    const response = await chat();
    expect(response.status).toBe(200);
    expect(response.headers.get('server-timing')).toMatch(/prefill;dur=1\.0/);
    expect(await response.json()).toMatchObject({
      id: expect.stringMatching(/^chatcmpl-/),
      object: 'chat.completion',
      created: expect.any(Number),
      model: MODEL.id,
      choices: [
        {
          index: 0,
          message: { role: 'assistant', content: 'Hello there, friend.' },
          finish_reason: 'stop',
          logprobs: null,
        },
      ],
      usage: {
        prompt_tokens: 1,
        completion_tokens: 4,
        total_tokens: 5,
        prompt_tokens_details: { cached_tokens: 0 },
      },
      adkvc: {
        session_id: expect.stringMatching(/^auto_/),
        cache: { bytes: 500, fp16_bytes: 2000, ratio: 4 },
      },
    });
  });

  test('tells log-probabilities of each token by itself', async () => {
    const { chat, host } = fixture();
    host.pieces = ['A', '\ufffd'];
    const body: any = await (await chat({ logprobs: true, top_logprobs: 2 })).json();
    expect(host.turns[0]!.request.sampling.topLogprobs).toBe(2);
    expect(body.choices[0].logprobs.content).toEqual([
      {
        token: 'A',
        logprob: -0.5,
        bytes: [65],
        top_logprobs: [
          { token: 'A', logprob: -0.5, bytes: [65] },
          { token: 'other1', logprob: -1.5, bytes: [111, 116, 104, 101, 114, 49] },
        ],
      },
      expect.objectContaining({ token: '\ufffd', bytes: [0xf0, 0x9f] }),
    ]);
  });

  test('logprobs without top_logprobs asks for none of the alternatives', async () => {
    const { chat, host } = fixture();
    const body: any = await (await chat({ logprobs: true })).json();
    expect(host.turns[0]!.request.sampling.topLogprobs).toBe(0);
    expect(body.choices[0].logprobs.content[0].top_logprobs).toEqual([]);
  });
});

describe('a streamed answer', () => {
  test('begins with the role, ends with the reason and [DONE], and shares id, created and model', async () => {
    const { chat } = fixture();
    const response = await chat({ stream: true });
    expect(response.headers.get('content-type')).toMatch(/^text\/event-stream/);
    expect(response.headers.get('cache-control')).toBe('no-cache, no-transform');
    const { chunks, done, text } = await readSse(response);
    expect(chunks[0].choices[0]).toMatchObject({
      delta: { role: 'assistant', content: '' },
      finish_reason: null,
    });
    expect(text).toBe('Hello there, friend.');
    expect(chunks.at(-1).choices[0]).toMatchObject({ delta: {}, finish_reason: 'stop' });
    expect(chunks.at(-1).adkvc.session_id).toMatch(/^auto_/);
    expect(new Set(chunks.map((c) => `${c.id} ${c.created} ${c.model} ${c.object}`)).size).toBe(1);
    expect(chunks.every((c) => !('usage' in c))).toBe(true);
    expect(done).toBe(true);
  });

  test('include_usage: null in all chunks but the last, whose choices are empty', async () => {
    const { chat } = fixture();
    const { chunks } = await readSse(await chat({ stream: true, stream_options: { include_usage: true } }));
    expect(chunks.slice(0, -1).every((c) => c.usage === null && c.choices.length === 1)).toBe(true);
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { total_tokens: 5 } });
  });

  test('sends what was held back for a stop string at the end', async () => {
    const { chat, host } = fixture();
    host.heldBack = ' <ha';
    expect((await readSse(await chat({ stream: true }))).text).toBe('Hello there, friend. <ha');
    const whole: any = await (await chat()).json();
    expect(whole.choices[0].message.content).toBe('Hello there, friend. <ha');
  });

  test('headers and the role chunk come before the first token, the reason only after the commit', async () => {
    const { chat, host } = fixture();
    const gates = { token: Promise.withResolvers<void>(), finish: Promise.withResolvers<void>() };
    host.pause = async (where) => (where === 'start' ? undefined : gates[where].promise);
    const response = await chat({ stream: true });
    const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
    let seen = '';
    const until = async (text: string): Promise<void> => {
      while (!seen.includes(text)) {
        const { done, value } = await reader.read();
        if (done) throw new Error(`no ${text} in ${seen}`);
        seen += value;
      }
    };
    await until('"role":"assistant"');
    await until(': prefill 1/1');
    expect(seen).not.toContain('Hello');
    gates.token.resolve();
    await until('friend');
    await until('."');
    expect(seen).not.toContain('"finish_reason":"stop"');
    gates.finish.resolve();
    await until('[DONE]');
    expect(seen).toContain('"finish_reason":"stop"');
  });

  test('a silent prefill is bridged by a comment every 10 seconds', async () => {
    vi.useFakeTimers();
    const { chat, host } = fixture();
    const gate = Promise.withResolvers<void>();
    host.pause = async (where) => (where === 'token' ? gate.promise : undefined);
    const response = await chat({ stream: true });
    await vi.advanceTimersByTimeAsync(3 * HEARTBEAT_MS);
    gate.resolve();
    const { comments } = await readSse(response);
    expect(comments.length).toBe(1 + 3);
  });

  test('a turn that waits for its predecessor gets headers after 10 seconds', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'setInterval', 'clearInterval', 'Date'] });
    const { chat, host } = fixture();
    const gate = Promise.withResolvers<void>();
    host.pause = async (where) => (where === 'start' ? gate.promise : undefined);
    let response: Response | undefined;
    void chat({ stream: true }).then((r) => (response = r));
    while (host.turns.length === 0) await new Promise(setImmediate);
    await vi.advanceTimersByTimeAsync(HEARTBEAT_MS - 1);
    expect(response).toBeUndefined();
    await vi.advanceTimersByTimeAsync(1);
    expect(response?.status).toBe(200);
    gate.resolve();
    expect((await readSse(response!)).done).toBe(true);
  });

  test('a failure before the first event has its own status', async () => {
    const { chat, host } = fixture();
    host.refusal = new AdkvcError('session_busy', 'three turns wait already', { data: { retryAfter: 2.2 } });
    const response = await chat({ stream: true });
    expect(response.status).toBe(429);
    expect(response.headers.get('retry-after')).toBe('3');
    expect(await response.json()).toMatchObject({
      error: { code: 'session_busy', type: 'rate_limit_error' },
    });
  });

  test('a failure after the headers is an event, and no [DONE] follows', async () => {
    const { chat, host } = fixture();
    host.failure = { after: 2, error: { code: 'corrupt_data', message: 'a stored extent is damaged' } };
    const response = await chat({ stream: true });
    expect(response.status).toBe(200);
    const { chunks, done, text } = await readSse(response);
    expect(text).toBe('Hello there');
    expect(chunks.at(-1)).toEqual({
      error: {
        message: 'a stored extent is damaged',
        type: 'server_error',
        param: null,
        code: 'corrupt_data',
      },
    });
    expect(done).toBe(false);
  });

  test('a client that goes away aborts the turn', async () => {
    const { chat, host } = fixture();
    const gate = Promise.withResolvers<void>();
    host.pause = async (where) => (where === 'token' ? gate.promise : undefined);
    const response = await chat({ stream: true });
    await response.body!.cancel();
    expect(host.turns[0]!.signal.aborted).toBe(true);
    gate.resolve();
  });

  test('a client that does not read never holds the turn; too far behind, it counts as gone', async () => {
    const { chat, host } = fixture();
    host.pieces = Array.from({ length: 100 }, () => 'x'.repeat(MAX_BUFFERED_BYTES / 50));
    const response = await chat({ stream: true });
    await vi.waitFor(() => expect(host.turns[0]!.signal.aborted).toBe(true));
    await expect(response.text()).rejects.toThrow('too slowly');
  });

  test('an aborted request aborts the turn, streaming or not', async () => {
    for (const stream of [true, false]) {
      const { chat, host } = fixture();
      const gate = Promise.withResolvers<void>();
      host.pause = async (where) => (where === 'token' ? gate.promise : undefined);
      const client = new AbortController();
      const answer = chat({ stream }, { signal: client.signal });
      await vi.waitFor(() => expect(host.turns.length).toBe(1));
      client.abort();
      expect(host.turns[0]!.signal.aborted).toBe(true);
      gate.resolve();
      await (await answer).text();
    }
  });
});

describe('sampling', () => {
  test("what is unset or null takes the bundle's defaults", async () => {
    const { chat, host } = fixture();
    await chat({ temperature: null, top_p: null, max_tokens: null, stop: null, seed: null, n: null });
    const { sampling, maxTokens, stop } = host.turns[0]!.request;
    expect(sampling).toMatchObject({ temperature: 0.2, topP: 0.9, topK: 0, minP: 0, repetitionPenalty: 1 });
    expect(sampling.topLogprobs).toBeUndefined();
    expect(sampling.seed).toEqual(expect.any(Number));
    expect(maxTokens).toBe(512);
    expect(stop).toEqual([]);
  });

  test('everything that is set arrives', async () => {
    const { chat, host } = fixture();
    await chat({
      temperature: 0,
      top_p: 0.5,
      top_k: 40,
      min_p: 0.1,
      frequency_penalty: 0.5,
      presence_penalty: -1,
      repetition_penalty: 1.1,
      seed: 7,
      stop: ['a', 'b'],
      max_tokens: 3,
      max_completion_tokens: 5,
    });
    const { sampling, maxTokens, stop } = host.turns[0]!.request;
    expect(sampling).toEqual({
      temperature: 0,
      topP: 0.5,
      topK: 40,
      minP: 0.1,
      frequencyPenalty: 0.5,
      presencePenalty: -1,
      repetitionPenalty: 1.1,
      seed: 7,
      topLogprobs: undefined,
    });
    expect(maxTokens).toBe(5);
    expect(stop).toEqual(['a', 'b']);
  });
});

describe('what real clients send', () => {
  test('text parts, the developer role, null content, names and unknown fields', async () => {
    const { chat, host } = fixture();
    const response = await chat({
      messages: [
        { role: 'developer', content: 'Be brief.', name: 'x' },
        {
          role: 'user',
          content: [
            { type: 'text', text: 'one ' },
            { type: 'text', text: 'two' },
          ],
        },
        { role: 'assistant', content: null },
        { role: 'user', content: 'go' },
      ],
      user: 'u1',
      metadata: {},
      parallel_tool_calls: true,
      tools: [],
      tool_choice: 'auto',
      response_format: { type: 'text' },
      modalities: ['text'],
      logit_bias: {},
      service_tier: 'auto',
      something_new: 1,
    });
    expect(response.status).toBe(200);
    expect(host.turns[0]!.request.messages).toEqual([
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: 'one two' },
      { role: 'assistant', content: '' },
      { role: 'user', content: 'go' },
    ]);
  });

  const image = [{ type: 'image_url', image_url: { url: 'x' } }];
  test.each<[string, Record<string, unknown>, number, string, string]>([
    ['no model', { model: undefined }, 400, 'model', 'missing'],
    ['another model', { model: 'gpt-4o' }, 404, 'model', 'fake-model'],
    ['no messages', { messages: undefined }, 400, 'messages', 'missing'],
    ['empty messages', { messages: [] }, 400, 'messages', 'at least one'],
    ['a role', { messages: [{ role: 'tool', content: 'x' }] }, 400, 'messages[0].role', '"user"'],
    ['no content', { messages: [{ role: 'user' }] }, 400, 'messages[0]', 'needs content'],
    [
      'a number as content',
      { messages: [{ role: 'user', content: 5 }] },
      400,
      'messages[0].content',
      'string',
    ],
    ['an image', { messages: [{ role: 'user', content: image }] }, 400, 'messages[0].content', 'image_url'],
    ['n', { n: 2 }, 400, 'n', 'must be 1'],
    ['tools', { tools: [{ type: 'function' }] }, 400, 'tools', 'not supported'],
    ['a forced tool', { tool_choice: 'required' }, 400, 'tool_choice', 'not supported'],
    ['an unknown format', { response_format: { type: 'xml' } }, 400, 'response_format.type', 'json_schema'],
    [
      'a format without its schema',
      { response_format: { type: 'json_schema', json_schema: { name: 'a' } } },
      400,
      'response_format.json_schema.schema',
      'is missing',
    ],
    [
      'a schema that cannot be held',
      { response_format: { type: 'json_schema', json_schema: { schema: { type: 'string', pattern: 'a' } } } },
      400,
      'response_format.json_schema.schema.pattern',
      'not supported',
    ],
    ['logit_bias', { logit_bias: { 5: 1 } }, 400, 'logit_bias', 'not supported'],
    ['audio', { modalities: ['text', 'audio'] }, 400, 'modalities', '["text"]'],
    ['temperature', { temperature: 3 }, 400, 'temperature', 'from 0 to 2'],
    ['temperature as text', { temperature: '1' }, 400, 'temperature', 'from 0 to 2'],
    ['top_p 0', { top_p: 0 }, 400, 'top_p', 'above 0'],
    ['max_tokens 0', { max_tokens: 0 }, 400, 'max_tokens', 'integer from 1'],
    ['max_tokens beyond the context', { max_tokens: 9000 }, 400, 'max_tokens', '8192'],
    ['five stops', { stop: ['a', 'b', 'c', 'd', 'e'] }, 400, 'stop', 'up to 4'],
    ['an empty stop', { stop: '' }, 400, 'stop', '1 to 256'],
    ['a fractional seed', { seed: 0.5 }, 400, 'seed', 'integer'],
    ['top_logprobs alone', { top_logprobs: 2 }, 400, 'top_logprobs', 'logprobs: true'],
    ['too many top_logprobs', { logprobs: true, top_logprobs: 21 }, 400, 'top_logprobs', 'from 0 to 20'],
    ['stream_options alone', { stream_options: {} }, 400, 'stream_options', 'stream: true'],
    ['a bad session id', { session_id: 'a/b' }, 400, 'session_id', 'letters'],
    ['append without an id', { session_append: true }, 400, 'session_append', 'session_id'],
    [
      'append and overwrite',
      { session_id: 'a', session_append: true, session_overwrite: true },
      400,
      'session_overwrite',
      'one of them',
    ],
    ['store: false with an id', { session_id: 'a', store: false }, 400, 'store', 'session_id'],
  ])('refuses %s by name', async (_, fields, status, param, says) => {
    const { chat, host } = fixture();
    const response = await chat(fields);
    const { error }: any = await response.json();
    expect(response.status).toBe(status);
    expect(error).toMatchObject({ type: 'invalid_request_error', param });
    expect(error.message).toContain(says);
    expect(host.turns.length).toBe(0);
  });

  test('refuses what is no JSON, no object, and too large', async () => {
    const { call } = fixture();
    const path = '/v1/chat/completions';
    const codes = [];
    for (const body of ['{', '[]', '"x"', ' '.repeat(1_000_001)]) {
      const response = await call(path, body);
      codes.push([response.status, ((await response.json()) as any).error.code]);
    }
    expect(codes).toEqual([
      [400, 'invalid_json'],
      [400, 'invalid_input'],
      [400, 'invalid_input'],
      [413, 'request_too_large'],
    ]);
  });

  test('an alias is another name of the model', async () => {
    expect((await fixture().chat({ model: 'other-name' })).status).toBe(200);
  });

  test('what fails without a code tells nothing of the inside', async () => {
    const logged = vi.spyOn(console, 'error').mockImplementation(() => {});
    const { chat, host } = fixture();
    host.pause = async () => {
      throw new TypeError('secret path');
    };
    const response = await chat();
    expect(response.status).toBe(500);
    expect(JSON.stringify(await response.json())).not.toContain('secret');
    // Nor does what a conversation's object reports of its own failures.
    host.pause = async () => {};
    host.failure = { after: 0, error: { code: 'internal_error', message: 'secret path' } };
    expect(JSON.stringify(await (await chat()).json())).not.toContain('secret');
    expect(await (await chat({ stream: true })).text()).not.toContain('secret');
    expect(logged).toHaveBeenCalledTimes(3);
    logged.mockRestore();
  });
});

test('a format reaches the turn', async () => {
  const { chat, host } = fixture();
  await chat({ response_format: { type: 'json_object' } });
  expect(host.turns.at(-1)!.request.format).toEqual({ type: 'json_object' });
  const schema = { type: 'object', properties: { a: { type: 'integer' } } };
  await chat({ response_format: { type: 'json_schema', json_schema: { name: 'a', strict: true, schema } } });
  expect(host.turns.at(-1)!.request.format).toEqual({ type: 'json_schema', schema });
  await chat({ response_format: { type: 'text' } });
  expect(host.turns.at(-1)!.request.format).toBeUndefined();
});

test('a message has a name by the header idempotency-key, and with it a seed of its own', async () => {
  const { chat, host, call } = fixture();
  await call('/v1/sessions', { id: 's' });
  const named = (key: string, fields = {}) =>
    chat({ session_id: 's', session_append: true, ...fields }, { headers: { 'idempotency-key': key } });
  for (const key of ['a', 'a', 'b']) expect((await named(key)).status).toBe(200);
  const [a, again, b] = host.turns.map(({ request }) => request);
  expect([a!.idempotencyKey, b!.idempotencyKey]).toEqual(['a', 'b']);
  expect(again!.sampling.seed).toBe(a!.sampling.seed);
  expect(b!.sampling.seed).not.toBe(a!.sampling.seed);
  await named('a', { seed: 5 });
  expect(host.turns.at(-1)!.request.sampling.seed).toBe(5);
  // A whole conversation needs no name: what it shares with the log is never said twice.
  await chat({}, { headers: { 'idempotency-key': 'a' } });
  expect(host.turns.at(-1)!.request.idempotencyKey).toBeUndefined();
  for (const key of ['x'.repeat(129), 'a b']) expect((await named(key)).status).toBe(400);
});
