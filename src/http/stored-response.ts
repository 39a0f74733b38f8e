import type { Context } from 'hono';
import { AdkvcError } from '../core/errors.ts';
import type { SaidMessage, SessionHost, Usage } from '../session/api.ts';
import { markOf } from '../session/log.ts';
import { HttpError } from './error-response.ts';
import { findResponse, responseNotFound } from './response-plan.ts';

/** Fields of a response that its request alone decides. */
export interface SharedFields extends Readonly<Record<string, unknown>> {
  readonly object: 'response';
  /** Unix seconds. */
  readonly created_at: number;
}

/** Kept with an answer: what GET cannot know from the conversation. */
export interface ResponseNote extends SharedFields {
  /** The id of the output's message. */
  readonly item: string;
  /** Where it was given: a fork copies it. */
  readonly session: string;
  readonly conversation: { readonly id: string } | null;
}

export const responseUsage = ({ promptTokens, completionTokens, cachedTokens }: Usage) => ({
  input_tokens: promptTokens,
  input_tokens_details: { cached_tokens: cachedTokens },
  output_tokens: completionTokens,
  output_tokens_details: { reasoning_tokens: 0 },
  total_tokens: promptTokens + completionTokens,
});

export const incompleteDetails = (status: string) =>
  status === 'incomplete' ? { reason: 'max_output_tokens' } : null;

/** GET /v1/responses/:id, as it was handed out but for log-probabilities, which are not kept. https://platform.openai.com/docs/api-reference/responses/get */
export async function getResponse(
  c: Context,
  owner: string,
  host: SessionHost,
  id: string,
): Promise<Response> {
  if (c.req.query('stream') === 'true')
    throw new HttpError('unsupported_parameter', 'stream is not supported here: leave it out', {
      param: 'stream',
    });
  const { said, count } = await findResponse(owner, host, id, 'response_id');
  const { content, made } = said[count - 1]!;
  const note = made && parseNote(made.note);
  if (!made || !note)
    throw new HttpError(
      'response_not_found',
      `The response "${id}" was interrupted, and nothing is kept of it but what was said: GET /v1/sessions/ID/messages reads that.`,
      { param: 'response_id' },
    );
  const { item, session: _, conversation, ...shared } = note;
  const status = made.reason === 'length' ? 'incomplete' : 'completed';
  return c.json({
    id,
    ...shared,
    conversation,
    status,
    completed_at: status === 'completed' ? Math.floor(made.at / 1000) : null,
    error: null,
    incomplete_details: incompleteDetails(status),
    output: [
      {
        id: item,
        type: 'message',
        role: 'assistant',
        status,
        content: [{ type: 'output_text', text: content, annotations: [], logprobs: [] }],
      },
    ],
    usage: responseUsage(made),
  });
}

/**
 * DELETE /v1/responses/:id. The newest of its session goes with all that only it needed, and with the session if nothing else was answered there; an
 * older one can be neither read nor gone on from any more, and its text goes with those that went on from it.
 */
export async function deleteResponse(
  c: Context,
  owner: string,
  host: SessionHost,
  id: string,
): Promise<Response> {
  const { key, sessionId, said, count } = await findResponse(owner, host, id, 'response_id');
  const note = parseNote(said[count - 1]!.made?.note);
  // Not those that the client brought, nor those of the session that this one is a fork of.
  const isHere = ({ role, made, given }: SaidMessage): boolean =>
    role === 'assistant' && !given && (parseNote(made?.note)?.session ?? sessionId) === sessionId;
  const alone = count === said.length && !said.slice(0, -1).some(isHere);
  // A conversation that the client named is the client's to delete.
  try {
    // A response that goes on from it may be under way: it is waited for, and not ended.
    if (alone && !note?.conversation && !(await host.get(key)).busy) await host.delete(key);
    else await host.unsay(key, count, markOf(said.slice(0, count - 1)));
  } catch (error) {
    // Deleted meanwhile, by the same request sent again for example.
    if (error instanceof AdkvcError && (error.code === 'session_moved' || error.code === 'session_not_found'))
      throw responseNotFound(id, 'response_id');
    throw error;
  }
  return c.json({ id, object: 'response', deleted: true });
}

/** Undefined for a note that is none: one that came with an imported session may be anything. */
export function parseNote(text: string | undefined): ResponseNote | undefined {
  try {
    const note: unknown = JSON.parse(text ?? 'null');
    const isNote = typeof note === 'object' && note !== null && (note as ResponseNote).object === 'response';
    return isNote ? (note as ResponseNote) : undefined;
  } catch {
    return undefined;
  }
}
