import { AdkvcError } from '../core/errors.ts';
import type { TurnEvent } from './api.ts';
import { MAX_BUFFERED_BYTES } from './limits.ts';
import { toWire } from './wire.ts';

/**
 * The events of a turn, between the turn, which never waits, and its reader, who may be slow or gone.
 * A reader who returns, or lets more than `maxBytes` pile up, ends the turn at its next token (`abort`).
 */
export class TurnStream implements AsyncIterableIterator<TurnEvent> {
  #events: TurnEvent[] = [];
  #bytes = 0;
  #ended = false;
  #overflowed = false;
  #wake: (() => void) | undefined;
  readonly #abort: () => void;
  readonly #maxBytes: number;

  constructor(abort: () => void, maxBytes = MAX_BUFFERED_BYTES) {
    this.#abort = abort;
    this.#maxBytes = maxBytes;
  }

  push(event: TurnEvent): void {
    if (this.#ended || this.#overflowed) return;
    this.#bytes += JSON.stringify(event).length;
    if (this.#bytes > this.#maxBytes) {
      this.#overflowed = true;
      const error = new AdkvcError(
        'slow_reader',
        `more than ${this.#maxBytes} bytes waited to be read (MAX_BUFFERED_BYTES); the turn was ended and what was generated is kept`,
      );
      this.#events.push({ type: 'failed', error: toWire(error) });
      this.#abort();
    } else this.#events.push(event);
    this.#wake?.();
  }

  end(): void {
    this.#ended = true;
    this.#wake?.();
  }

  async next(): Promise<IteratorResult<TurnEvent, undefined>> {
    while (this.#events.length === 0) {
      if (this.#ended) return { done: true, value: undefined };
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = undefined;
    }
    const value = this.#events.shift()!;
    this.#bytes -= JSON.stringify(value).length;
    return { done: false, value };
  }

  async return(): Promise<IteratorResult<TurnEvent, undefined>> {
    if (!this.#ended) this.#abort();
    this.#ended = true;
    this.#events.length = 0;
    this.#wake?.();
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}

/**
 * Runs a turn behind a stream. Resolves once the first event is there; what is thrown before it is thrown from here.
 * @param run gives its events to `emit`; its signal fires when the reader goes away
 */
export function streamTurn(
  run: (emit: (event: TurnEvent) => void, signal: AbortSignal) => Promise<void>,
  signal: AbortSignal,
  maxBytes?: number,
): Promise<TurnStream> {
  const controller = new AbortController();
  const abort = () => controller.abort();
  if (signal.aborted) abort();
  else signal.addEventListener('abort', abort, { once: true });
  const stream = new TurnStream(abort, maxBytes);
  return new Promise((resolve, reject) => {
    run((event) => {
      stream.push(event);
      resolve(stream);
    }, controller.signal)
      .catch(reject)
      .finally(() => {
        signal.removeEventListener('abort', abort);
        stream.end();
        // A turn that ends without an event has nothing to stream.
        resolve(stream);
      });
  });
}
