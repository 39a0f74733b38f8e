/** The page's side of the HTTP API. */

export interface Message {
  readonly role: 'system' | 'user' | 'assistant';
  readonly content: string;
}

export interface Cache {
  readonly policy: string;
  readonly tokens: number;
  readonly bytes: number;
  readonly fp16_bytes: number;
  readonly ratio: number;
  readonly peak_bytes: number;
}

export interface Turn {
  readonly cache: Cache;
  readonly recovered?: { readonly reason: string; readonly replayed: number };
  readonly timing: { readonly prefill_ms: number; readonly decode_ms: number; readonly restore_ms: number };
}

export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly prompt_tokens_details: { readonly cached_tokens: number };
}

export interface Handlers {
  /** Prompt tokens read so far, of all. */
  progress(position: number, total: number): void;
  text(piece: string): void;
}

export interface Answer {
  readonly turn: Turn;
  readonly usage: Usage;
  readonly reason: string;
}

export class ApiError extends Error {
  readonly status: number;
  readonly code: string;
  constructor(status: number, code: string, message: string) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

const KEY = 'adkvc-key';
export const setKey = (key: string): void => sessionStorage.setItem(KEY, key);

async function call(path: string, init: RequestInit = {}): Promise<Response> {
  const key = sessionStorage.getItem(KEY);
  const headers = new Headers(init.headers);
  if (key) headers.set('authorization', `Bearer ${key}`);
  if (init.body) headers.set('content-type', 'application/json');
  const response = await fetch(path, { ...init, headers });
  if (response.ok) return response;
  const body = (await response.json().catch(() => null)) as {
    error?: { code: string; message: string };
  } | null;
  throw new ApiError(
    response.status,
    body?.error?.code ?? 'unknown',
    body?.error?.message ?? `The server answered with status ${response.status}.`,
  );
}

export interface Model {
  readonly id: string;
  readonly context_length: number;
}
export async function model(): Promise<Model> {
  const { data } = (await (await call('/v1/models')).json()) as { data: Model[] };
  return data[0]!;
}

/** undefined: there is no such session (yet). */
export async function history(id: string): Promise<{ messages: Message[]; cache: Cache | null } | undefined> {
  try {
    const { data } = (await (await call(`/v1/sessions/${id}/messages`)).json()) as { data: Message[] };
    const { cache } = (await (await call(`/v1/sessions/${id}`)).json()) as { cache: Cache | null };
    return { messages: data, cache };
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) return undefined;
    throw error;
  }
}

/** Sends what is new to the session, and hands out the answer piece by piece. */
export async function send(
  sessionId: string,
  modelId: string,
  message: Message,
  first: boolean,
  handlers: Handlers,
  signal: AbortSignal,
): Promise<Answer> {
  const response = await call('/v1/chat/completions', {
    method: 'POST',
    signal,
    body: JSON.stringify({
      model: modelId,
      messages: [message],
      session_id: sessionId,
      session_append: !first,
      stream: true,
      stream_options: { include_usage: true },
    }),
  });
  let turn: Turn | undefined;
  let usage: Usage | undefined;
  let reason = '';
  for await (const line of lines(response.body!)) {
    const progress = /^: prefill (\d+)\/(\d+)/.exec(line);
    if (progress) handlers.progress(Number(progress[1]), Number(progress[2]));
    if (!line.startsWith('data: ')) continue;
    if (line === 'data: [DONE]') break;
    const event = JSON.parse(line.slice(6)) as {
      error?: { code: string; message: string };
      choices: { delta: { content?: string }; finish_reason: string | null }[];
      usage?: Usage | null;
      adkvc?: Turn;
    };
    if (event.error) throw new ApiError(response.status, event.error.code, event.error.message);
    const choice = event.choices[0];
    if (choice?.delta.content) handlers.text(choice.delta.content);
    if (choice?.finish_reason) reason = choice.finish_reason;
    turn = event.adkvc ?? turn;
    usage = event.usage ?? usage;
  }
  if (!turn || !usage) throw new ApiError(0, 'broken_off', 'The answer broke off. Send the message again.');
  return { turn, usage, reason };
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
