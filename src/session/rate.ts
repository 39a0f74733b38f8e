import { REQUESTS_BURST, REQUESTS_PER_SECOND } from './limits.ts';

/** What became of one request's place. */
export interface Spent {
  /** Seconds until there is a place again; 0: this request has one. */
  readonly wait: number;
  /** Requests that may still come at once. */
  readonly left: number;
}

/** How many requests each owner may send, by the name of the owner's directory. */
export interface RequestRates {
  spend(directory: string): Promise<Spent>;
}

/**
 * A token bucket. It is kept in memory alone: an object is evicted after at least 70 idle seconds, and by then a bucket of these constants is full
 * again, so that forgetting it changes nothing and no row is ever written for it.
 */
export class TokenBucket {
  readonly #capacity: number;
  readonly #perSecond: number;
  #tokens: number;
  #at: number | undefined;

  constructor(capacity = REQUESTS_BURST, perSecond = REQUESTS_PER_SECOND) {
    this.#capacity = capacity;
    this.#perSecond = perSecond;
    this.#tokens = capacity;
  }

  /** @param now in ms; a clock that steps back gives nothing and takes nothing */
  take(now: number): Spent {
    const passed = Math.max(0, now - (this.#at ?? now)) / 1000;
    this.#at = now;
    this.#tokens = Math.min(this.#capacity, this.#tokens + passed * this.#perSecond);
    if (this.#tokens < 1) return { wait: (1 - this.#tokens) / this.#perSecond, left: 0 };
    this.#tokens -= 1;
    return { wait: 0, left: Math.floor(this.#tokens) };
  }
}

/** Rates of this process. */
export class LocalRates implements RequestRates {
  readonly #now: () => number;
  #buckets = new Map<string, TokenBucket>();

  constructor(now: () => number = Date.now) {
    this.#now = now;
  }

  async spend(directory: string): Promise<Spent> {
    let bucket = this.#buckets.get(directory);
    if (!bucket) this.#buckets.set(directory, (bucket = new TokenBucket()));
    return bucket.take(this.#now());
  }
}
