import { AbortedError, AdkvcError } from '../core/errors.ts';
import type { Engine } from '../engine/types.ts';
import {
  MAX_ADMISSION_WAIT_MS,
  MAX_WAITING_TURNS_PER_ISOLATE,
  MEMORY_SHARE_MS,
  RETRY_AFTER_SECONDS,
} from './limits.ts';

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
  /** Others wait for the memory, and this turn has had its share of it: it should hand over as soon as its cache is stored. */
  readonly due: boolean;
  /**
   * Gives the memory to those who wait and waits at the queue's end to get it back, however long it takes. The tenant holds no cache meanwhile.
   * @throws AbortedError
   */
  handOver(signal?: AbortSignal): Promise<void>;
  release(): void;
}

export interface SchedulerOptions {
  /** Waits at least this long in a macrotask of the caller's own; 0: only lets others run. workerd: scheduler.wait, Node: setImmediate and setTimeout. */
  readonly pause: (ms: number) => Promise<void>;
  readonly now?: () => number;
  readonly maxWaiting?: number;
  readonly maxWaitMs?: number;
  readonly shareMs?: number;
}

interface Turn {
  readonly tenant: Tenant;
  readonly bytes: number;
  /** When it got its memory. */
  readonly since: number;
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
      shareMs: MEMORY_SHARE_MS,
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
    const { now, pause, maxWaiting, maxWaitMs } = this.#options;
    const start = (): Turn => {
      const begun: Turn = { tenant, bytes, since: now(), seen: now() };
      this.#tenants.add(tenant);
      this.#turns.set(tenant, begun);
      return begun;
    };
    let turn: Turn;
    this.#supersede(tenant);
    this.#buryDead();
    if (this.#queue.length > 0 || !this.#makeRoom(tenant, engine, bytes)) {
      if (this.#queue.length >= maxWaiting)
        throw this.#refusal(
          bytes,
          `${this.#queue.length} turns wait for memory already (MAX_WAITING_TURNS_PER_ISOLATE)`,
        );
      turn = await this.#queued(tenant, engine, bytes, now() + maxWaitMs, signal, start);
    } else turn = start();
    const check = (): void => {
      if (this.#turns.get(tenant) !== turn)
        throw new AdkvcError('turn_interrupted', 'the turn was silent for too long and was given up');
      turn.seen = now();
    };
    const release = (): void => {
      if (this.#turns.get(tenant) === turn) this.#turns.delete(tenant);
    };
    const isDue = (): boolean => {
      if (this.#queue.length === 0 || now() - turn.since < this.#options.shareMs) return false;
      // One at a time, who has had it longest.
      for (const other of this.#turns.values()) if (other.since < turn.since) return false;
      return true;
    };
    return {
      yield: async () => {
        await pause(0);
        check();
      },
      check,
      get due() {
        return isDue();
      },
      handOver: async (until) => {
        check();
        release();
        turn = await this.#queued(tenant, engine, bytes, Number.POSITIVE_INFINITY, until, start);
      },
      release,
    };
  }

  /** Waits at the queue's end until `bytes` fit, and takes them in the same breath, before anybody else asks. @throws AdkvcError memory_limit after `deadline`; AbortedError */
  async #queued(
    tenant: Tenant,
    engine: Pick<Engine, 'availableBytes'>,
    bytes: number,
    deadline: number,
    signal: AbortSignal | undefined,
    start: () => Turn,
  ): Promise<Turn> {
    const { now, pause, maxWaitMs } = this.#options;
    const ticket: Ticket = { seen: now() };
    this.#queue.push(ticket);
    try {
      while (this.#queue[0] !== ticket || !this.#makeRoom(tenant, engine, bytes)) {
        if (signal?.aborted) throw new AbortedError();
        if (now() >= deadline)
          throw this.#refusal(bytes, `no memory became free within ${maxWaitMs} ms (MAX_ADMISSION_WAIT_MS)`);
        await pause(POLL_MS);
        ticket.seen = now();
        if (!this.#queue.includes(ticket)) this.#queue.push(ticket);
        this.#buryDead();
      }
      return start();
    } finally {
      this.#queue = this.#queue.filter((other) => other !== ticket);
    }
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
