import { AdkvcError, InvalidInputError } from '../core/errors.ts';
import type { ChatMessage, Engine } from '../engine/types.ts';
import { checksum } from './checksum.ts';
import { OPENING_POSITIONS, TITLE_CHARACTERS } from './limits.ts';

/** How an answer came about, for whoever reads it later. */
export interface MadeAnswer {
  readonly reason: 'stop' | 'length';
  readonly promptTokens: number;
  readonly completionTokens: number;
  readonly cachedTokens: number;
  /** When it was complete: Unix time, ms. */
  readonly at: number;
  /** The request's own, see TurnRequest. */
  readonly note: string;
}

/** A message and where its ids lie: from the previous message's end (0 for the first) to `end`, template markup included. */
export interface LoggedMessage extends ChatMessage {
  readonly end: number;
  /** For an answer that was sampled here: the number of ids that it answered, the generation prompt included. */
  readonly prompt?: number;
  /** The template's closing markup does not follow yet (only the last message can be open). */
  readonly open?: true;
  /** For an answer that was interrupted: the request's key, see continue-answer.ts. */
  readonly unfinished?: string;
  /** For an answer whose request had a name, see TurnRequest. */
  readonly idempotencyKey?: string;
  /** For a complete answer whose request came with a note. */
  readonly made?: MadeAnswer;
  /** An answer that nobody gave here: the client brought it. */
  readonly given?: true;
  /** The answer was deleted, and stays only as what later ones go on from. */
  readonly withdrawn?: true;
}

/**
 * What was said, as text and as ids: the truth from which the cache can always be made again.
 * `ids` may go on after the last message's end (a generation prompt whose answer did not begin) and past
 * `fed` (the last sampled token is not fed until the next turn).
 */
export interface Log {
  readonly messages: readonly LoggedMessage[];
  readonly ids: readonly number[];
  /** Ids [0, fed) are in the current state's cache. */
  readonly fed: number;
}
export const EMPTY_LOG: Log = { messages: [], ids: [], fed: 0 };

export interface PromptRequest {
  readonly messages: readonly ChatMessage[];
  readonly mode: 'whole' | 'append';
  readonly overwrite: boolean;
  readonly continues?: boolean;
  readonly onto?: string;
  readonly idempotencyKey?: string;
}

/** The ids that a turn starts from. */
export interface Prompt {
  readonly messages: readonly LoggedMessage[];
  /** Generation prompt included. */
  readonly ids: readonly number[];
  /** Leading ids that are equal to the log's. */
  readonly shared: number;
}

export const moved = ({ messages }: Pick<Log, 'messages'>): AdkvcError =>
  new AdkvcError('session_moved', 'the session went on from there meanwhile', {
    data: { loggedMessages: messages.length },
  });

/** Stands for the content of messages that need not be tokenised again; their ids come from the log. */
const PLACEHOLDER = 'x';

/**
 * Joins a request to the log. Messages that equal the log's in role and text keep the ids they had (what the model said is never
 * tokenised again: other ids may spell the same text); only the rest is tokenised.
 * @param sameModel false when the log's ids were made by another model: its text counts, its ids do not
 * @throws AdkvcError session_moved when `continues` is set and something finished would be cut, or `onto` names other messages than the log's
 * @throws AdkvcError session_diverged when whole messages share no turn with the log and `overwrite` is not set
 */
export function joinPrompt(
  engine: Pick<Engine, 'template' | 'eosIds'>,
  log: Log,
  request: PromptRequest,
  sameModel = true,
): Prompt {
  if (request.messages.length === 0)
    throw new InvalidInputError('messages must hold at least one message', 'messages');
  const messages = request.mode === 'whole' ? request.messages : appended(log.messages, request);
  const common = commonMessages(messages, log.messages);
  const isElsewhere = request.onto !== undefined && request.onto !== markOf(log.messages);
  if (
    isElsewhere ||
    (request.continues && log.messages.some((m, i) => i >= common && m.unfinished === undefined))
  )
    throw moved(log);
  const turns = (list: readonly ChatMessage[]) => list.some((message) => message.role !== 'system');
  if (turns(log.messages) && !turns(messages.slice(0, common)) && !request.overwrite)
    throw new AdkvcError(
      'session_diverged',
      'messages share no turn with this session: send its conversation, set session_overwrite, or use another session_id',
      { param: 'messages', data: { loggedMessages: log.messages.length } },
    );

  const reused = sameModel ? common : 0;
  const encoded = engine.template.encode(
    messages.map(({ role, content }, i) => ({ role, content: i < reused ? PLACEHOLDER : content })),
    { addGenerationPrompt: true },
  );
  const ids: number[] = [];
  const logged: LoggedMessage[] = [];
  messages.forEach(({ role, content }, i) => {
    const fresh = encoded.ids.slice(i === 0 ? 0 : encoded.spans[i - 1]!.end, encoded.spans[i]!.end);
    const kept = i < reused ? log.messages[i] : undefined;
    if (kept) {
      append(ids, log.ids, i === 0 ? 0 : log.messages[i - 1]!.end, kept.end);
      if (kept.open) close(ids, fresh, engine.eosIds);
    } else append(ids, fresh);
    logged.push({
      role,
      content,
      end: ids.length,
      ...(kept?.prompt === undefined ? {} : { prompt: kept.prompt }),
      // Its text counts under another model, too.
      ...(i < common && log.messages[i]!.made && { made: log.messages[i]!.made }),
      ...(i < common && log.messages[i]!.withdrawn && { withdrawn: true as const }),
      ...((i < common ? log.messages[i]!.given : role === 'assistant') && { given: true as const }),
    });
  });
  append(ids, encoded.ids, encoded.spans.at(-1)!.end);
  return { messages: logged, ids, shared: sameModel ? commonLength(ids, log.ids) : 0 };
}

/**
 * The log as it stands when `answer` was sampled after the prompt, and `fed` ids were fed.
 * @param unfinished the request's key, unless the answer is complete
 * @param made how a complete answer came about
 */
export function answered(
  prompt: Prompt,
  answer: readonly number[],
  content: string,
  fed: number,
  unfinished?: string,
  made?: MadeAnswer,
  idempotencyKey?: string,
): Log {
  const ids = [...prompt.ids, ...answer];
  if (answer.length === 0) return { messages: prompt.messages, ids, fed };
  const message: LoggedMessage = {
    role: 'assistant',
    content,
    end: ids.length,
    prompt: prompt.ids.length,
    open: true,
    ...(unfinished !== undefined && { unfinished }),
    ...(made && { made }),
    ...(idempotencyKey !== undefined && { idempotencyKey }),
  };
  return { messages: [...prompt.messages, message], ids, fed };
}

/** The log when only its first `count` messages had been said; nothing of it is fed. `count` is below the number of messages. */
export function prefixOf(log: Log, count: number): Log {
  const messages = log.messages.slice(0, count);
  return { messages, ids: log.ids.slice(0, messages.at(-1)?.end ?? 0), fed: 0 };
}

/**
 * Positions that somebody may want to return to, newest first: for each of the last `turns` answers the last position
 * before it was sampled (regenerate) and the end of the answer before (edit); then a long conversation's openings (fork).
 */
export function anchors(log: Log, turns: number): number[] {
  const found: number[] = [];
  const answers = log.messages.filter((message) => message.role === 'assistant');
  // A prompt whose answer did not begin yet can be asked again, too.
  if (log.messages.at(-1)?.role !== 'assistant') found.push(log.ids.length - 1, answers.at(-1)?.end ?? 0);
  for (let i = answers.length - 1; i >= 0 && found.length < 2 * turns; i--) {
    found.push((answers[i]!.prompt ?? answers[i]!.end) - 1, answers[i - 1]?.end ?? 0);
  }
  return [...found.filter((position) => position > 0), ...openings(log.messages)];
}

/** Where the system's messages end, and the user's first: what several conversations may have in common. */
export function openings(messages: readonly LoggedMessage[]): number[] {
  const user = messages.findIndex(({ role }) => role === 'user');
  return [messages[user - 1], messages[user]].flatMap((message) =>
    message && message.end >= OPENING_POSITIONS ? [message.end] : [],
  );
}

/** Closing markup after an answer: what the template writes from its end-of-reply token on; a sampled one gives way to it, since it is not fed yet. */
function close(ids: number[], template: readonly number[], eosIds: readonly number[]): void {
  const eos = template.findLastIndex((id) => eosIds.includes(id));
  if (eos < 0) return;
  if (eosIds.includes(ids.at(-1)!)) ids.pop();
  append(ids, template, eos);
}

function append(to: number[], from: readonly number[], start = 0, end = from.length): void {
  for (let i = start; i < end; i++) to.push(from[i]!);
}

/** All that is said once these messages are appended. */
export const appended = (
  log: readonly Appendable[],
  request: Pick<PromptRequest, 'messages' | 'idempotencyKey'>,
): ChatMessage[] => [...log.slice(0, appendAt(log, request)), ...request.messages];

type Appendable = ChatMessage & Pick<LoggedMessage, 'idempotencyKey'>;

/** Tells one list of messages from another. */
export const markOf = (messages: readonly ChatMessage[]): string => {
  const text = JSON.stringify(messages.map(({ role, content }) => [role, content]));
  return `${messages.length}-${checksum(new TextEncoder().encode(text)).toString(16)}`;
};

/**
 * Where appended messages begin: at the log's end, or where they stand already, when they are sent again: the log ends with these very messages and no
 * answer followed (the turn was interrupted), or with an answer that was made for a request of the same name.
 */
function appendAt(
  log: readonly Appendable[],
  { messages, idempotencyKey }: Pick<PromptRequest, 'messages' | 'idempotencyKey'>,
): number {
  const last = log.at(-1);
  const named = idempotencyKey !== undefined && last?.idempotencyKey === idempotencyKey;
  const at = log.length - messages.length - (named ? 1 : 0);
  const again =
    at >= 0 &&
    (named || last?.role !== 'assistant') &&
    commonMessages(log.slice(at), messages) === messages.length;
  return again ? at : log.length;
}

function commonMessages(a: readonly ChatMessage[], b: readonly ChatMessage[]): number {
  let n = 0;
  while (n < a.length && n < b.length && a[n]!.role === b[n]!.role && a[n]!.content === b[n]!.content) n++;
  return n;
}

export function commonLength(a: readonly number[], b: readonly number[]): number {
  let n = 0;
  while (n < a.length && n < b.length && a[n] === b[n]) n++;
  return n;
}

/** How the user's first message begins, on one line. */
export function titleOf({ messages }: Pick<Log, 'messages'>): string {
  const first = messages.find(({ role }) => role === 'user')?.content ?? '';
  const begins = first.trimStart().slice(0, 4 * TITLE_CHARACTERS);
  // Characters, not code units: a pair must not be cut.
  const characters = [
    ...begins
      .replace(/[\ud800-\udbff]$/, '')
      .replaceAll(/\s+/g, ' ')
      .trim(),
  ];
  return characters.length > TITLE_CHARACTERS
    ? `${characters.slice(0, TITLE_CHARACTERS - 1).join('')}…`
    : characters.join('');
}
