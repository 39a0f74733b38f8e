import type { Context } from 'hono';
import { InvalidInputError } from '../core/errors.ts';
import type { SaidMessage, SessionHost } from '../session/api.ts';
import { hex, hmac } from './auth.ts';
import { parseItemsQuery } from './query-schema.ts';
import { findResponse } from './response-plan.ts';
import { parseNote } from './stored-response.ts';

const DEFAULT_PAGE = 20;

/**
 * GET /v1/responses/:id/input_items?limit=&after=&order=: what the response answered, its instructions left out, newest first unless `order` is asc.
 * Where it went on from others, their questions and answers are a part of it. https://platform.openai.com/docs/api-reference/responses/input-items
 */
export async function getInputItems(
  c: Context,
  owner: string,
  host: SessionHost,
  id: string,
): Promise<Response> {
  const { limit = DEFAULT_PAGE, after, order = 'desc' } = parseItemsQuery(c.req.query());
  const { said, count, instructed, sessionId } = await findResponse(owner, host, id, 'response_id');
  const items = await Promise.all(
    said
      .slice(0, count - 1)
      .map(async (message, at) => itemObject(message, await itemId(owner, sessionId, message, at)))
      .slice(instructed ? 1 : 0),
  );
  if (order === 'desc') items.reverse();
  const before = after === undefined ? -1 : items.findIndex((item) => item.id === after);
  if (after !== undefined && before < 0)
    throw new InvalidInputError('after must be the id of an input item of this response', 'after');
  const data = items.slice(before + 1, before + 1 + limit);
  return c.json({
    object: 'list',
    data,
    first_id: data[0]?.id ?? null,
    last_id: data.at(-1)?.id ?? null,
    has_more: before + 1 + data.length < items.length,
  });
}

/** An answer's own, where it was given in this session; otherwise one that is the same whenever it is asked for. */
async function itemId(owner: string, sessionId: string, message: SaidMessage, at: number): Promise<string> {
  const note = parseNote(message.made?.note);
  // One that came with an imported session may be anything.
  if (typeof note?.item === 'string') return note.item;
  const { role, content } = message;
  return `msg_${hex(await hmac(owner, 'item', sessionId, String(at), role, content)).slice(0, 32)}`;
}

const itemObject = ({ role, content }: SaidMessage, id: string) => ({
  id,
  type: 'message',
  role,
  status: 'completed',
  content: [
    role === 'assistant'
      ? { type: 'output_text', text: content, annotations: [] }
      : { type: 'input_text', text: content },
  ],
});
