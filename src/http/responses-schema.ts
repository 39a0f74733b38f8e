import * as v from 'valibot';
import { InvalidInputError } from '../core/errors.ts';
import type { AnswerFormat } from '../engine/json/schema.ts';
import type { ChatMessage } from '../engine/types.ts';
import { HttpError } from './error-response.ts';
import { MAX_MESSAGES, MAX_TOP_LOGPROBS } from './limits.ts';
import {
  answerFormat,
  between,
  check,
  flag,
  formatMessage,
  integer,
  jsonSchemaField,
  message,
  optional,
  refuseActive,
  sessionId,
  text,
} from './schema.ts';

/** One item of `input`: a message, or an earlier answer as it was handed out. */
const inputItem = v.pipe(
  v.looseObject({
    type: optional(v.literal('message', 'must be "message" (tools and references are not supported)')),
  }),
  message,
);

const itemsMessage = `must be a string or an array of 1 to ${MAX_MESSAGES} messages`;

export const responsesSchema = v.looseObject({
  model: v.pipe(text, v.minLength(1, 'must name a model; GET /v1/models lists them')),
  input: v.lazy((given) =>
    typeof given === 'string'
      ? v.string(itemsMessage)
      : v.pipe(
          v.array(inputItem, itemsMessage),
          v.minLength(1, itemsMessage),
          v.maxLength(MAX_MESSAGES, itemsMessage),
        ),
  ),
  instructions: optional(text),
  previous_response_id: optional(text),
  conversation: optional(
    v.union([sessionId, v.looseObject({ id: sessionId })], 'must be the id of a session, or {"id": "..."}'),
  ),
  store: optional(flag),
  stream: optional(flag),
  max_output_tokens: optional(integer(1, 1_000_000)),
  temperature: optional(between(0, 2)),
  top_p: optional(v.pipe(between(0, 1), v.gtValue(0, 'must be above 0'))),
  top_logprobs: optional(integer(0, MAX_TOP_LOGPROBS)),
  include: optional(v.array(v.literal('message.output_text.logprobs', 'is not supported'))),
  text: optional(
    v.looseObject({
      format: optional(
        v.variant(
          'type',
          [
            v.looseObject({ type: v.literal('text') }),
            v.looseObject({ type: v.literal('json_object') }),
            v.looseObject({ type: v.literal('json_schema'), name: optional(text), schema: jsonSchemaField }),
          ],
          formatMessage,
        ),
      ),
    }),
  ),
  seed: optional(integer(Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER)),
  metadata: optional(v.record(v.string(), v.string('must be a string'), 'must be an object of strings')),
  user: optional(text),
});

/** A checked request; what is undefined takes the model's defaults. */
export interface ResponsesRequest {
  readonly model: string;
  readonly input: readonly ChatMessage[];
  readonly instructions: string | undefined;
  readonly previousResponseId: string | undefined;
  /** A session's id. */
  readonly conversation: string | undefined;
  readonly store: boolean;
  readonly stream: boolean;
  readonly maxOutputTokens: number | undefined;
  readonly temperature: number | undefined;
  readonly topP: number | undefined;
  readonly topLogprobs: number | undefined;
  readonly seed: number | undefined;
  readonly format: AnswerFormat | undefined;
  /** As the client gave it. */
  readonly givenFormat: { readonly type: string } | undefined;
  readonly metadata: Readonly<Record<string, string>>;
  readonly user: string | undefined;
}

/** @throws InvalidInputError or HttpError unsupported_parameter; the message names the field and what would be right */
export function parseResponsesRequest(body: unknown): ResponsesRequest {
  refuseActive(body, ['tools', 'prompt', 'reasoning', 'context_management', 'moderation']);
  const given = (body ?? {}) as Record<string, unknown>;
  if (given.background === true)
    throw new HttpError('unsupported_parameter', 'background is not supported: leave it out', {
      param: 'background',
    });
  if (given.truncation === 'auto')
    throw new HttpError(
      'unsupported_parameter',
      'truncation "auto" is not supported: use "disabled", and a session whose cache policy compresses',
      { param: 'truncation' },
    );
  const r = check(responsesSchema, body);
  if (r.previous_response_id !== undefined && r.conversation !== undefined)
    throw new InvalidInputError(
      'previous_response_id and conversation both name what to go on from: give one of them',
      'conversation',
    );
  const store = r.store ?? true;
  const format = r.text?.format;
  if (!store && r.conversation !== undefined)
    throw new InvalidInputError(
      'store: false leaves nothing behind, conversation names what is kept: leave one of them out',
      'store',
    );
  return {
    model: r.model,
    input: typeof r.input === 'string' ? [{ role: 'user', content: r.input }] : r.input,
    instructions: r.instructions,
    previousResponseId: r.previous_response_id,
    conversation: typeof r.conversation === 'object' ? r.conversation.id : r.conversation,
    store,
    stream: r.stream ?? false,
    maxOutputTokens: r.max_output_tokens,
    temperature: r.temperature,
    topP: r.top_p,
    topLogprobs: r.top_logprobs ?? (r.include?.length ? 0 : undefined),
    seed: r.seed,
    format:
      format &&
      answerFormat(
        format.type,
        format.type === 'json_schema' ? format.schema : undefined,
        'text.format.schema',
      ),
    givenFormat: format,
    metadata: r.metadata ?? {},
    user: r.user,
  };
}
