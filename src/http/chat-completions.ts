import type { Context } from 'hono';
import { AbortedError, AdkvcError, InvalidInputError } from '../core/errors.ts';
import type { SessionHost, TurnEvent, TurnRequest, WireError } from '../session/api.ts';
import { type Conversation, chooseConversation } from './conversation.ts';
import { errorReply, isInternal, wireError } from './error-response.ts';
import { HEARTBEAT_MS, PROGRESS_MS } from './limits.ts';
import { requireModel, type ServedModel } from './models.ts';
import { serverTiming, turnObject, usageObject } from './report.ts';
import { type ChatRequest, parseChatRequest, readJson } from './schema.ts';
import { type EventWriter, eventStream, SSE_HEADERS } from './sse.ts';

type Token = Extract<TurnEvent, { type: 'token' }>;
type Finished = Extract<TurnEvent, { type: 'finished' }>;

/** Fields that all chunks of an answer share. */
interface Envelope {
  readonly id: string;
  readonly created: number;
  readonly model: string;
  readonly system_fingerprint: string;
}

/** A turn whose first event is there: what it can be refused for is behind it. */
interface Begun {
  readonly first: TurnEvent;
  readonly rest: AsyncIterator<TurnEvent>;
}

/** POST /v1/chat/completions. https://platform.openai.com/docs/api-reference/chat/create */
export async function chatCompletions(
  c: Context,
  owner: string,
  host: SessionHost,
  model: ServedModel,
): Promise<Response> {
  const request = parseChatRequest(await readJson(c.req.raw));
  requireModel(model, request.model);
  const turn = turnRequest(request, model);
  const affinity = c.req.header('x-session-affinity') ?? null;
  const conversation = await chooseConversation(owner, model.id, request, affinity);

  const abort = new AbortController();
  const clientSignal = c.req.raw.signal;
  const onClientGone = (): void => abort.abort(new AbortedError('the client went away'));
  if (clientSignal.aborted) onClientGone();
  else clientSignal.addEventListener('abort', onClientGone, { once: true });

  const { key, id, mode, overwrite, store, implicit } = conversation;
  const begun = begin(host, key, id, { ...turn, mode, overwrite, store, implicit }, abort.signal);
  const envelope: Envelope = {
    id: `chatcmpl-${crypto.randomUUID().replaceAll('-', '')}`,
    created: Math.floor(Date.now() / 1000),
    model: model.id,
    system_fingerprint: `fp_${model.fingerprint.slice(0, 12)}`,
  };
  return request.stream
    ? streamed(c, begun, request, conversation, envelope, onClientGone)
    : whole(c, await begun, request, conversation, envelope);
}

function turnRequest(
  r: ChatRequest,
  model: ServedModel,
): Pick<TurnRequest, 'messages' | 'sampling' | 'stop' | 'maxTokens'> {
  const maxTokens = r.maxTokens ?? Math.min(model.generation.maxTokens, model.contextLength);
  if (maxTokens > model.contextLength)
    throw new InvalidInputError(
      `${r.maxTokensParam} is ${maxTokens}; the model's context holds ${model.contextLength} tokens, prompt and answer together`,
      r.maxTokensParam,
      { limit: model.contextLength },
    );
  return {
    messages: r.messages,
    sampling: {
      temperature: r.temperature ?? model.generation.temperature,
      topP: r.topP ?? model.generation.topP,
      topK: r.topK ?? 0,
      minP: r.minP ?? 0,
      frequencyPenalty: r.frequencyPenalty ?? 0,
      presencePenalty: r.presencePenalty ?? 0,
      repetitionPenalty: r.repetitionPenalty ?? 1,
      seed: r.seed ?? crypto.getRandomValues(new Uint32Array(1))[0]!,
      topLogprobs: r.topLogprobs,
    },
    stop: r.stop,
    maxTokens,
  };
}

async function begin(
  host: SessionHost,
  key: string,
  id: string,
  turn: TurnRequest,
  signal: AbortSignal,
): Promise<Begun> {
  const rest = (await host.turn(key, id, turn, signal))[Symbol.asyncIterator]();
  const { value: first, done } = await rest.next();
  if (done) throw endedEarly();
  if (first.type === 'failed') throw fromWire(first.error);
  return { first, rest };
}

async function whole(
  c: Context,
  begun: Begun,
  request: ChatRequest,
  conversation: Conversation,
  envelope: Envelope,
): Promise<Response> {
  const tokens: Token[] = [];
  const finished = await follow(begun, (event) => {
    if (event.type === 'token') tokens.push(event);
  });
  const content = tokens.map(({ text }) => text).join('') + finished.text;
  c.header('server-timing', serverTiming(finished.timing));
  return c.json({
    ...envelope,
    object: 'chat.completion',
    choices: [
      {
        index: 0,
        message: { role: 'assistant', content, refusal: null },
        logprobs: request.topLogprobs === undefined ? null : logprobs(tokens),
        finish_reason: finished.reason,
      },
    ],
    usage: usageObject(finished.usage),
    adkvc: turnObject(conversation.store ? conversation.id : null, finished),
  });
}

async function streamed(
  c: Context,
  begun: Promise<Begun>,
  request: ChatRequest,
  conversation: Conversation,
  envelope: Envelope,
  onGone: () => void,
): Promise<Response> {
  // What is refused at once gets its own status. A turn that waits long for its predecessor gets headers all the same,
  // so that nobody between takes the connection for dead; its refusal is then an event.
  let timer: ReturnType<typeof setTimeout> | undefined;
  const patience = new Promise((resolve) => (timer = setTimeout(resolve, HEARTBEAT_MS)));
  await Promise.race([begun, patience]);
  clearTimeout(timer);

  const { body, writer } = eventStream(onGone);
  void writeAnswer(writer, begun, request, conversation, envelope);
  return c.body(body, 200, SSE_HEADERS);
}

/** Never throws: what goes wrong is told as an event, and then no [DONE] comes. */
async function writeAnswer(
  writer: EventWriter,
  begun: Promise<Begun>,
  request: ChatRequest,
  conversation: Conversation,
  envelope: Envelope,
): Promise<void> {
  const chunk = (fields: Record<string, unknown>): void =>
    writer.data({
      ...envelope,
      object: 'chat.completion.chunk',
      ...fields,
      ...(request.includeUsage && fields.usage === undefined ? { usage: null } : {}),
    });
  const delta = (
    content: Record<string, unknown>,
    reason: string | null = null,
    tokens: Token[] = [],
    more: Record<string, unknown> = {},
  ): void =>
    chunk({
      choices: [
        {
          index: 0,
          delta: content,
          logprobs: tokens.length > 0 ? logprobs(tokens) : null,
          finish_reason: reason,
        },
      ],
      ...more,
    });

  let progress = 'waiting';
  let told = 0;
  const heartbeat = setInterval(() => writer.comment(progress), HEARTBEAT_MS);
  try {
    delta({ role: 'assistant', content: '' });
    const finished = await follow(await begun, (event) => {
      if (event.type === 'prefill') {
        progress = `prefill ${event.position}/${event.total}`;
        if (Date.now() - told < PROGRESS_MS && event.position < event.total) return;
        told = Date.now();
        writer.comment(progress);
      } else if (event.type === 'token') {
        progress = 'decode';
        const reported = request.topLogprobs === undefined ? [] : [event];
        if (event.text !== '' || reported.length > 0) delta({ content: event.text }, null, reported);
      }
    });
    // What was held back as the possible beginning of a stop string.
    if (finished.text !== '') delta({ content: finished.text });
    delta({}, finished.reason, [], {
      adkvc: turnObject(conversation.store ? conversation.id : null, finished),
    });
    if (request.includeUsage) chunk({ choices: [], usage: usageObject(finished.usage) });
    writer.done();
  } catch (error) {
    if (isInternal(error)) console.error(envelope.id, error);
    writer.data(errorReply(wireError(error)).body);
  } finally {
    clearInterval(heartbeat);
    writer.close();
  }
}

/** Hands every event to `onEvent` until the turn is committed. */
async function follow({ first, rest }: Begun, onEvent: (event: TurnEvent) => void): Promise<Finished> {
  try {
    for (let event = first; ; ) {
      if (event.type === 'finished') return event;
      if (event.type === 'failed') throw fromWire(event.error);
      onEvent(event);
      const next = await rest.next();
      if (next.done) throw endedEarly();
      event = next.value;
    }
  } finally {
    await rest.return?.();
  }
}

const fromWire = ({ code, message, param, data }: WireError): AdkvcError =>
  new AdkvcError(code, message, { param, data });
const endedEarly = (): Error => new Error('the turn ended without a result');

const utf8 = new TextEncoder();
/** A token may hold part of a character only; then its bytes are not known from its text. */
const bytesOf = (token: string): number[] | null =>
  token.includes('\ufffd') ? null : [...utf8.encode(token)];

function logprobs(tokens: readonly Token[]) {
  return {
    content: tokens.map(({ text, piece, logprob, top }) => ({
      token: piece ?? text,
      logprob: logprob ?? null,
      bytes: bytesOf(piece ?? text),
      top_logprobs: (top ?? []).map((other) => ({
        token: other.text,
        logprob: other.logprob,
        bytes: bytesOf(other.text),
      })),
    })),
    refusal: null,
  };
}
