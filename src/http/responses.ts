import type { Context } from 'hono';
import { AdkvcError, InvalidInputError } from '../core/errors.ts';
import type { SessionHost } from '../session/api.ts';
import { MAX_NOTE_CHARACTERS } from '../session/limits.ts';
import { errorReply, isInternal, wireError } from './error-response.ts';
import { HEARTBEAT_MS, MAX_REPLANS, PROGRESS_MS, RESPONSE_TTL_SECONDS } from './limits.ts';
import { requireModel, type ServedModel } from './models.ts';
import { serverTiming, tokenLogprobs, turnObject } from './report.ts';
import { planResponse, type ResponsePlan, type ResponsePlans } from './response-plan.ts';
import { parseResponsesRequest, type ResponsesRequest } from './responses-schema.ts';
import { readJson } from './schema.ts';
import { type EventWriter, eventStream, SSE_HEADERS } from './sse.ts';
import { incompleteDetails, type ResponseNote, responseUsage, type SharedFields } from './stored-response.ts';
import {
  answerTokens,
  type Begun,
  begin,
  clientAbort,
  type FinishedEvent,
  firstEventOrPatience,
  follow,
  samplingOptions,
  type TokenEvent,
} from './turn.ts';

type BegunResponse = Begun & { readonly plan: ResponsePlan };
type Status = 'in_progress' | 'completed' | 'incomplete' | 'failed';

/** POST /v1/responses. https://platform.openai.com/docs/api-reference/responses/create */
export async function createResponse(
  c: Context,
  owner: string,
  host: SessionHost,
  model: ServedModel,
): Promise<Response> {
  const request = parseResponsesRequest(await readJson(c.req.raw));
  requireModel(model, request.model);
  const sampling = samplingOptions(request, model);
  const maxTokens = answerTokens(request.maxOutputTokens, 'max_output_tokens', model);
  const plans = await planResponse(owner, host, request);
  const { signal, onGone } = clientAbort(c);

  const attempt = async ([plan, next]: ResponsePlans, replans = 0): Promise<BegunResponse> => {
    try {
      if (plan.forkOf)
        await host.fork(
          plan.forkOf.key,
          { key: plan.key, id: plan.sessionId },
          {
            messages: plan.forkOf.messages,
            ttlSeconds: RESPONSE_TTL_SECONDS,
          },
        );
      const turn = {
        ...plan.turn,
        sampling,
        stop: [],
        maxTokens,
        ...(request.format && { format: request.format }),
        ...(request.store && { note: answer.note(plan) }),
      };
      return { plan, ...(await begin(host, plan.key, plan.sessionId, turn, signal)) };
    } catch (error) {
      const moved = error instanceof AdkvcError && error.code === 'session_moved';
      if (moved && next) {
        // An answer that was being said when it was read is complete now, and reads otherwise.
        const again = replans === 0 ? await planResponse(owner, host, request) : undefined;
        if (again && again[0].responseId !== plan.responseId) return attempt(again, 1);
        return attempt([next], 1);
      }
      if (moved && request.conversation !== undefined && replans < MAX_REPLANS)
        return attempt(await planResponse(owner, host, request), replans + 1);
      // A copy in which nothing was answered is of no use to anybody.
      if (plan.forkOf) await host.delete(plan.key).catch(() => {});
      throw error;
    }
  };
  const answer = new ResponseAnswer(request, model, sampling, maxTokens);
  return request.stream
    ? streamed(c, attempt(plans), answer, onGone)
    : whole(c, await attempt(plans), answer);
}

async function whole(c: Context, begun: BegunResponse, answer: ResponseAnswer): Promise<Response> {
  answer.begin(begun.plan);
  const finished = await follow(begun, (event) => {
    if (event.type === 'token') answer.push(event);
  });
  c.header('server-timing', serverTiming(finished.timing));
  return c.json(answer.finish(finished));
}

async function streamed(
  c: Context,
  begun: Promise<BegunResponse>,
  answer: ResponseAnswer,
  onGone: () => void,
): Promise<Response> {
  await firstEventOrPatience(begun);
  const { body, writer } = eventStream(onGone);
  void writeEvents(writer, begun, answer);
  return c.body(body, 200, SSE_HEADERS);
}

/** Never throws: what goes wrong is told as an event, the last one. */
async function writeEvents(
  writer: EventWriter,
  begun: Promise<BegunResponse>,
  answer: ResponseAnswer,
): Promise<void> {
  let sequence = 0;
  const send = (type: string, fields: Record<string, unknown>): void =>
    writer.event(type, { type, sequence_number: sequence++, ...fields });
  const place = () => ({ item_id: answer.itemId, output_index: 0, content_index: 0 });
  const sendText = (text: string, tokens: readonly TokenEvent[]): void =>
    send('response.output_text.delta', { ...place(), delta: text, logprobs: tokenLogprobs(tokens) });

  let progress = 'waiting';
  let told = 0;
  const heartbeat = setInterval(() => writer.comment(progress), HEARTBEAT_MS);
  try {
    const turn = await begun;
    answer.begin(turn.plan);
    send('response.created', { response: answer.object('in_progress') });
    send('response.in_progress', { response: answer.object('in_progress') });
    send('response.output_item.added', { output_index: 0, item: answer.item('in_progress', false) });
    send('response.content_part.added', { ...place(), part: answer.part('') });
    const finished = await follow(turn, (event) => {
      if (event.type === 'prefill') {
        progress = `prefill ${event.position}/${event.total}`;
        if (Date.now() - told < PROGRESS_MS && event.position < event.total) return;
        told = Date.now();
        writer.comment(progress);
      } else if (event.type === 'token') {
        progress = 'decode';
        answer.push(event);
        if (event.text !== '' || answer.reportsLogprobs)
          sendText(event.text, answer.reportsLogprobs ? [event] : []);
      }
    });
    if (finished.text !== '') sendText(finished.text, []);
    const response = answer.finish(finished);
    const part = answer.part();
    send('response.output_text.done', { ...place(), text: part.text, logprobs: part.logprobs });
    send('response.content_part.done', { ...place(), part });
    send('response.output_item.done', { output_index: 0, item: answer.item(response.status) });
    send(`response.${response.status}`, { response });
  } catch (error) {
    if (isInternal(error)) console.error('a response failed', error);
    const { message, code, param } = errorReply(wireError(error)).body.error;
    if (answer.begun) send('response.failed', { response: answer.object('failed', { code, message }) });
    else send('error', { code, message, param });
  } finally {
    clearInterval(heartbeat);
    writer.close();
  }
}

/** The answer as it grows, in the shapes of the Responses API. */
class ResponseAnswer {
  readonly itemId = `msg_${crypto.randomUUID().replaceAll('-', '')}`;
  readonly reportsLogprobs: boolean;
  readonly #request: ResponsesRequest;
  readonly #shared: SharedFields;
  #plan: ResponsePlan | undefined;
  #tokens: TokenEvent[] = [];
  #finished: FinishedEvent | undefined;

  constructor(
    request: ResponsesRequest,
    model: ServedModel,
    sampling: { readonly temperature: number; readonly topP: number },
    maxTokens: number,
  ) {
    this.#request = request;
    this.reportsLogprobs = request.topLogprobs !== undefined;
    this.#shared = {
      object: 'response',
      created_at: Math.floor(Date.now() / 1000),
      model: model.id,
      background: false,
      instructions: request.instructions ?? null,
      max_output_tokens: maxTokens,
      metadata: request.metadata,
      parallel_tool_calls: true,
      previous_response_id: request.previousResponseId ?? null,
      reasoning: { effort: null, summary: null },
      store: request.store,
      temperature: sampling.temperature,
      text: { format: request.givenFormat ?? { type: 'text' } },
      tool_choice: 'auto',
      tools: [],
      top_logprobs: request.topLogprobs ?? 0,
      top_p: sampling.topP,
      truncation: 'disabled',
      user: request.user ?? null,
    };
  }

  get begun(): boolean {
    return this.#plan !== undefined;
  }

  /** What GET tells of the response later, beside what the session itself knows. */
  note(plan: ResponsePlan): string {
    const note = JSON.stringify({
      ...this.#shared,
      item: this.itemId,
      session: plan.sessionId,
      conversation: this.#conversation(plan),
    } satisfies ResponseNote);
    if (note.length > MAX_NOTE_CHARACTERS)
      throw new InvalidInputError(
        `instructions, metadata and text.format take ${note.length} characters, ${MAX_NOTE_CHARACTERS} are kept with a response (MAX_NOTE_CHARACTERS): shorten them, or set store: false`,
        'metadata',
        { limit: MAX_NOTE_CHARACTERS },
      );
    return note;
  }

  #conversation(plan: ResponsePlan): { id: string } | null {
    return this.#request.conversation === undefined ? null : { id: plan.sessionId };
  }

  begin(plan: ResponsePlan): void {
    this.#plan = plan;
  }

  push(event: TokenEvent): void {
    this.#tokens.push(event);
  }

  finish(event: FinishedEvent) {
    this.#finished = event;
    const status = event.reason === 'length' ? 'incomplete' : 'completed';
    return { ...this.object(status), status } as const;
  }

  part(text = this.#tokens.map((token) => token.text).join('') + (this.#finished?.text ?? '')) {
    return {
      type: 'output_text',
      text,
      annotations: [],
      logprobs: this.reportsLogprobs ? tokenLogprobs(this.#tokens) : [],
    };
  }

  item(status: Status, withContent = true) {
    return {
      id: this.itemId,
      type: 'message',
      role: 'assistant',
      status: status === 'failed' ? 'incomplete' : status,
      content: withContent ? [this.part()] : [],
    };
  }

  object(status: Status, error: { code: string; message: string } | null = null) {
    const { responseId, sessionId } = this.#plan!;
    const finished = this.#finished;
    return {
      id: responseId,
      ...this.#shared,
      conversation: this.#conversation(this.#plan!),
      status,
      completed_at: status === 'completed' ? Math.floor(Date.now() / 1000) : null,
      error,
      incomplete_details: incompleteDetails(status),
      output: status === 'in_progress' ? [] : [this.item(status)],
      usage: finished ? responseUsage(finished.usage) : null,
      ...(finished && { adkvc: turnObject(this.#request.store ? sessionId : null, finished) }),
    };
  }
}
