import { InvalidInputError } from '../core/errors.ts';
import type { ChatMessage } from '../engine/types.ts';
import { hex, hmac } from './auth.ts';
import type { ChatRequest } from './schema.ts';

/** Which session a turn belongs to, and how its messages relate to what the session holds. */
export interface Conversation {
  /** The name that the client sees. */
  readonly id: string;
  /** The object's name. */
  readonly key: string;
  readonly mode: 'whole' | 'append';
  readonly overwrite: boolean;
  readonly store: boolean;
  readonly implicit: boolean;
}

/** The object's name: another owner's id leads to another, empty object. */
export const sessionKey = async (owner: string, id: string): Promise<string> =>
  hex(await hmac(owner, 'session', id));

export const newSessionId = (): string => `sess_${crypto.randomUUID().replaceAll('-', '')}`;

/**
 * - `session_id` names the conversation; `session_append` sends only what is new, `session_overwrite` replaces what diverges.
 * - Without an id the session is found by what every resent history shares: its messages up to and including the first of the user.
 *   `prompt_cache_key` and `x-session-affinity` seed that hash, so they part conversations and never join two.
 * - `store: false` takes an object of its own that is empty again afterwards.
 */
export async function chooseConversation(
  owner: string,
  model: string,
  request: ChatRequest,
  affinity: string | null,
): Promise<Conversation> {
  const { sessionId, append, overwrite, store, messages } = request;
  if (sessionId !== undefined) {
    if (!store)
      throw new InvalidInputError(
        'store: false leaves nothing behind, session_id names what is kept: leave one of them out',
        'store',
      );
    if (append && overwrite)
      throw new InvalidInputError(
        'session_append keeps what the session holds and session_overwrite replaces it: set one of them',
        'session_overwrite',
      );
    return {
      id: sessionId,
      key: await sessionKey(owner, sessionId),
      mode: append ? 'append' : 'whole',
      overwrite,
      store: true,
      implicit: false,
    };
  }
  if (append)
    throw new InvalidInputError(
      'session_append needs session_id: without it, messages is the whole conversation',
      'session_append',
    );
  const id = store
    ? `auto_${await openingDigest(owner, model, messages, [affinity ?? '', request.promptCacheKey ?? ''])}`
    : newSessionId();
  return { id, key: await sessionKey(owner, id), mode: 'whole', overwrite: true, store, implicit: true };
}

async function openingDigest(
  owner: string,
  model: string,
  messages: readonly ChatMessage[],
  hints: readonly string[],
): Promise<string> {
  const firstUser = messages.findIndex((message) => message.role === 'user');
  const opening = messages.slice(0, firstUser < 0 ? messages.length : firstUser + 1);
  const parts = opening.flatMap(({ role, content }) => [role, content]);
  return hex(await hmac(owner, 'opening', model, ...hints, ...parts)).slice(0, 40);
}
