import OpenAI from 'openai';
import { expect, test } from 'vitest';
import { AdkvcError } from '../../src/core/errors.ts';
import type { SessionHost } from '../../src/session/api.ts';
import { MAX_NOTE_CHARACTERS } from '../../src/session/limits.ts';
import { pause, prose, user, World } from '../helpers/sessions.ts';
import { fixture, MODEL } from './fixture.ts';

/** The official client over the application itself, a double of sessions behind it. @param real sessions to use instead */
function setup(real?: SessionHost) {
  const { app, host, call } = fixture({ anonymous: true }, undefined, real);
  const client = new OpenAI({
    baseURL: 'http://localhost:8787/v1',
    apiKey: 'unused',
    maxRetries: 0,
    fetch: async (url, init) => app.request(new Request(url as string, init as RequestInit), {}, {} as never),
  });
  const ask = (fields: object = {}) =>
    client.responses.create({
      model: MODEL.id,
      input: 'Hi',
      ...fields,
    } as OpenAI.Responses.ResponseCreateParamsNonStreaming);
  const lastTurn = () => host.turns.at(-1)!;
  return { client, host, ask, lastTurn, call };
}

function abortable() {
  const controller = new AbortController();
  return { signal: controller.signal, abort: () => controller.abort() };
}

test('a whole response', async () => {
  const { ask, lastTurn } = setup();
  const response = await ask({ instructions: 'Be brief.', metadata: { a: 'b' }, max_output_tokens: 9 });
  expect(response).toMatchObject({
    object: 'response',
    status: 'completed',
    model: MODEL.id,
    output_text: 'Hello there, friend.',
    error: null,
    incomplete_details: null,
    instructions: 'Be brief.',
    max_output_tokens: 9,
    metadata: { a: 'b' },
    previous_response_id: null,
    store: true,
    usage: {
      input_tokens: 3,
      input_tokens_details: { cached_tokens: 0 },
      output_tokens: 4,
      total_tokens: 7,
    },
  });
  expect(response.id).toMatch(/^resp_/);
  expect(lastTurn().request).toMatchObject({
    messages: [
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: 'Hi' },
    ],
    maxTokens: 9,
    store: true,
    implicit: false,
    ttlSeconds: 30 * 24 * 3600,
  });
});

test('the events of a stream, in their order, and the same response at their end', async () => {
  const { client, host } = setup();
  host.heldBack = '!';
  const stream = client.responses.stream({ model: MODEL.id, input: 'Hi' });
  const events: OpenAI.Responses.ResponseStreamEvent[] = [];
  for await (const event of stream) events.push(event as OpenAI.Responses.ResponseStreamEvent);
  expect(events.map(({ type }) => type)).toEqual([
    'response.created',
    'response.in_progress',
    'response.output_item.added',
    'response.content_part.added',
    ...Array(5).fill('response.output_text.delta'),
    'response.output_text.done',
    'response.content_part.done',
    'response.output_item.done',
    'response.completed',
  ]);
  expect(events.map(({ sequence_number }) => sequence_number)).toEqual(events.map((_, i) => i));
  const final = await stream.finalResponse();
  expect(final.output_text).toBe('Hello there, friend.!');
  const created = events[0] as OpenAI.Responses.ResponseCreatedEvent;
  expect(created.response).toMatchObject({ id: final.id, status: 'in_progress', output: [], usage: null });
});

test('an answer that is cut by its length is incomplete, whole and streamed', async () => {
  const { client, ask, host } = setup();
  host.reason = 'length';
  expect(await ask()).toMatchObject({
    status: 'incomplete',
    incomplete_details: { reason: 'max_output_tokens' },
    output: [{ status: 'incomplete' }],
  });
  const stream = await client.responses.create({ model: MODEL.id, input: 'Hi', stream: true });
  let last: OpenAI.Responses.ResponseStreamEvent | undefined;
  for await (const event of stream) last = event;
  expect(last!.type).toBe('response.incomplete');
});

test('previous_response_id goes on in the same session, whose log it repeats', async () => {
  const { ask, lastTurn } = setup();
  const first = await ask({ instructions: 'Be brief.' });
  const { key } = lastTurn();
  const second = await ask({ input: 'And?', instructions: 'Be brief.', previous_response_id: first.id });
  expect(lastTurn().key).toBe(key);
  expect(lastTurn().request).toMatchObject({ mode: 'whole', continues: true });
  expect(lastTurn().request.messages.map(({ content }) => content)).toEqual([
    'Be brief.',
    'Hi',
    'Hello there, friend.',
    'And?',
  ]);
  expect(second.previous_response_id).toBe(first.id);
  expect(second.usage!.input_tokens_details.cached_tokens).toBe(6);
});

test('a response that is not the newest forks: both branches stay what they were', async () => {
  const { ask, lastTurn, host } = setup();
  const first = await ask();
  const second = await ask({ input: 'Left', previous_response_id: first.id });
  const { key } = lastTurn();
  const third = await ask({ input: 'Right', previous_response_id: first.id });
  expect(lastTurn().key).not.toBe(key);
  const contents = (id: string) => host.sessions.get(id)!.messages.map(({ content }) => content);
  expect(contents(key)[2]).toBe('Left');
  expect(contents(lastTurn().key)).toEqual(['Hi', 'Hello there, friend.', 'Right', 'Hello there, friend.']);
  for (const [id, content] of [
    [second.id, 'Left'],
    [third.id, 'Right'],
  ] as const) {
    await ask({ input: 'On', previous_response_id: id });
    expect(lastTurn().request.messages.map((m) => m.content)).toEqual([
      'Hi',
      'Hello there, friend.',
      content,
      'Hello there, friend.',
      'On',
    ]);
  }
});

test('a fork whose turn is refused is removed again', async () => {
  const { ask, host } = setup();
  const first = await ask();
  await ask({ previous_response_id: first.id });
  const { turn } = host;
  host.turn = async (key, ...rest) => {
    if (host.sessions.get(key)!.messages.length === 2) throw new AdkvcError('session_busy', 'busy');
    return turn.call(host, key, ...rest);
  };
  await expect(ask({ previous_response_id: first.id })).rejects.toMatchObject({ status: 429 });
  expect(host.sessions.size).toBe(1);
});

test('instructions are those of one response', async () => {
  const { ask, lastTurn, host } = setup();
  const first = await ask({ instructions: 'Be brief.' });
  const before = lastTurn().key;
  await ask({ input: 'And?', previous_response_id: first.id });
  expect(lastTurn().request.messages.map(({ role }) => role)).toEqual(['user', 'assistant', 'user']);
  // What the first response stands for is not changed by it.
  expect(host.sessions.get(before)!.messages[0]!.content).toBe('Be brief.');
});

test('a conversation is a session that the client named', async () => {
  const { ask, lastTurn, call } = setup();
  await call('/v1/sessions', { id: 'talk' });
  const first = await ask({ conversation: 'talk', instructions: 'Be brief.' });
  expect(first.conversation).toEqual({ id: 'talk' });
  const second = await ask({ conversation: { id: 'talk' }, input: 'And?' });
  expect(lastTurn().request).toMatchObject({ mode: 'append', messages: [{ content: 'And?' }] });
  const session: any = await (await call('/v1/sessions/talk')).json();
  expect(session.turns).toBe(2);
  await ask({ input: 'On', previous_response_id: second.id });
  expect(lastTurn().request.messages.length).toBe(6);
  await ask({ conversation: 'talk', input: 'Now', instructions: 'Be long.' });
  expect(lastTurn().request.messages[0]).toEqual({ role: 'system', content: 'Be long.' });
  // The conversation reads otherwise now than what the response answered.
  await expect(ask({ previous_response_id: second.id })).rejects.toMatchObject({
    status: 404,
    code: 'response_not_found',
  });
});

test('responses of one conversation that are asked for at once are all said, and each is read under its id', async () => {
  const { ask, client, call } = setup(new World().host);
  const said = async () => ((await (await call('/v1/sessions/talk/messages')).json()) as any).data;
  const short = { conversation: 'talk', max_output_tokens: 4 };
  const inputs = ['one', 'two', 'three'];
  // The conversation begins with them, goes on with them, and is told other instructions.
  for (const instructions of [null, null, 'Be brief.']) {
    const before = (await (await call('/v1/sessions/talk')).json()) as any;
    const answers = await Promise.all(inputs.map((input) => ask({ ...short, input, instructions })));
    const messages = await said();
    expect(messages.length).toBe(2 * (before.turns ?? 0) + 6 + (instructions ? 1 : 0));
    for (const [i, { id, output_text }] of answers.entries()) {
      const at = messages.findLastIndex(({ content }: any) => content === inputs[i]);
      expect(messages[at + 1].content).toBe(output_text);
      expect((await client.responses.retrieve(id)).output_text).toBe(output_text);
    }
  }
});

test('a response that was interrupted before its answer began: asked for again it is said once, and its id never stands for what came later', async () => {
  const input = prose(3_000);
  const interrupted = async () => {
    const { ask, client, call } = setup(new World().host);
    const { signal, abort } = abortable();
    const body = { model: MODEL.id, conversation: 'talk', input, stream: true };
    const streamed = (await call('/v1/responses', body, { signal })).body!.getReader();
    const first = new TextDecoder().decode((await streamed.read()).value);
    abort();
    const session = async () => (await (await call('/v1/sessions/talk')).json()) as any;
    while ((await session()).busy) await pause(5);
    expect(await session()).toMatchObject({ turns: 0, tokens: expect.any(Number) });
    return { ask, client, id: /resp_[^"]+/.exec(first)![0] };
  };
  const short = { conversation: 'talk', max_output_tokens: 4 };

  const again = await interrupted();
  const answer = await again.ask({ ...short, input });
  expect(answer.id).toBe(again.id);
  expect((await again.client.responses.retrieve(answer.id)).output_text).toBe(answer.output_text);

  const { ask, client, id } = await interrupted();
  await ask({ ...short, input: 'another' });
  const missing = { status: 404, code: 'response_not_found' };
  await expect(client.responses.retrieve(id)).rejects.toMatchObject(missing);
  await expect(ask({ previous_response_id: id })).rejects.toMatchObject(missing);
  await expect(client.responses.delete(id)).rejects.toMatchObject(missing);
});

test('items: roles, parts, and an earlier answer as it was handed out', async () => {
  const { ask, lastTurn } = setup();
  const first = await ask();
  await ask({
    input: [
      { role: 'developer', content: 'Be brief.' },
      { type: 'message', role: 'user', content: [{ type: 'input_text', text: 'Hi' }] },
      ...first.output,
      { role: 'user', content: 'And?' },
    ],
  });
  expect(lastTurn().request.messages).toEqual([
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: 'Hi' },
    { role: 'assistant', content: 'Hello there, friend.' },
    { role: 'user', content: 'And?' },
  ]);
});

test('store: false leaves nothing that could be continued', async () => {
  const { ask, host, lastTurn } = setup();
  const first = await ask({ store: false });
  expect(host.sessions.size).toBe(0);
  await expect(ask({ previous_response_id: first.id })).rejects.toMatchObject({
    status: 404,
    param: 'previous_response_id',
  });
  const kept = await ask();
  await ask({ store: false, previous_response_id: kept.id });
  expect(lastTurn().request).toMatchObject({ store: false, implicit: true });
  expect(lastTurn().request.messages.length).toBe(3);
  expect(host.sessions.size).toBe(1);
});

test.each([
  [{ input: 5 }, 'input'],
  [{ input: [] }, 'input'],
  [{ input: [{ role: 'user', content: [{ type: 'input_image' }] }] }, 'input[0].content'],
  [{ input: [{ type: 'function_call_output', output: '' }] }, 'input[0].type'],
  [{ max_output_tokens: 0 }, 'max_output_tokens'],
  [{ temperature: 3 }, 'temperature'],
  [{ conversation: 'a', previous_response_id: 'resp_x' }, 'conversation'],
  [{ conversation: 'a', store: false }, 'store'],
  [{ tools: [{ type: 'web_search' }] }, 'tools'],
  [{ background: true }, 'background'],
  [{ truncation: 'auto' }, 'truncation'],
  [{ metadata: { a: 1 } }, 'metadata.a'],
])('%o is refused by name', async (fields, param) => {
  await expect(setup().ask(fields)).rejects.toMatchObject({ status: 400, param });
});

test('a refusal has its status, a failure after the first event is told by response.failed', async () => {
  const { ask, client, host } = setup();
  host.refusal = new AdkvcError('session_busy', 'busy', { data: { retryAfter: 7 } });
  await expect(ask()).rejects.toMatchObject({ status: 429 });
  host.refusal = undefined;
  host.failure = { after: 1, error: { code: 'turn_interrupted', message: 'again' } };
  const stream = await client.responses.create({ model: MODEL.id, input: 'Hi', stream: true });
  const types: string[] = [];
  for await (const event of stream) {
    types.push(event.type);
    if (event.type === 'response.failed')
      expect(event.response).toMatchObject({ status: 'failed', error: { code: 'turn_interrupted' } });
  }
  expect(types.at(-1)).toBe('response.failed');
});

test('log-probabilities when they are asked for', async () => {
  const { ask } = setup();
  const response = await ask({ top_logprobs: 2, include: ['message.output_text.logprobs'] });
  const [item] = response.output as OpenAI.Responses.ResponseOutputMessage[];
  const part = item!.content[0] as OpenAI.Responses.ResponseOutputText;
  expect(part.logprobs!.length).toBe(4);
  expect(part.logprobs![0]).toMatchObject({ token: 'Hello', logprob: -0.5 });
  expect(part.logprobs![0]!.top_logprobs.length).toBe(2);
});

test('the responses of one key are not there for another', async () => {
  const digest = async (key: string) =>
    Buffer.from(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(key))).toString('hex');
  const { call } = fixture({ keys: `ann:${await digest('a')},bob:${await digest('b')}` });
  const as = async (key: string, fields: object): Promise<Response> =>
    call(
      '/v1/responses',
      { model: MODEL.id, input: 'Hi', ...fields },
      {
        headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
      },
    );
  const { id } = (await (await as('a', {})).json()) as { id: string };
  expect((await as('b', { previous_response_id: id })).status).toBe(404);
  for (const path of [`/v1/responses/${id}`, `/v1/responses/${id}/input_items`])
    for (const [key, status] of [
      ['b', 404],
      ['a', 200],
    ] as const)
      expect((await call(path, undefined, { headers: { authorization: `Bearer ${key}` } })).status).toBe(
        status,
      );
  expect((await as('a', { previous_response_id: id })).status).toBe(200);
});

test('a format reaches the turn, and the response repeats it', async () => {
  const { ask, lastTurn } = setup();
  const format = { type: 'json_schema', name: 'a', schema: { type: 'object' }, strict: true };
  const response = await ask({ text: { format } });
  expect(lastTurn().request.format).toEqual({ type: 'json_schema', schema: { type: 'object' } });
  expect(response.text).toEqual({ format });
  await expect(
    ask({ text: { format: { ...format, schema: { type: 'string', format: 'date' } } } }),
  ).rejects.toMatchObject({ status: 400, param: 'text.format.schema.format' });
});

test('a stored response is read as it was handed out, by its own key alone', async () => {
  const { client, ask, host } = setup();
  for (const reason of ['stop', 'length'] as const) {
    host.reason = reason;
    const { output_text: _, ...made } = (await ask({
      instructions: 'Be brief.',
      metadata: { a: 'b' },
      temperature: 0.5,
      text: { format: { type: 'json_object' } },
    })) as any;
    const { output_text: text, ...read } = (await client.responses.retrieve(made.id)) as any;
    expect(text).toBe('Hello there, friend.');
    const { adkvc, completed_at, ...told } = made;
    expect(read.completed_at === null).toBe(completed_at === null);
    expect(Math.abs((read.completed_at ?? 0) - (completed_at ?? 0))).toBeLessThan(2);
    expect({ ...read, completed_at }).toEqual({ ...told, completed_at });
    expect(adkvc).toBeDefined();
  }
  const kept = await ask();
  const [session] = [...host.sessions.values()].slice(-1);
  // A note that an imported session brought may be anything.
  const [said, answer] = session!.messages;
  for (const note of ['[]', 'null', '{', '7']) {
    session!.messages = [said!, { ...answer!, made: { ...answer!.made!, note } }];
    await expect(client.responses.retrieve(kept.id)).rejects.toMatchObject({ status: 404 });
  }
  for (const id of ['resp_none', 'resp_0123456789abcdefs0_none'])
    await expect(client.responses.retrieve(id)).rejects.toMatchObject({ code: 'response_not_found' });
  await expect(client.responses.retrieve((await ask({ store: false })).id)).rejects.toMatchObject({
    status: 404,
  });
});

test('input items: what a response answered, page by page, without its instructions', async () => {
  const { client, ask } = setup();
  const first = await ask({
    instructions: 'Be brief.',
    input: [
      { role: 'developer', content: 'Dev' },
      { role: 'user', content: 'one' },
    ],
  });
  const list = async (id: string, query: object = {}) => {
    const items: any[] = [];
    for await (const item of client.responses.inputItems.list(id, query)) items.push(item);
    return items;
  };
  const texts = (items: any[]) => items.map(({ role, content }) => [role, content[0].type, content[0].text]);
  expect(texts(await list(first.id, { order: 'asc' }))).toEqual([
    ['system', 'input_text', 'Dev'],
    ['user', 'input_text', 'one'],
  ]);
  const second = await ask({ input: 'two', instructions: 'Be brief.', previous_response_id: first.id });
  const items = await list(second.id, { order: 'asc' });
  expect(texts(items).slice(1)).toEqual([
    ['user', 'input_text', 'one'],
    ['assistant', 'output_text', 'Hello there, friend.'],
    ['user', 'input_text', 'two'],
  ]);
  // An answer has the id under which it was handed out; the others have one that stays.
  expect(items[2].id).toBe(first.output[0]!.id);
  expect(new Set(items.map(({ id }) => id)).size).toBe(4);
  // Newest first by default; the client follows the pages by itself.
  const page = await client.responses.inputItems.list(second.id, { limit: 3 });
  expect([page.data.map(({ id }) => id), page.has_more]).toEqual([
    items
      .toReversed()
      .slice(0, 3)
      .map(({ id }) => id),
    true,
  ]);
  for (const limit of [1, 3, 4, 100]) expect(await list(second.id, { limit })).toEqual(items.toReversed());
  // Those of the first are as they were.
  expect((await list(first.id)).length).toBe(2);

  for (const [query, param] of [
    [{ limit: 0 }, 'limit'],
    [{ limit: 101 }, 'limit'],
    [{ order: 'up' }, 'order'],
    [{ after: 'msg_none' }, 'after'],
  ] as const)
    await expect(list(second.id, query)).rejects.toMatchObject({ status: 400, param });
  await expect(list('resp_none')).rejects.toMatchObject({ status: 404, code: 'response_not_found' });
  await client.responses.delete(second.id);
  await expect(list(second.id)).rejects.toMatchObject({ status: 404 });
});

test('a deleted response is gone: alone with its session, the newest with its question, an older one for whoever names it', async () => {
  const { client, ask, host } = setup();
  const alone = await ask();
  await client.responses.delete(alone.id);
  expect(host.sessions.size).toBe(0);

  const first = await ask({ input: 'one' });
  const second = await ask({ input: 'two', previous_response_id: first.id });
  const third = await ask({ input: 'three', previous_response_id: second.id });
  expect(host.sessions.size).toBe(1);
  await client.responses.delete(second.id);
  for (const id of [alone.id, second.id]) {
    await expect(client.responses.retrieve(id)).rejects.toMatchObject({ status: 404 });
    await expect(ask({ previous_response_id: id })).rejects.toMatchObject({ code: 'response_not_found' });
    await expect(client.responses.delete(id)).rejects.toMatchObject({ status: 404 });
  }
  expect((await client.responses.retrieve(third.id)).output_text).toBe('Hello there, friend.');
  await client.responses.delete(third.id);
  const [session] = host.sessions.values();
  expect(session!.messages.map(({ content }) => content)).not.toContain('three');

  const named = await ask({ conversation: 'mine' });
  await client.responses.delete(named.id);
  expect([...host.sessions.values()].map(({ info, messages }) => [info.id, messages.length])).toContainEqual([
    'mine',
    0,
  ]);
});

test('deleted responses leave no text behind: not what the client brought, not a fork, not one that was deleted before', async () => {
  const world = new World();
  const { client, ask } = setup(world.host);
  const holding = (text: string) =>
    [...world.stores.values()].filter((store) =>
      store.ids().some((row) => new TextDecoder('latin1').decode(store.get(row)!).includes(text)),
    ).length;
  const short = { max_output_tokens: 4 };
  const brought = [
    { role: 'user', content: 'SECRET question' },
    { role: 'assistant', content: 'SECRET answer' },
    { role: 'user', content: 'SECRET more' },
  ];
  const alone = await ask({ ...short, input: brought });
  await client.responses.delete(alone.id);
  expect(holding('SECRET')).toBe(0);

  const first = await ask({ ...short, input: 'SECRET one' });
  const second = await ask({ ...short, input: 'two', previous_response_id: first.id });
  const forked = await ask({
    ...short,
    input: [...brought.slice(1), ...brought],
    previous_response_id: first.id,
  });
  expect(holding('SECRET')).toBe(2);
  await client.responses.delete(forked.id);
  expect(holding('SECRET')).toBe(1);
  const kept = await client.responses.retrieve(second.id);
  expect(kept.output_text).toBe(second.output_text);
  expect(kept).not.toHaveProperty('session');
  await client.responses.delete(first.id);
  await client.responses.delete(second.id);
  expect(holding('SECRET')).toBe(0);
});

test('a deletion that is sent twice at once deletes once, and never what was said in between', async () => {
  const world = new World();
  const { client, ask, call } = setup(world.host);
  const short = { max_output_tokens: 4 };
  const remove = async ({ id }: { id: string }) =>
    (await call(`/v1/responses/${id}`, undefined, { method: 'DELETE' })).json() as any;
  const twice = async (response: { id: string }) =>
    (await Promise.all([remove(response), remove(response)])).map((told) => told.error?.code ?? 'deleted');
  const first = await ask({ ...short, input: 'one' });
  const second = await ask({ ...short, input: 'two', previous_response_id: first.id });
  expect((await twice(second)).sort()).toEqual(['deleted', 'response_not_found']);
  expect((await client.responses.retrieve(first.id)).output_text).toBe(first.output_text);
  expect((await twice(first)).sort()).toEqual(['deleted', 'response_not_found']);

  // By a mark of what was said.
  await world.turn([user('one')]);
  await expect(world.host.unsay('k', 2, 'another')).rejects.toMatchObject({ code: 'session_moved' });
  expect(await world.host.messages('k')).toHaveLength(2);
});

test('what goes on from an answer that is still being said goes on from all of it', async () => {
  const { client, ask, call } = setup(new World().host);
  const long = { model: MODEL.id, input: 'tell', temperature: 1, seed: 3, max_output_tokens: 3_000 };
  const reader = (await call('/v1/responses', { ...long, stream: true })).body!.getReader();
  const id = /resp_[^"]+/.exec(new TextDecoder().decode((await reader.read()).value))![0];
  const said = async () =>
    ((await (await call(`/v1/sessions/${id.slice(24)}/messages`)).json()) as any).data.length;
  const finished = (async () => {
    while (!(await reader.read()).done);
  })();
  // The first part of a long answer is stored while it is said.
  while ((await said()) < 2) await pause(2);
  const next = await ask({ input: 'more', previous_response_id: id, max_output_tokens: 4 });
  await finished;
  const items: any[] = [];
  for await (const item of client.responses.inputItems.list(next.id, { order: 'asc' })) items.push(item);
  expect(items[1].content[0].text).toBe((await client.responses.retrieve(id)).output_text);
});

test('deleting a response does not end the one that is going on from it', async () => {
  const { client, ask, call } = setup(new World().host);
  const first = await ask({ input: 'one', max_output_tokens: 4 });
  const body = { model: MODEL.id, input: prose(2_000), previous_response_id: first.id, max_output_tokens: 4 };
  const second = await call('/v1/responses', { ...body, stream: true });
  await client.responses.delete(first.id);
  const id = /resp_[^"]+/.exec(await second.text())![0];
  expect(await client.responses.retrieve(id)).toMatchObject({ status: 'incomplete' });
  await expect(client.responses.retrieve(first.id)).rejects.toMatchObject({ status: 404 });
});

test('what is kept with a response is bounded', async () => {
  const { ask } = setup();
  const metadata = { a: 'b'.repeat(MAX_NOTE_CHARACTERS) };
  await expect(ask({ metadata })).rejects.toMatchObject({ status: 400, code: 'invalid_input' });
  await expect(ask({ metadata, store: false })).resolves.toBeDefined();
});
