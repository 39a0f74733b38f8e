import { AdkvcError } from '../core/errors.ts';
import type { ChatMessage } from '../engine/types.ts';
import type { SaidMessage, SessionHost, TurnRequest } from '../session/api.ts';
import { appended, markOf } from '../session/log.ts';
import { hex, hmac } from './auth.ts';
import { newSessionId, sessionKey } from './conversation.ts';
import { HttpError } from './error-response.ts';
import { RESPONSE_TTL_SECONDS } from './limits.ts';
import type { ResponsesRequest } from './responses-schema.ts';

/** Where a response's turn runs, and what its id will be. */
export interface ResponsePlan {
  readonly responseId: string;
  readonly sessionId: string;
  /** The object's name. */
  readonly key: string;
  /** Made before the turn: a copy of this object's first messages, cache included. */
  readonly forkOf?: { readonly key: string; readonly messages: number };
  readonly turn: Pick<
    TurnRequest,
    'messages' | 'mode' | 'overwrite' | 'continues' | 'onto' | 'store' | 'implicit' | 'ttlSeconds'
  >;
}

/** What is tried first, and where that finds the session moved. */
export type ResponsePlans = readonly [ResponsePlan, ResponsePlan?];

/**
 * The plans of a request, the first to be tried first: a response goes on in its own session as long as nothing of that would be cut,
 * and otherwise (`session_moved`) in a new one, so that what an id stands for never changes.
 * @throws HttpError response_not_found
 */
export async function planResponse(
  owner: string,
  host: SessionHost,
  request: ResponsesRequest,
): Promise<ResponsePlans> {
  const { conversation, previousResponseId, instructions, input, store } = request;
  const system: ChatMessage[] = instructions === undefined ? [] : [{ role: 'system', content: instructions }];
  if (conversation !== undefined) return [await planConversation(owner, host, conversation, system, input)];

  const previous =
    previousResponseId === undefined
      ? { sessionId: undefined, history: [], logged: [] }
      : await readPrevious(owner, host, previousResponseId);
  const messages = [...system, ...previous.history, ...input];
  const planned = async (sessionId: string, continues: boolean): Promise<ResponsePlan> => ({
    responseId: await responseId(owner, sessionId, messages, system.length > 0),
    sessionId,
    key: await sessionKey(owner, sessionId),
    turn: {
      messages,
      mode: 'whole',
      overwrite: true,
      continues,
      store,
      implicit: !store,
      ...(store && { ttlSeconds: RESPONSE_TTL_SECONDS }),
    },
  });
  const apart = await planned(newSessionId(), false);
  if (previous.sessionId === undefined || !store) return [apart];
  const inPlace = await planned(previous.sessionId, true);
  // With other instructions nothing of the old cache would be left.
  const { logged } = previous;
  const goesOn = logged.every(
    ({ role, content }, i) => messages[i]?.role === role && messages[i].content === content,
  );
  return [inPlace, goesOn ? { ...apart, forkOf: { key: inPlace.key, messages: logged.length } } : apart];
}

/**
 * A conversation that the client named is one thing that changes: what is new is appended. The plan, and the response's id, hold for what it holds now; a
 * turn that finds other messages there fails with `session_moved`.
 */
async function planConversation(
  owner: string,
  host: SessionHost,
  sessionId: string,
  system: readonly ChatMessage[],
  input: readonly ChatMessage[],
): Promise<ResponsePlan> {
  const key = await sessionKey(owner, sessionId);
  const logged = (await messagesOf(host, key)).map(({ role, content }) => ({ role, content }));
  const spoken = logged[0]?.role === 'system' ? logged.slice(1) : logged;
  const same =
    logged.length > 0 &&
    (system.length === 0 || (logged[0]!.role === 'system' && logged[0]!.content === system[0]!.content));
  const prompt = same
    ? appended(logged, { messages: input })
    : [...system, ...(system.length === 0 ? logged : spoken), ...input];
  const onto = markOf(logged);
  return {
    responseId: await responseId(owner, sessionId, prompt, system.length > 0),
    sessionId,
    key,
    turn: same
      ? { messages: input, mode: 'append', overwrite: false, onto, store: true, implicit: false }
      : { messages: prompt, mode: 'whole', overwrite: true, onto, store: true, implicit: false },
  };
}

/** Where a response stands. */
export interface FoundResponse {
  readonly sessionId: string;
  /** The object's name. */
  readonly key: string;
  /** All that its session holds; the response is the last of the first `count`. */
  readonly said: readonly SaidMessage[];
  readonly count: number;
  /** Its first message are its instructions. */
  readonly instructed: boolean;
}

export const responseNotFound = (id: string, param: string): HttpError =>
  new HttpError(
    'response_not_found',
    `There is no response "${id}": it was not stored, has expired or was deleted, or its conversation was overwritten.`,
    { param },
  );

/** @throws HttpError response_not_found */
export async function findResponse(
  owner: string,
  host: SessionHost,
  id: string,
  param: string,
): Promise<FoundResponse> {
  const notFound = (): HttpError => responseNotFound(id, param);
  const parsed = RESPONSE_ID.exec(id);
  if (!parsed) throw notFound();
  const [, digest, from, number, sessionId] = parsed as unknown as [string, string, string, string, string];
  const count = Number(number);
  const key = await sessionKey(owner, sessionId);
  const said = await messagesOf(host, key);
  if (
    // Where its answer never began, something else may stand.
    said[count - 1]?.role !== 'assistant' ||
    said[count - 1]!.withdrawn ||
    (await digestOf(owner, said.slice(0, count - 1))) !== digest
  )
    throw notFound();
  return { sessionId, key, said, count, instructed: from === INSTRUCTED };
}

async function readPrevious(
  owner: string,
  host: SessionHost,
  id: string,
): Promise<{ sessionId: string; logged: readonly ChatMessage[]; history: readonly ChatMessage[] }> {
  const { sessionId, said, count, instructed } = await findResponse(owner, host, id, 'previous_response_id');
  const logged = said.slice(0, count).map(({ role, content }) => ({ role, content }));
  // Instructions are those of one response; whoever goes on from it gives their own.
  return { sessionId, logged, history: instructed ? logged.slice(1) : logged };
}

async function messagesOf(host: SessionHost, key: string): Promise<readonly SaidMessage[]> {
  try {
    return await host.messages(key);
  } catch (error) {
    if (error instanceof AdkvcError && error.code === 'session_not_found') return [];
    throw error;
  }
}

/** A digest of what was answered, whether its first message are instructions, the messages up to the answer, the session. */
const RESPONSE_ID = /^resp_([0-9a-f]{16})([is])([1-9]\d{0,4})_([A-Za-z0-9_.-]{1,128})$/;
const INSTRUCTED = 'i';

async function responseId(
  owner: string,
  sessionId: string,
  prompt: readonly ChatMessage[],
  instructed: boolean,
): Promise<string> {
  const kind = instructed ? INSTRUCTED : 's';
  return `resp_${await digestOf(owner, prompt)}${kind}${prompt.length + 1}_${sessionId}`;
}

const digestOf = async (owner: string, messages: readonly ChatMessage[]): Promise<string> =>
  hex(await hmac(owner, 'response', ...messages.flatMap(({ role, content }) => [role, content]))).slice(
    0,
    16,
  );
