import { AbortedError, AdkvcError } from '../core/errors.ts';
import { MAX_WAITING_TURNS_PER_SESSION, RETRY_AFTER_SECONDS } from './limits.ts';

interface Waiter {
  grant(): void;
  refuse(error: unknown): void;
}

/**
 * First in, first out, one holder. A Durable Object is no lock: it interleaves requests and alarms at every await
 * that is not storage, so each session has its own.
 */
export class TurnLock {
  #held = false;
  #waiting: Waiter[] = [];
  readonly #limit: number;

  constructor(limit = MAX_WAITING_TURNS_PER_SESSION) {
    this.#limit = limit;
  }

  get held(): boolean {
    return this.#held;
  }
  get waiting(): number {
    return this.#waiting.length;
  }

  /**
   * @returns the release; calling it twice does nothing
   * @throws AdkvcError session_busy (data.retryAfter) when too many wait; AbortedError when the signal fires first
   */
  async acquire(signal?: AbortSignal, limit = this.#limit): Promise<() => void> {
    if (signal?.aborted) throw new AbortedError();
    if (this.#held) {
      if (this.#waiting.length >= limit)
        throw new AdkvcError(
          'session_busy',
          `${this.#waiting.length} turns wait for this session already (MAX_WAITING_TURNS_PER_SESSION); try again in ${RETRY_AFTER_SECONDS} s`,
          { data: { retryAfter: RETRY_AFTER_SECONDS, limit } },
        );
      await this.#wait(signal);
    }
    this.#held = true;
    let released = false;
    return () => {
      if (released) return;
      released = true;
      this.#held = false;
      const next = this.#waiting.shift();
      if (!next) return;
      // Handed over at once, so that nobody who asks between now and the waiter's continuation gets in front.
      this.#held = true;
      next.grant();
    };
  }

  /** Every waiter leaves with this error. */
  refuseAll(error: unknown): void {
    for (const waiter of this.#waiting.splice(0)) waiter.refuse(error);
  }

  #wait(signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      const leave = () => {
        this.#waiting.splice(this.#waiting.indexOf(waiter), 1);
        reject(new AbortedError());
      };
      const settle = (done: () => void) => {
        signal?.removeEventListener('abort', leave);
        done();
      };
      const waiter: Waiter = {
        grant: () => settle(resolve),
        refuse: (error) => settle(() => reject(error)),
      };
      this.#waiting.push(waiter);
      signal?.addEventListener('abort', leave, { once: true });
    });
  }
}
