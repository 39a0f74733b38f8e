import { AbortedError, AdkvcError } from '../core/errors.ts';
import type { Engine } from '../engine/types.ts';
import { MAX_ADMISSION_WAIT_MS, MAX_WAITING_TURNS_PER_ISOLATE, RETRY_AFTER_SECONDS } from './limits.ts';

/** A session, as the scheduler sees it: it may hold a cache in the isolate's memory. */
export interface Tenant {
  /** Names the conversation: two tenants of one key are an object and its successor after an eviction. */
  readonly key: string;
  /** Kernel bytes of its resident cache; 0 without one. */
  readonly residentBytes: number;
  /** Implicit sessions are forgotten first. */
  readonly implicit: boolean;
  readonly lastUsedAt: number;
  /**
   * Frees the resident cache. Called only without a lease, when the cache is clean. Must not do I/O: the caller is
   * another object's request, which the platform forbids to touch this one's storage.
   */
  forget(): void;
  /** The object is gone, and with it the turn that it ran: frees the cache, whoever held it. */
  abandon(): void;
}

/** The right to run one turn. */
export interface Lease {
  /**
   * Awaited between slices of work: other turns, requests and aborts get their share. Turns alternate, since the
   * runtime serves macrotasks first come first served and the engine its chunks likewise.
   */
  yield(): Promise<void>;
  /** To be called after any other wait, before the cache is touched. @throws AdkvcError turn_interrupted when the turn was given up for dead */
  check(): void;
  release(): void;
}

export interface SchedulerOptions {
  /** Waits at least this long in a macrotask of the caller's own; 0: only lets others run. workerd: scheduler.wait, Node: setImmediate and setTimeout. */
  readonly pause: (ms: number) => Promise<void>;
  readonly now?: () => number;
  readonly maxWaiting?: number;
  readonly maxWaitMs?: number;
}

interface Turn {
  readonly tenant: Tenant;
  readonly bytes: number;
  /** When it showed last that it runs. */
  seen: number;
}

/** A place in the queue; who holds it shows at each look that it is there. */
interface Ticket {
  seen: number;
}

/** Waiters look again after this long: a promise of another object's request is never awaited, since workerd takes that for a hang. */
const POLL_MS = 10;
/** An object that the platform resets ends without a word: waiters and turns that are silent for so long are taken for dead. */
export const SILENT_WAITER_MS = 5_000;
export const SILENT_TURN_MS = 120_000;

/** All conversations of an isolate share one thread and one memory; this divides both. One instance an isolate. */
export class Scheduler {
  readonly #options: Required<SchedulerOptions>;
  #tenants = new Set<Tenant>();
  #turns = new Map<Tenant, Turn>();
  #queue: Ticket[] = [];

  constructor(options: SchedulerOptions) {
    this.#options = {
      now: Date.now,
      maxWaiting: MAX_WAITING_TURNS_PER_ISOLATE,
      maxWaitMs: MAX_ADMISSION_WAIT_MS,
      ...options,
    };
  }

  get running(): number {
    return this.#turns.size;
  }
  get waiting(): number {
    return this.#queue.length;
  }

  /** Bytes that one turn could get if nobody else held any. */
  capacity(engine: Pick<Engine, 'availableBytes'>): number {
    let bytes = engine.availableBytes;
    for (const tenant of this.#tenants) bytes += tenant.residentBytes;
    return bytes;
  }

  /** The tenant is gone: it holds nothing any more. */
  leave(tenant: Tenant): void {
    this.#tenants.delete(tenant);
  }

  /**
   * Waits until `bytes` fit beside the turns that run; idle sessions' caches are forgotten for it, the implicit and the
   * longest unused first. First in, first out.
   * @throws AdkvcError memory_limit (data.retryAfter) when too many wait or the wait takes too long; AbortedError
   */
  async admit(
    tenant: Tenant,
    engine: Pick<Engine, 'availableBytes'>,
    bytes: number,
    signal?: AbortSignal,
  ): Promise<Lease> {
    this.#supersede(tenant);
    this.#buryDead();
    if (this.#queue.length > 0 || !this.#makeRoom(tenant, engine, bytes)) {
      if (this.#queue.length >= this.#options.maxWaiting)
        throw this.#refusal(
          bytes,
          `${this.#queue.length} turns wait for memory already (MAX_WAITING_TURNS_PER_ISOLATE)`,
        );
      const ticket: Ticket = { seen: this.#options.now() };
      const deadline = this.#options.now() + this.#options.maxWaitMs;
      this.#queue.push(ticket);
      try {
        while (this.#queue[0] !== ticket || !this.#makeRoom(tenant, engine, bytes)) {
          if (signal?.aborted) throw new AbortedError();
          if (this.#options.now() >= deadline)
            throw this.#refusal(
              bytes,
              `no memory became free within ${this.#options.maxWaitMs} ms (MAX_ADMISSION_WAIT_MS)`,
            );
          await this.#options.pause(POLL_MS);
          ticket.seen = this.#options.now();
          if (!this.#queue.includes(ticket)) this.#queue.push(ticket);
          this.#buryDead();
        }
      } finally {
        this.#queue = this.#queue.filter((other) => other !== ticket);
      }
    }
    const turn: Turn = { tenant, bytes, seen: this.#options.now() };
    this.#tenants.add(tenant);
    this.#turns.set(tenant, turn);
    const check = (): void => {
      if (this.#turns.get(tenant) !== turn)
        throw new AdkvcError('turn_interrupted', 'the turn was silent for too long and was given up');
      turn.seen = this.#options.now();
    };
    return {
      yield: async () => {
        await this.#options.pause(0);
        check();
      },
      check,
      release: () => {
        if (this.#turns.get(tenant) === turn) this.#turns.delete(tenant);
      },
    };
  }

  /** An object that was evicted or reset could not free its cache (there is no hook for it); its successor does. There is one object of a key at a time. */
  #supersede(tenant: Tenant): void {
    for (const other of this.#tenants) if (other !== tenant && other.key === tenant.key) this.#bury(other);
  }

  #buryDead(): void {
    const now = this.#options.now();
    this.#queue = this.#queue.filter(({ seen }) => now - seen <= SILENT_WAITER_MS);
    for (const [tenant, { seen }] of this.#turns) if (now - seen > SILENT_TURN_MS) this.#bury(tenant);
  }

  #bury(tenant: Tenant): void {
    this.#turns.delete(tenant);
    this.#tenants.delete(tenant);
    tenant.abandon();
  }

  #makeRoom(tenant: Tenant, engine: Pick<Engine, 'availableBytes'>, bytes: number): boolean {
    const capacity = this.capacity(engine);
    let needed = bytes;
    for (const turn of this.#turns.values()) needed += Math.max(turn.bytes, turn.tenant.residentBytes);
    if (needed > capacity) return false;
    const idle = [...this.#tenants]
      .filter((other) => other !== tenant && !this.#turns.has(other) && other.residentBytes > 0)
      .sort((a, b) => Number(b.implicit) - Number(a.implicit) || a.lastUsedAt - b.lastUsedAt);
    for (const other of idle) needed += other.residentBytes;
    for (const other of idle) {
      if (needed <= capacity) break;
      needed -= other.residentBytes;
      other.forget();
    }
    return needed <= capacity;
  }

  #refusal(bytes: number, why: string): AdkvcError {
    return new AdkvcError(
      'memory_limit',
      `this turn needs ${bytes} bytes and ${why}; try again in ${RETRY_AFTER_SECONDS} s`,
      { data: { retryAfter: RETRY_AFTER_SECONDS, needed: bytes } },
    );
  }
}
