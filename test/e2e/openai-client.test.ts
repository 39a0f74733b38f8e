import OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { completeConfig } from '../../src/cache/policy.ts';
import { loadWasmKernels } from '../../src/cli/load-engine.ts';
import { loadEngine } from '../../src/engine/load.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { violations } from '../helpers/json-schema.ts';
import { startServer, type TestServer } from '../helpers/server.ts';
import { type TinyServed, tinyServed } from '../helpers/tiny-bundle.ts';

/** The official client, over a socket, against workerd; a tiny model of random weights answers. */
let tiny: TinyServed;
let server: TestServer;
let client: OpenAI;
let model: string;

beforeAll(async () => {
  // With a tied embedding, random weights repeat their last token for ever.
  tiny = await tinyServed({ endless: true });
  model = tiny.modelId;
  server = await startServer(tiny);
  client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'unused', maxRetries: 0 });
});
afterAll(async () => {
  await server?.stop();
  await tiny?.remove();
});

const user = (content: string) => ({ role: 'user' as const, content });
const opening = [{ role: 'system' as const, content: 'Be brief.' }, user('What is the use of a test?')];

describe('chat completions', () => {
  test('a whole answer and the same one streamed', async () => {
    const request = { model, messages: opening, max_completion_tokens: 12, temperature: 0 };
    const whole = await client.chat.completions.create({ ...request, store: false });
    expect(whole.choices[0]!.finish_reason).toBe('length');
    expect(whole.usage).toMatchObject({ completion_tokens: 12, prompt_tokens_details: { cached_tokens: 0 } });
    const stream = await client.chat.completions.create({
      ...request,
      store: false,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = '';
    let usage: OpenAI.CompletionUsage | null | undefined;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? '';
      usage = chunk.usage ?? usage;
    }
    expect(text).toBe(whole.choices[0]!.message.content);
    expect(usage).toEqual(whole.usage);
  });

  test('a resent history is reused from the cache, all but its last token', async () => {
    const request = {
      model,
      max_completion_tokens: 8,
      temperature: 0,
      prompt_cache_key: crypto.randomUUID(),
    };
    const first = await client.chat.completions.create({ ...request, messages: opening });
    const answer = first.choices[0]!.message;
    const second = await client.chat.completions.create({
      ...request,
      messages: [...opening, { role: 'assistant', content: answer.content }, user('And then?')],
    });
    // What the first turn left in the cache: its prompt and its answer but for the last token, which was never fed.
    expect(second.usage!.prompt_tokens_details!.cached_tokens).toBe(first.usage!.total_tokens - 1);
    expect(second.usage!.prompt_tokens).toBeGreaterThan(first.usage!.total_tokens);
  });

  test('a seed fixes what is drawn', async () => {
    const draw = async (seed: number): Promise<string | null> => {
      const { choices } = await client.chat.completions.create({
        model,
        messages: opening,
        max_completion_tokens: 12,
        temperature: 2,
        seed,
        store: false,
      });
      return choices[0]!.message.content;
    };
    expect(await draw(1)).toBe(await draw(1));
    expect(await draw(1)).not.toBe(await draw(2));
  });

  test('log-probabilities are those of the model alone, whatever is drawn from them, and every token has its bytes', async () => {
    const request = {
      model,
      messages: opening,
      max_completion_tokens: 8,
      temperature: 1.7,
      top_p: 0.8,
      presence_penalty: 1.5,
      seed: 9,
      logprobs: true,
      store: false,
    };
    const { choices } = await client.chat.completions.create({ ...request, top_logprobs: 20 });
    const content = choices[0]!.logprobs!.content!;
    expect(content.length).toBe(8);
    // Another host's engine, fed with what was drawn: a token is found by its bytes.
    const kernels = await loadWasmKernels(256e6);
    const engine = await loadEngine({ source: folderSource(tiny.bundleDir), kernels });
    const { tokenizer } = engine;
    const ids = new Map<string, number>();
    for (let id = 0; id < tokenizer.vocab; id++) ids.set(String([...tokenizer.bytesOf(id)]), id);
    const cache = engine.createCache(completeConfig({}));
    let feed = engine.template.encode(opening, { addGenerationPrompt: true }).ids;
    let greedy = 0;
    for (const token of content) {
      const logits = await engine.feed(cache, feed, 'last');
      const most = Math.max(...logits);
      const norm = most + Math.log(logits.reduce((sum, x) => sum + Math.exp(x - most), 0));
      const expected = [...logits].map((x) => x - norm);
      const id = ids.get(String(token.bytes))!;
      expect(Math.abs(token.logprob - expected[id]!)).toBeLessThan(1e-3);
      const best = expected.toSorted((x, y) => y - x).slice(0, 20);
      expect(token.top_logprobs.length).toBe(20);
      for (const [rank, other] of token.top_logprobs.entries()) {
        expect(Math.abs(other.logprob - best[rank]!)).toBeLessThan(1e-3);
        expect(Math.abs(other.logprob - expected[ids.get(String(other.bytes))!]!)).toBeLessThan(1e-3);
      }
      if (token.logprob === token.top_logprobs[0]!.logprob) greedy++;
      feed = [id];
    }
    cache.dispose();
    // It was drawn hot: the distribution of temperature 1 is told all the same.
    expect(greedy).toBeLessThan(8);
    const text = new TextDecoder().decode(Uint8Array.from(content.flatMap(({ bytes }) => bytes!)));
    expect(choices[0]!.message.content).toBe(text);

    const bare = await client.chat.completions.create(request);
    expect(bare.choices[0]!.logprobs!.content).toEqual(
      content.map((token) => ({ ...token, top_logprobs: [] })),
    );
  });

  test('a stop string across the border of two tokens ends the answer before it, streamed or not', async () => {
    const request = { model, messages: opening, max_completion_tokens: 40, temperature: 0, store: false };
    const { choices } = await client.chat.completions.create({ ...request, logprobs: true });
    const text = choices[0]!.message.content!;
    const tokens = choices[0]!.logprobs!.content!.map(({ token }) => token);
    let stop: string | undefined;
    for (let i = 1; i < tokens.length && stop === undefined; i++) {
      const [before, after] = [tokens[i - 1]!, tokens[i]!];
      const across = before.slice(-1) + after.slice(0, 1);
      const at = tokens.slice(0, i).join('').length - 1;
      if (i > 2 && /^[\x21-\x7e]{2}$/.test(across) && text.indexOf(across) === at) stop = across;
    }
    expect(stop, text).toBeDefined();
    const expected = text.slice(0, text.indexOf(stop!));
    const cut = await client.chat.completions.create({ ...request, stop: ['never said', stop!] });
    expect(cut.choices[0]).toMatchObject({ finish_reason: 'stop', message: { content: expected } });
    let streamed = '';
    for await (const chunk of await client.chat.completions.create({ ...request, stop: stop!, stream: true }))
      streamed += chunk.choices[0]?.delta.content ?? '';
    expect(streamed).toBe(expected);
  });

  test('a client that leaves stops the answer; what was said is kept, and the session goes on', async () => {
    const session = { session_id: 'leaver' };
    const stream = await client.chat.completions.create({
      model,
      messages: [user('Go on for long.')],
      stream: true,
      max_completion_tokens: 400,
      temperature: 1,
      seed: 3,
      ...session,
    } as OpenAI.ChatCompletionCreateParamsStreaming);
    let seen = 0;
    for await (const chunk of stream) {
      if (chunk.choices[0]?.delta.content) seen++;
      if (seen === 3) break;
    }
    await expect.poll(async () => (await fetch(`${server.url}/v1/sessions/leaver`)).status).toBe(200);
    const again = await client.chat.completions.create({
      model,
      messages: [user('And now?')],
      session_append: true,
      max_completion_tokens: 2,
      temperature: 0,
      ...session,
    } as OpenAI.ChatCompletionCreateParamsNonStreaming);
    expect(again.usage!.prompt_tokens_details!.cached_tokens).toBeGreaterThan(0);
  });
});

describe('responses', () => {
  const ask = { max_output_tokens: 8, temperature: 0 };

  test('go on from the newest in its cache, fork from an older one', async () => {
    const first = await client.responses.create({
      model,
      input: 'What is a test?',
      instructions: 'Be brief.',
      ...ask,
    });
    expect(first).toMatchObject({ status: 'incomplete', usage: { output_tokens: 8 } });
    const next = {
      model,
      input: 'And then?',
      instructions: 'Be brief.',
      previous_response_id: first.id,
      ...ask,
    };
    const second = await client.responses.create(next);
    expect(second.usage!.input_tokens_details.cached_tokens).toBe(first.usage!.total_tokens - 1);
    // The first is not the newest any more; the fork stands where it stood, and so says the same.
    const fork = await client.responses.create(next);
    expect(fork.id).not.toBe(second.id);
    expect(fork.output_text).toBe(second.output_text);
    expect(fork.usage!.input_tokens_details.cached_tokens).toBe(first.usage!.total_tokens - 1);
  });

  test('are read again, and deleted: the newest of a chain first', async () => {
    const first = await client.responses.create({ model, input: 'What is a test?', ...ask });
    const second = await client.responses.create({
      model,
      input: 'And then?',
      previous_response_id: first.id,
      ...ask,
    });
    const read = await client.responses.retrieve(second.id);
    expect([read.output_text, read.usage, read.status]).toEqual([
      second.output_text,
      second.usage,
      second.status,
    ]);
    const items: OpenAI.Responses.ResponseItem[] = [];
    for await (const item of client.responses.inputItems.list(second.id, { order: 'asc', limit: 2 }))
      items.push(item);
    expect(items).toMatchObject([
      { role: 'user', content: [{ type: 'input_text', text: 'What is a test?' }] },
      { id: first.output[0]!.id, role: 'assistant', content: [{ text: first.output_text }] },
      { role: 'user', content: [{ type: 'input_text', text: 'And then?' }] },
    ]);
    await client.responses.delete(second.id);
    await expect(client.responses.retrieve(second.id)).rejects.toBeInstanceOf(OpenAI.NotFoundError);
    // What the first one's cache holds is there still.
    const third = await client.responses.create({
      model,
      input: 'Once more?',
      previous_response_id: first.id,
      ...ask,
    });
    expect(third.usage!.input_tokens_details.cached_tokens).toBe(first.usage!.total_tokens - 1);
  });

  test('stream the events that the client accumulates', async () => {
    const request = { model, input: 'What is a test?', store: false, ...ask };
    const stream = client.responses.stream(request);
    let text = '';
    for await (const event of stream) if (event.type === 'response.output_text.delta') text += event.delta;
    const final = await stream.finalResponse();
    expect(final.output_text).toBe(text);
    expect((await client.responses.create(request)).output_text).toBe(text);
  });
});

describe('answers that are JSON', () => {
  const schema = {
    type: 'object',
    properties: {
      name: { type: 'string', maxLength: 8 },
      mood: { enum: ['glad', 'sad'] },
      list: { type: 'array', items: { type: 'integer' }, minItems: 1, maxItems: 3 },
    },
    required: ['name', 'mood', 'list'],
    additionalProperties: false,
  };

  test('of a schema, by chat completions and by responses', async () => {
    const format = { name: 'thing', strict: true, schema };
    for (const seed of [1, 2, 3]) {
      const { choices } = await client.chat.completions.create({
        model,
        messages: opening,
        seed,
        temperature: 1,
        store: false,
        response_format: { type: 'json_schema', json_schema: format },
      });
      expect(choices[0]!.finish_reason).toBe('stop');
      expect(violations(schema, JSON.parse(choices[0]!.message.content!))).toEqual([]);
    }
    // What is drawn by chance may be a number without end.
    const request = {
      model,
      input: 'A thing',
      store: false,
      seed: 1,
      temperature: 1,
      text: { format: { type: 'json_schema' as const, ...format } },
    };
    const response = await client.responses.create(request);
    expect(response.status).toBe('completed');
    expect(violations(schema, JSON.parse(response.output_text))).toEqual([]);
  });

  test('cut by its length, and the answer says so', async () => {
    const { choices } = await client.chat.completions.create({
      model,
      messages: opening,
      max_completion_tokens: 4,
      store: false,
      response_format: {
        type: 'json_schema',
        json_schema: { name: 'long', schema: { type: 'array', items: { type: 'boolean' }, minItems: 50 } },
      },
    });
    expect(choices[0]!.finish_reason).toBe('length');
    expect(choices[0]!.message.content).toMatch(/^\[/);
  });
});

describe('errors', () => {
  test('arrive as the classes of the client', async () => {
    const create = (fields: object) =>
      client.chat.completions.create({
        model,
        messages: opening,
        ...fields,
      } as OpenAI.ChatCompletionCreateParamsNonStreaming);
    await expect(create({ model: 'gpt-none' })).rejects.toBeInstanceOf(OpenAI.NotFoundError);
    await expect(create({ n: 2 })).rejects.toMatchObject({
      status: 400,
      param: 'n',
      code: 'unsupported_parameter',
    });
    await expect(create({ session_id: 'x', messages: [user('a')] })).resolves.toBeDefined();
    await expect(create({ session_id: 'x', messages: [user('b')] })).rejects.toBeInstanceOf(
      OpenAI.ConflictError,
    );
  });

  test('a conversation beyond the context names the tokens that fit', async () => {
    const long = client.chat.completions.create({
      model,
      messages: [user('word '.repeat(60_000))],
      store: false,
    });
    await expect(long).rejects.toMatchObject({ status: 400, code: 'context_length_exceeded' });
  });
});

describe('models and sessions', () => {
  test('the model is listed', async () => {
    const ids = [];
    for await (const { id } of client.models.list()) ids.push(id);
    expect(ids).toEqual([model]);
    expect((await client.models.retrieve(model)).owned_by).toBe('adkvc');
  });

  test('a session is created, used, read and deleted', async () => {
    const post = (path: string, body: unknown) =>
      fetch(`${server.url}${path}`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(body),
      });
    const created: any = await (
      await post('/v1/sessions', { policy: 'uniform', ratio: 2, ttl_seconds: 600 })
    ).json();
    expect(created.cache_config).toMatchObject({ policy: 'uniform', ratio: 2 });
    const answer = await post('/v1/chat/completions', {
      model,
      messages: opening,
      session_id: created.id,
      max_tokens: 4,
    });
    expect(answer.status).toBe(200);
    const read: any = await (await fetch(`${server.url}/v1/sessions/${created.id}`)).json();
    expect(read).toMatchObject({ turns: 1, cache: { policy: 'uniform' } });
    expect(read.stored_bytes).toBeGreaterThan(0);
    const messages: any = await (await fetch(`${server.url}/v1/sessions/${created.id}/messages`)).json();
    expect(messages.data.map((m: any) => m.role)).toEqual(['system', 'user', 'assistant']);
    const gone = await fetch(`${server.url}/v1/sessions/${created.id}`, { method: 'DELETE' });
    expect(gone.status).toBe(200);
    expect((await fetch(`${server.url}/v1/sessions/${created.id}`)).status).toBe(404);
  });
});

test('the page, its headers and the bundle are static assets; nothing is answered without headers', async () => {
  const page = await fetch(`${server.url}/`);
  expect(page.status).toBe(200);
  expect(await page.text()).toContain('<title>ADKVC</title>');
  for (const [path, status] of [
    ['/', 200],
    ['/page.js', 200],
    ['/page.css', 200],
    ['/bundle/manifest.json', 200],
    ['/nothing', 404],
    ['/v1/nothing', 404],
    ['/v1/sessions/none', 404],
    ['/v1/models', 200],
    ['/health', 200],
    ['/metrics', 200],
    ['/docs', 200],
    ['/openapi.json', 200],
  ] as const) {
    const response = await fetch(server.url + path, { headers: { accept: '*/*' } });
    await response.arrayBuffer();
    expect([path, response.status]).toEqual([path, status]);
    const { headers } = response;
    expect(headers.get('content-security-policy'), path).toContain("default-src 'none'");
    expect(headers.get('x-content-type-options'), path).toBe('nosniff');
    expect(headers.get('referrer-policy'), path).toBe('no-referrer');
    expect(headers.get('cross-origin-resource-policy'), path).toBe('same-origin');
    expect(
      [...headers.keys()].filter((name) => name.startsWith('access-control')),
      path,
    ).toEqual([]);
  }
});

test('counters are kept in an object of their own; the API describes itself', async () => {
  const before = await (await fetch(`${server.url}/metrics`)).text();
  // Drawn by chance: it may end before its length. Turns before it may be counted late.
  const { usage } = await client.responses.create({
    model,
    input: 'Hi',
    max_output_tokens: 3,
    store: false,
  });
  const tokens = (text: string) => Number(/^adkvc_completion_tokens_total (\d+)$/m.exec(text)?.[1] ?? 0);
  await expect
    .poll(async () => tokens(await (await fetch(`${server.url}/metrics`)).text()))
    .toBeGreaterThanOrEqual(tokens(before) + usage!.output_tokens);
  const { paths }: any = await (await fetch(`${server.url}/openapi.json`)).json();
  expect(Object.keys(paths)).toContain('/v1/responses');
  expect((await fetch(`${server.url}/docs`)).headers.get('content-security-policy')).not.toContain('script');
});
