import type { Context } from 'hono';
import { AbortedError, AdkvcError, InvalidInputError } from '../core/errors.ts';
import type { SamplingOptions } from '../engine/types.ts';
import type { SessionHost, TurnEvent, TurnRequest, WireError } from '../session/api.ts';
import { HEARTBEAT_MS } from './limits.ts';
import type { ServedModel } from './models.ts';

/** What every route that runs a turn shares: its defaults, its beginning, its end. */

export type TokenEvent = Extract<TurnEvent, { type: 'token' }>;
export type FinishedEvent = Extract<TurnEvent, { type: 'finished' }>;

/** A turn whose first event is there: what it can be refused for is behind it. */
export interface Begun {
  readonly first: TurnEvent;
  readonly rest: AsyncIterator<TurnEvent>;
}

/** Fires when the client goes away, or when it is told that it did. */
export function clientAbort(c: Context): { readonly signal: AbortSignal; readonly onGone: () => void } {
  const abort = new AbortController();
  const onGone = (): void => abort.abort(new AbortedError('the client went away'));
  const client = c.req.raw.signal;
  if (client.aborted) onGone();
  else client.addEventListener('abort', onGone, { once: true });
  return { signal: abort.signal, onGone };
}

/** @throws HttpError or AdkvcError for whatever the turn is refused */
export async function begin(
  host: SessionHost,
  key: string,
  id: string,
  turn: TurnRequest,
  signal: AbortSignal,
): Promise<Begun> {
  const rest = (await host.turn(key, id, turn, signal))[Symbol.asyncIterator]();
  const { value: first, done } = await rest.next();
  if (done) throw endedEarly();
  if (first.type === 'failed') throw fromWire(first.error);
  return { first, rest };
}

/**
 * What is refused at once gets its own status. A turn that waits long for its predecessor gets headers all the same, so that nobody
 * between takes the connection for dead; its refusal is then an event.
 */
export async function firstEventOrPatience(begun: Promise<Begun>): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const patience = new Promise((resolve) => (timer = setTimeout(resolve, HEARTBEAT_MS)));
  await Promise.race([begun, patience]).finally(() => clearTimeout(timer));
}

/** Hands every event to `onEvent` until the turn is committed. */
export async function follow(
  { first, rest }: Begun,
  onEvent: (event: TurnEvent) => void,
): Promise<FinishedEvent> {
  try {
    for (let event = first; ; ) {
      if (event.type === 'finished') return event;
      if (event.type === 'failed') throw fromWire(event.error);
      onEvent(event);
      const next = await rest.next();
      if (next.done) throw endedEarly();
      event = next.value;
    }
  } finally {
    await rest.return?.();
  }
}

const fromWire = ({ code, message, param, data }: WireError): AdkvcError =>
  new AdkvcError(code, message, { param, data });
const endedEarly = (): Error => new Error('the turn ended without a result');

/** What a request leaves open takes the model's own defaults. */
export function samplingOptions(
  given: { readonly [K in keyof SamplingOptions]?: SamplingOptions[K] | undefined },
  model: ServedModel,
): SamplingOptions {
  return {
    temperature: given.temperature ?? model.generation.temperature,
    topP: given.topP ?? model.generation.topP,
    topK: given.topK ?? 0,
    minP: given.minP ?? 0,
    frequencyPenalty: given.frequencyPenalty ?? 0,
    presencePenalty: given.presencePenalty ?? 0,
    repetitionPenalty: given.repetitionPenalty ?? 1,
    seed: given.seed ?? crypto.getRandomValues(new Uint32Array(1))[0]!,
    topLogprobs: given.topLogprobs,
  };
}

/** @param param the name by which the client gave it @throws InvalidInputError */
export function answerTokens(given: number | undefined, param: string, model: ServedModel): number {
  const maxTokens = given ?? Math.min(model.generation.maxTokens, model.contextLength);
  if (maxTokens > model.contextLength)
    throw new InvalidInputError(
      `${param} is ${maxTokens}; the model's context holds ${model.contextLength} tokens, prompt and answer together`,
      param,
      { limit: model.contextLength },
    );
  return maxTokens;
}
