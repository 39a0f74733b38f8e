import type { ChatMessage } from '../engine/types.ts';
import type {
  cacheMapObject,
  cacheObject,
  sessionListObject,
  sessionObject,
  turnObject,
  usageObject,
} from '../http/report.ts';

/** The page's side of the HTTP API; what it reads has the types of what the server writes. Only types cross: the page loads nothing of the server. */

export type Message = ChatMessage;
export type Cache = ReturnType<typeof cacheObject>;
export type Session = ReturnType<typeof sessionObject>;
export type SessionPage = ReturnType<typeof sessionListObject>;
export type CacheMap = ReturnType<typeof cacheMapObject>;
export type Tier = CacheMap['tiers'][number];

/** What the last chunk of an answer tells, the chunk of usage after it, and why it ended. */
type Told = ReturnType<typeof turnObject>;
export interface Answer extends Told {
  readonly usage: ReturnType<typeof usageObject>;
  readonly reason: string;
}

export interface Handlers {
  /** Prompt tokens read so far, of all. */
  progress(position: number, total: number): void;
  text(piece: string): void;
}

/** What the server refused, or a stream that broke off. */
export class ApiError extends Error {
  readonly status: number;
  readonly code: string;
  /** Seconds that the server asks to wait. */
  readonly retryAfter: number | undefined;
  constructor(status: number, code: string, message: string, retryAfter?: number) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** Kept until the tab is closed. */
const KEY = 'adkvc-key';
export const getKey = (): string | null => sessionStorage.getItem(KEY);
export const hasKey = (): boolean => getKey() !== null;
export const setKey = (key: string | null): void =>
  key === null ? sessionStorage.removeItem(KEY) : sessionStorage.setItem(KEY, key);

/** Answers the page's requests: the server that it came from, or the application in this browser. */
export type Fetch = (path: string, init?: RequestInit) => Promise<Response>;
let send: Fetch = (path, init) => fetch(path, init);
export const answerWith = (other: Fetch): void => {
  send = other;
};

async function call(path: string, init: RequestInit = {}): Promise<Response> {
  const key = getKey();
  const headers = new Headers(init.headers);
  if (key) headers.set('authorization', `Bearer ${key}`);
  if (init.body)
    headers.set('content-type', init.body instanceof Blob ? 'application/octet-stream' : 'application/json');
  const response = await send(path, { ...init, headers });
  if (response.ok) return response;
  const body = (await response.json().catch(() => null)) as {
    error?: { code: string; message: string };
  } | null;
  const wait = Number(response.headers.get('retry-after'));
  throw new ApiError(
    response.status,
    body?.error?.code ?? 'unknown',
    body?.error?.message ?? `The server answered with status ${response.status}.`,
    response.headers.has('retry-after') && Number.isFinite(wait) ? wait : undefined,
  );
}

const json = async <T>(path: string, init?: RequestInit): Promise<T> => (await call(path, init)).json();
const session = (id: string): string => `/v1/sessions/${encodeURIComponent(id)}`;

export interface Model {
  readonly id: string;
  readonly context_length: number;
}
export const loadModel = async (): Promise<Model> => (await json<{ data: [Model] }>('/v1/models')).data[0];

export const listSessions = (limit: number, after?: string | null): Promise<SessionPage> =>
  json(`/v1/sessions?limit=${limit}${after ? `&after=${encodeURIComponent(after)}` : ''}`);
export const loadMessages = async (id: string): Promise<Message[]> =>
  (await json<{ data: Message[] }>(`${session(id)}/messages`)).data;
export const loadSession = (id: string): Promise<Session> => json(session(id));
export const loadCacheMap = (id: string): Promise<CacheMap> => json(`${session(id)}/cache`);
export const deleteSession = async (id: string): Promise<void> => {
  await call(session(id), { method: 'DELETE' });
};
/** @param messages how many of the conversation's messages the copy keeps */
export const forkSession = (from: string, id: string, messages: number): Promise<Session> =>
  json(`${session(from)}/fork`, { method: 'POST', body: JSON.stringify({ id, messages }) });
/** The conversation and its cache as one file. */
export const exportSession = async (id: string): Promise<Blob> =>
  (await call(`${session(id)}/export`)).blob();
/** @param file what `exportSession` gave, here or on another server with the same model */
export const importSession = (file: Blob, id: string): Promise<Session> =>
  json(`/v1/sessions/import?id=${encodeURIComponent(id)}`, { method: 'POST', body: file });

export interface TurnRequest {
  readonly model: string;
  readonly sessionId: string;
  readonly messages: readonly Message[];
  /** 'append': messages are what is new. 'whole': they are the conversation, and what the session holds beyond them is cut. */
  readonly mode: 'append' | 'whole';
  readonly seed?: number | undefined;
  readonly maxTokens?: number | undefined;
}

/** One turn, its answer piece by piece. @throws ApiError; TypeError where the server cannot be reached */
export async function runTurn(turn: TurnRequest, handlers: Handlers, signal: AbortSignal): Promise<Answer> {
  const { model, sessionId, messages, mode, seed, maxTokens } = turn;
  const response = await call('/v1/chat/completions', {
    method: 'POST',
    signal,
    body: JSON.stringify({
      model,
      messages,
      session_id: sessionId,
      ...(mode === 'append' ? { session_append: true } : { session_overwrite: true }),
      stream: true,
      stream_options: { include_usage: true },
      seed,
      max_completion_tokens: maxTokens,
    }),
  });
  let told: Told | undefined;
  let usage: Answer['usage'] | undefined;
  let reason = '';
  let done = false;
  for await (const line of lines(response.body!)) {
    const progress = /^: prefill (\d+)\/(\d+)/.exec(line);
    if (progress) handlers.progress(Number(progress[1]), Number(progress[2]));
    if (!line.startsWith('data: ')) continue;
    done = line === 'data: [DONE]';
    if (done) break;
    const event = JSON.parse(line.slice(6)) as {
      error?: { code: string; message: string };
      choices: { delta: { content?: string }; finish_reason: string | null }[];
      usage?: Answer['usage'] | null;
      adkvc?: Told;
    };
    // No header can tell how long to wait once the answer has begun.
    if (event.error) throw new ApiError(response.status, event.error.code, event.error.message);
    const choice = event.choices[0];
    if (choice?.delta.content) handlers.text(choice.delta.content);
    if (choice?.finish_reason) reason = choice.finish_reason;
    told = event.adkvc ?? told;
    usage = event.usage ?? usage;
  }
  if (!done || !told || !usage) throw new ApiError(0, 'broken_off', 'The answer broke off.');
  return { ...told, usage, reason };
}

async function* lines(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body
    .pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>)
    .getReader();
  let rest = '';
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const all = (rest + part.value).split('\n');
    rest = all.pop()!;
    yield* all;
  }
}
