import { AbortedError, AdkvcError } from '../../core/errors.ts';
import type { SessionHost, TurnEvent } from '../../session/api.ts';
import { firstToken, type Metrics, type Sums, sumsOf, turnFailed, turnFinished } from './metrics.ts';

const ABORTED = new AbortedError().code;

/**
 * The host, its turns counted.
 * @param defer keeps the request's context alive until the counters are written
 */
export function meteredHost(
  host: SessionHost,
  metrics: Metrics,
  defer: (work: Promise<unknown>) => void = () => {},
): SessionHost {
  const count = (sums: Sums): void =>
    defer(metrics.add(sums).catch((error: unknown) => console.error('counters were not written', error)));
  const turn: SessionHost['turn'] = async (...call) => {
    const start = Date.now();
    try {
      return new MeteredTurn((await host.turn(...call))[Symbol.asyncIterator](), start, count);
    } catch (error) {
      const code = error instanceof AdkvcError ? error.code : 'internal_error';
      // The caller asks another session then; the turn is counted there.
      if (code !== 'session_moved') count(turnFailed(code));
      throw error;
    }
  };
  return new Proxy(host, {
    get(target, name) {
      if (name === 'turn') return turn;
      const member: unknown = Reflect.get(target, name);
      return typeof member === 'function' ? member.bind(target) : member;
    },
  });
}

/** No generator: returning must reach the turn also before its first event was asked for. */
class MeteredTurn implements AsyncIterableIterator<TurnEvent> {
  readonly #events: AsyncIterator<TurnEvent>;
  readonly #start: number;
  readonly #count: (sums: Sums) => void;
  #first: Sums | undefined;
  #counted = false;

  constructor(events: AsyncIterator<TurnEvent>, start: number, count: (sums: Sums) => void) {
    this.#events = events;
    this.#start = start;
    this.#count = count;
  }

  async next(): Promise<IteratorResult<TurnEvent, undefined>> {
    const result = await this.#events.next();
    if (result.done) return this.#left();
    const event = result.value;
    if (event.type === 'token') this.#first ??= firstToken((Date.now() - this.#start) / 1000);
    if (event.type === 'finished') this.#ended(turnFinished(event));
    if (event.type === 'failed') this.#ended(turnFailed(event.error.code));
    return { done: false, value: event };
  }

  async return(): Promise<IteratorResult<TurnEvent, undefined>> {
    await this.#events.return?.();
    return this.#left();
  }

  /** Its reader went away before its end, which is told to nobody. */
  #left(): IteratorResult<TurnEvent, undefined> {
    this.#ended(turnFailed(ABORTED));
    return { done: true, value: undefined };
  }

  /** One write a turn. */
  #ended(how: Sums): void {
    if (this.#counted) return;
    this.#counted = true;
    this.#count(sumsOf(this.#first ?? {}, how));
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
