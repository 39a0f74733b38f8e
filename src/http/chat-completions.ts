import type { Context } from 'hono';
import { InvalidInputError } from '../core/errors.ts';
import type { SessionHost, TurnRequest } from '../session/api.ts';
import { hmac } from './auth.ts';
import { type Conversation, chooseConversation } from './conversation.ts';
import { errorReply, isInternal, wireError } from './error-response.ts';
import { HEARTBEAT_MS, PROGRESS_MS } from './limits.ts';
import { requireModel, type ServedModel } from './models.ts';
import { serverTiming, tokenLogprobs, turnObject, usageObject } from './report.ts';
import { type ChatRequest, parseChatRequest, readJson } from './schema.ts';
import { type EventWriter, eventStream, SSE_HEADERS } from './sse.ts';
import {
  answerTokens,
  type Begun,
  begin,
  clientAbort,
  firstEventOrPatience,
  follow,
  samplingOptions,
  type TokenEvent,
} from './turn.ts';

/** Fields that all chunks of an answer share. */
interface Envelope {
  readonly id: string;
  readonly created: number;
  readonly model: string;
  readonly system_fingerprint: string;
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
  const idempotencyKey = idempotencyKeyOf(c.req.header('idempotency-key'));
  const named = idempotencyKey !== undefined && request.append;
  const seed = request.seed ?? (named ? await seedOf(owner, idempotencyKey) : undefined);
  const turn = { ...turnRequest({ ...request, seed }, model), ...(named && { idempotencyKey }) };
  const affinity = c.req.header('x-session-affinity') ?? null;
  const conversation = await chooseConversation(owner, model.id, request, affinity);

  const { signal, onGone } = clientAbort(c);
  const { key, id, mode, overwrite, store, implicit } = conversation;
  const begun = begin(host, key, id, { ...turn, mode, overwrite, store, implicit }, signal);
  const envelope: Envelope = {
    id: `chatcmpl-${crypto.randomUUID().replaceAll('-', '')}`,
    created: Math.floor(Date.now() / 1000),
    model: model.id,
    system_fingerprint: `fp_${model.fingerprint.slice(0, 12)}`,
  };
  return request.stream
    ? streamed(c, begun, request, conversation, envelope, onGone)
    : whole(c, await begun, request, conversation, envelope);
}

const IDEMPOTENCY_KEY = /^[\x21-\x7e]{1,128}$/;

/** https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/ @throws InvalidInputError */
function idempotencyKeyOf(header: string | undefined): string | undefined {
  if (header !== undefined && !IDEMPOTENCY_KEY.test(header))
    throw new InvalidInputError(
      'The header idempotency-key must be 1 to 128 printable characters without spaces',
      'idempotency-key',
    );
  return header;
}

/** The same draws for the same message sent again. */
const seedOf = async (owner: string, key: string): Promise<number> =>
  new DataView((await hmac(owner, 'seed', key)).buffer).getUint32(0);

function turnRequest(
  r: ChatRequest,
  model: ServedModel,
): Pick<TurnRequest, 'messages' | 'sampling' | 'stop' | 'maxTokens' | 'format'> {
  return {
    messages: r.messages,
    sampling: samplingOptions(r, model),
    stop: r.stop,
    ...(r.format && { format: r.format }),
    maxTokens: answerTokens(r.maxTokens, r.maxTokensParam, model),
  };
}

async function whole(
  c: Context,
  begun: Begun,
  request: ChatRequest,
  conversation: Conversation,
  envelope: Envelope,
): Promise<Response> {
  const tokens: TokenEvent[] = [];
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
        logprobs:
          request.topLogprobs === undefined ? null : { content: tokenLogprobs(tokens), refusal: null },
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
  await firstEventOrPatience(begun);
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
    tokens: TokenEvent[] = [],
    more: Record<string, unknown> = {},
  ): void =>
    chunk({
      choices: [
        {
          index: 0,
          delta: content,
          logprobs: tokens.length > 0 ? { content: tokenLogprobs(tokens), refusal: null } : null,
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
        const reported = event.logprob === undefined ? [] : [event];
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
