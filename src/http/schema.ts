import * as v from 'valibot';
import { InvalidInputError } from '../core/errors.ts';
import { type AnswerFormat, compileSchema } from '../engine/json/schema.ts';
import type { ChatMessage } from '../engine/types.ts';
import { HttpError } from './error-response.ts';
import {
  MAX_BODY_BYTES,
  MAX_MESSAGES,
  MAX_STOP_LENGTH,
  MAX_STOP_STRINGS,
  MAX_TOP_LOGPROBS,
  MAX_TTL_SECONDS,
  MIN_TTL_SECONDS,
} from './limits.ts';

/** Clients send null for what they leave open. */
export const optional = <T extends v.GenericSchema>(schema: T) =>
  v.pipe(
    v.nullish(schema),
    v.transform((value): v.InferOutput<T> | undefined => value ?? undefined),
  );

export const between = (low: number, high: number) => {
  const message = `must be a number from ${low} to ${high}`;
  return v.pipe(v.number(message), v.minValue(low, message), v.maxValue(high, message));
};
export const integer = (low: number, high: number) => {
  const message = `must be an integer from ${low} to ${high}`;
  return v.pipe(
    v.number(message),
    v.safeInteger(message),
    v.minValue(low, message),
    v.maxValue(high, message),
  );
};
export const flag = v.boolean('must be true or false');
export const text = v.string('must be a string');

const textPart = v.looseObject({
  type: v.picklist(['text', 'input_text', 'output_text'], partMessage),
  text,
});
function partMessage(issue: v.BaseIssue<unknown>): string {
  return `is ${issue.received}; this model reads text only: send parts of type "text"`;
}
const content = v.union(
  [v.string(), v.array(textPart)],
  (issue) => contentMessage(issue) ?? 'must be a string or an array of parts {"type": "text", "text": "..."}',
);
/** The union's own message hides which part is wrong. */
function contentMessage(issue: v.BaseIssue<unknown>): string | undefined {
  const inner = issue.issues?.find((entry) => entry.path !== undefined);
  return inner ? `${v.getDotPath(inner)} ${inner.message}` : undefined;
}

export const message = v.pipe(
  v.looseObject({
    role: v.picklist(
      ['system', 'developer', 'user', 'assistant'],
      'must be "system", "developer", "user" or "assistant" (tools are not supported)',
    ),
    content: optional(content),
    tool_calls: optional(v.array(v.unknown())),
  }),
  v.check((m) => !m.tool_calls?.length, 'calls tools, which this server does not support'),
  v.check(
    (m) => m.content !== undefined || m.role === 'assistant',
    'needs content: a string or an array of text parts',
  ),
  v.transform(
    (m): ChatMessage => ({
      role: m.role === 'developer' ? 'system' : m.role,
      content:
        typeof m.content === 'string' ? m.content : (m.content ?? []).map((part) => part.text).join(''),
    }),
  ),
);

export const SESSION_ID = /^[A-Za-z0-9_.-]{1,128}$/;
export const sessionId = v.pipe(
  text,
  v.regex(SESSION_ID, 'must be 1 to 128 letters, digits, "_", "." or "-"'),
);

const stopMessage = `must be a string or up to ${MAX_STOP_STRINGS} strings, each of 1 to ${MAX_STOP_LENGTH} characters`;
const stopText = v.pipe(
  v.string(stopMessage),
  v.minLength(1, stopMessage),
  v.maxLength(MAX_STOP_LENGTH, stopMessage),
);
const stop = v.union(
  [stopText, v.pipe(v.array(stopText, stopMessage), v.maxLength(MAX_STOP_STRINGS, stopMessage))],
  stopMessage,
);

export const formatMessage =
  'must be {"type": "text"}, {"type": "json_object"} or one of type "json_schema" with its schema';
export const jsonSchemaField = v.record(v.string(), v.unknown(), 'must be a JSON Schema: an object');

/** @throws InvalidInputError for a schema that cannot be held, naming the place in it */
export function answerFormat(
  type: string,
  schema: Record<string, unknown> | undefined,
  param: string,
): AnswerFormat | undefined {
  if (type === 'json_object') return { type };
  if (type !== 'json_schema') return undefined;
  compileSchema(schema, param);
  return { type, schema: schema! };
}

export const chatSchema = v.looseObject({
  model: v.pipe(text, v.minLength(1, 'must name a model; GET /v1/models lists them')),
  messages: v.pipe(
    v.array(message, 'must be an array of messages'),
    v.minLength(1, 'must hold at least one message'),
    v.maxLength(MAX_MESSAGES, `must hold at most ${MAX_MESSAGES} messages`),
  ),
  stream: optional(flag),
  stream_options: optional(v.looseObject({ include_usage: optional(flag) }, 'must be an object')),
  max_tokens: optional(integer(1, 1_000_000)),
  max_completion_tokens: optional(integer(1, 1_000_000)),
  temperature: optional(between(0, 2)),
  top_p: optional(v.pipe(between(0, 1), v.gtValue(0, 'must be above 0'))),
  top_k: optional(integer(0, 1_000_000)),
  min_p: optional(between(0, 1)),
  frequency_penalty: optional(between(-2, 2)),
  presence_penalty: optional(between(-2, 2)),
  repetition_penalty: optional(v.pipe(between(0, 10), v.gtValue(0, 'must be above 0'))),
  stop: optional(stop),
  seed: optional(integer(Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER)),
  logprobs: optional(flag),
  top_logprobs: optional(integer(0, MAX_TOP_LOGPROBS)),
  n: optional(integer(1, 1)),
  response_format: optional(
    v.variant(
      'type',
      [
        v.looseObject({ type: v.literal('text') }),
        v.looseObject({ type: v.literal('json_object') }),
        v.looseObject({
          type: v.literal('json_schema'),
          json_schema: v.looseObject({ name: optional(text), schema: jsonSchemaField }),
        }),
      ],
      formatMessage,
    ),
  ),
  store: optional(flag),
  user: optional(text),
  prompt_cache_key: optional(v.pipe(text, v.maxLength(1024, 'must be at most 1024 characters'))),
  session_id: optional(sessionId),
  session_append: optional(flag),
  session_overwrite: optional(flag),
});

export const sessionSchema = v.looseObject({
  id: optional(sessionId),
  policy: optional(text),
  ratio: optional(
    v.pipe(v.number('must be a number'), v.minValue(1, 'must be 1 or more'), v.finite('must be finite')),
  ),
  bytes: optional(integer(1, Number.MAX_SAFE_INTEGER)),
  quotas: optional(v.pipe(text, v.maxLength(200, 'must be at most 200 characters'))),
  window: optional(integer(0, 64)),
  sinks: optional(integer(0, 64)),
  seed: optional(integer(0, 0xffff_ffff)),
  ttl_seconds: optional(integer(MIN_TTL_SECONDS, MAX_TTL_SECONDS)),
});
export type SessionRequest = v.InferOutput<typeof sessionSchema>;

export const forkSchema = v.looseObject({
  id: optional(sessionId),
  /** How many of the conversation's messages the fork keeps. */
  messages: optional(integer(1, MAX_MESSAGES)),
  ttl_seconds: optional(integer(MIN_TTL_SECONDS, MAX_TTL_SECONDS)),
});
export type ForkRequest = v.InferOutput<typeof forkSchema>;

/** A checked request; what is undefined takes the model's defaults. */
export interface ChatRequest {
  readonly model: string;
  readonly messages: readonly ChatMessage[];
  readonly stream: boolean;
  readonly includeUsage: boolean;
  readonly maxTokens: number | undefined;
  /** The name by which the client gave it. */
  readonly maxTokensParam: 'max_tokens' | 'max_completion_tokens';
  readonly temperature: number | undefined;
  readonly topP: number | undefined;
  readonly topK: number | undefined;
  readonly minP: number | undefined;
  readonly frequencyPenalty: number | undefined;
  readonly presencePenalty: number | undefined;
  readonly repetitionPenalty: number | undefined;
  readonly seed: number | undefined;
  readonly stop: readonly string[];
  readonly format: AnswerFormat | undefined;
  /** Alternatives to report with each token; undefined: no log-probabilities. */
  readonly topLogprobs: number | undefined;
  readonly sessionId: string | undefined;
  readonly append: boolean;
  readonly overwrite: boolean;
  readonly store: boolean;
  readonly promptCacheKey: string | undefined;
}

/** @throws InvalidInputError or HttpError unsupported_parameter; the message names the field and what would be right */
export function parseChatRequest(body: unknown): ChatRequest {
  refuseUnsupported(body);
  const r = check(chatSchema, body);
  if (r.stream_options && !r.stream)
    throw new InvalidInputError('stream_options is only allowed with stream: true', 'stream_options');
  if (r.top_logprobs !== undefined && !r.logprobs)
    throw new InvalidInputError('top_logprobs needs logprobs: true', 'top_logprobs');
  return {
    model: r.model,
    messages: r.messages,
    stream: r.stream ?? false,
    includeUsage: r.stream_options?.include_usage ?? false,
    maxTokens: r.max_completion_tokens ?? r.max_tokens,
    maxTokensParam: r.max_completion_tokens === undefined ? 'max_tokens' : 'max_completion_tokens',
    temperature: r.temperature,
    topP: r.top_p,
    topK: r.top_k,
    minP: r.min_p,
    frequencyPenalty: r.frequency_penalty,
    presencePenalty: r.presence_penalty,
    repetitionPenalty: r.repetition_penalty,
    seed: r.seed,
    stop: r.stop === undefined ? [] : typeof r.stop === 'string' ? [r.stop] : r.stop,
    format:
      r.response_format &&
      answerFormat(
        r.response_format.type,
        r.response_format.type === 'json_schema' ? r.response_format.json_schema.schema : undefined,
        'response_format.json_schema.schema',
      ),
    topLogprobs: r.logprobs ? (r.top_logprobs ?? 0) : undefined,
    sessionId: r.session_id,
    append: r.session_append ?? false,
    overwrite: r.session_overwrite ?? false,
    store: r.store ?? true,
    promptCacheKey: r.prompt_cache_key,
  };
}

/** @throws InvalidInputError */
export function parseSessionRequest(body: unknown): SessionRequest {
  const r = check(sessionSchema, body);
  if (r.ratio !== undefined && r.bytes !== undefined)
    throw new InvalidInputError('ratio and bytes both set the budget: give one of them', 'bytes');
  return r;
}

const empty = (value: unknown): boolean =>
  value === undefined || value === null || (typeof value === 'object' && Object.keys(value).length === 0);

const refuse = (param: string, remedy: string): never => {
  throw new HttpError('unsupported_parameter', `${param} is not supported: ${remedy}`, { param });
};

/** @throws HttpError unsupported_parameter for the first of them that asks for something */
export function refuseActive(body: unknown, params: readonly string[]): void {
  if (typeof body !== 'object' || body === null) return;
  for (const param of params)
    if (!empty((body as Record<string, unknown>)[param])) refuse(param, 'leave it out');
}

/** Features of OpenAI's API that would change the answer, and the values of theirs that ask for nothing. */
function refuseUnsupported(body: unknown): void {
  if (typeof body !== 'object' || body === null) return;
  const r = body as Record<string, unknown>;
  refuseActive(body, ['tools', 'functions', 'logit_bias', 'prediction', 'web_search_options', 'audio']);
  const choice = r.tool_choice ?? 'none';
  if (choice !== 'none' && choice !== 'auto') refuse('tool_choice', 'leave it out');
  if (typeof r.n === 'number' && r.n > 1) refuse('n', 'one answer is given for each request, so n must be 1');
  const modalities = r.modalities;
  if (Array.isArray(modalities) && modalities.some((kind) => kind !== 'text'))
    refuse('modalities', 'only ["text"] is');
}

export const parseForkRequest = (body: unknown): ForkRequest => check(forkSchema, body);

export function check<T extends v.GenericSchema>(schema: T, body: unknown): v.InferOutput<T> {
  if (typeof body !== 'object' || body === null || Array.isArray(body))
    throw new InvalidInputError('The body must be a JSON object.');
  const result = v.safeParse(schema, body, { abortEarly: true });
  if (result.success) return result.output;
  const issue = result.issues[0]!;
  const param = pathOf(issue);
  // An object's own issue with a path is a key that is not there.
  const message = issue.type === 'loose_object' && issue.path ? 'is missing' : issue.message;
  throw new InvalidInputError(param === undefined ? message : `${param} ${message}`, param);
}

/** `messages[2].content`, as the client wrote it. */
function pathOf(issue: v.BaseIssue<unknown>): string | undefined {
  if (!issue.path) return undefined;
  let path = '';
  for (const { key } of issue.path)
    path += typeof key === 'number' ? `[${key}]` : path ? `.${String(key)}` : String(key);
  return path;
}

/**
 * The body as JSON, read no further than the limit.
 * @param missing stands for an empty body, where there may be one
 * @throws HttpError request_too_large, invalid_json
 */
export async function readJson(request: Request, missing?: unknown): Promise<unknown> {
  const tooLarge = (): HttpError =>
    new HttpError('request_too_large', `The body is larger than the limit of ${MAX_BODY_BYTES} bytes.`, {
      data: { limit: MAX_BODY_BYTES },
    });
  if (Number(request.headers.get('content-length') ?? 0) > MAX_BODY_BYTES) throw tooLarge();
  const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: false });
  let body = '';
  let bytes = 0;
  const reader = request.body?.getReader();
  try {
    while (reader) {
      const { done, value } = await reader.read();
      if (done) break;
      bytes += value.length;
      if (bytes > MAX_BODY_BYTES) {
        await reader.cancel();
        throw tooLarge();
      }
      body += decoder.decode(value, { stream: true });
    }
    body += decoder.decode();
    if (bytes === 0 && missing !== undefined) return missing;
    return JSON.parse(body);
  } catch (error) {
    if (error instanceof HttpError) throw error;
    const why = error instanceof SyntaxError ? error.message : 'it is not UTF-8';
    throw new HttpError('invalid_json', `The body is not JSON: ${why}.`, { cause: error });
  }
}
