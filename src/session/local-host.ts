import type { CacheConfig } from '../cache/policy.ts';
import { AdkvcError } from '../core/errors.ts';
import { MAX_TIMER_MS } from '../core/timer.ts';
import type {
  ImportOptions,
  SaidMessage,
  SessionCacheMap,
  SessionExport,
  SessionHost,
  SessionInfo,
  SessionPage,
  TurnEvent,
  TurnRequest,
} from './api.ts';
import { type Directories, type Listing, LocalDirectories } from './directory.ts';
import type { Alarm } from './expiry.ts';
import { listSessions } from './list.ts';
import type { SessionServices } from './services.ts';
import { Session } from './session.ts';
import { MemoryStore } from './store/memory.ts';
import type { SessionStore } from './store/session-store.ts';
import { streamTurn } from './turn-stream.ts';

/** Session objects of which none need hold anything; beyond it those that do not are let go. */
export const MAX_IDLE_SESSIONS = 64;

/**
 * Sessions in this process: Node, and tests.
 *
 * @example
 * const host = new LocalHost(services, (key) => new NodeSqliteStore(join(folder, `${key}.sqlite`)));
 */
export class LocalHost implements SessionHost {
  readonly #services: SessionServices;
  readonly #directories: Directories;
  readonly #openStore: (key: string) => SessionStore;
  #sessions = new Map<string, Session>();
  #alarms = new Map<string, TimerAlarm>();
  /** Calls that run, by the session that they are for. */
  #calls = new Map<Session, number>();

  /** @param openStore called once for each session object, with the same bytes behind it each time; must not create anything by itself */
  constructor(services: SessionServices, openStore: (key: string) => SessionStore) {
    this.#directories = services.directories ?? new LocalDirectories(() => new MemoryStore());
    this.#services = { ...services, directories: this.#directories };
    this.#openStore = openStore;
  }

  async create(
    key: string,
    id: string,
    options: { cache?: Partial<CacheConfig>; ttlSeconds?: number; listing?: Listing },
  ): Promise<SessionInfo> {
    return this.#use(key, (session) => session.create(id, options));
  }

  async get(key: string): Promise<SessionInfo> {
    return this.#use(key, async (session) => session.info());
  }

  async messages(key: string): Promise<SaidMessage[]> {
    return this.#use(key, async (session) => session.messages());
  }

  async unsay(key: string, count: number, mark?: string): Promise<void> {
    await this.#use(key, (session) => session.unsay(count, mark));
  }

  async delete(key: string): Promise<void> {
    await this.#use(key, (session) => session.delete());
    // A turn that came meanwhile begins a new session in this object.
    if (!this.#sessions.get(key)?.busy) this.evict(key);
  }

  async list(directory: string, page: { limit: number; after?: string }): Promise<SessionPage> {
    const now = (this.#services.now ?? Date.now)();
    return listSessions(this.#directories, (key) => this.get(key), now, directory, page);
  }

  async cacheMap(key: string, layer?: number): Promise<SessionCacheMap> {
    return this.#use(key, (session) => session.cacheMap(layer));
  }

  async export(key: string, messages?: number): Promise<SessionExport> {
    return this.#use(key, async (session) => session.export(messages));
  }

  async import(
    key: string,
    id: string,
    file: ReadableStream<Uint8Array>,
    options: ImportOptions = {},
  ): Promise<SessionInfo> {
    return this.#use(key, (session) => session.import(id, file, options));
  }

  async fork(
    key: string,
    to: { key: string; id: string },
    options: { messages?: number; ttlSeconds?: number; listing?: Listing } = {},
  ): Promise<SessionInfo> {
    const { stream } = await this.export(key, options.messages);
    return this.import(to.key, to.id, stream, options);
  }

  async turn(
    key: string,
    id: string,
    request: TurnRequest,
    signal: AbortSignal,
  ): Promise<AsyncIterable<TurnEvent>> {
    return this.#use(key, (session) =>
      streamTurn(async (emit, own) => {
        try {
          await session.turn(id, request, own, emit);
        } finally {
          this.#tidy();
        }
      }, signal),
    );
  }

  /** Wakes the sessions with these keys (those found on disk at start), so that expired ones are deleted. */
  async resume(keys: Iterable<string>): Promise<void> {
    for (const key of keys) await this.#use(key, (session) => session.expire(true));
  }

  /** Forgets the session's object, as a Durable Object is evicted: memory only. @throws AdkvcError while a turn runs */
  evict(key: string): void {
    const session = this.#sessions.get(key);
    if (session?.busy) throw new AdkvcError('session_busy', 'a turn runs: the session cannot be evicted');
    session?.close();
    this.#sessions.delete(key);
    // An expiry that is due stays due, as an alarm does.
    if (this.#alarms.get(key)?.at == null) this.#alarms.delete(key);
  }

  close(): void {
    for (const [key, session] of this.#sessions) {
      session.close();
      this.#sessions.delete(key);
    }
    for (const alarm of this.#alarms.values()) alarm.stop();
    this.#alarms.clear();
    if (this.#directories instanceof LocalDirectories) this.#directories.close();
  }

  /** Session objects that hold nothing are let go: all that they know is in their stores. */
  #tidy(): void {
    for (const [key, session] of this.#sessions)
      if (!session.used && !this.#calls.has(session) && session.residentBytes === 0) this.evict(key);
  }

  async #use<T>(key: string, action: (session: Session) => Promise<T>): Promise<T> {
    let session = this.#sessions.get(key);
    if (!session) {
      session = new Session(key, this.#services, this.#openStore(key), this.#alarm(key));
      this.#sessions.set(key, session);
    }
    this.#calls.set(session, (this.#calls.get(session) ?? 0) + 1);
    let missing = false;
    try {
      return await action(session);
    } catch (error) {
      missing = isNotFound(error);
      throw error;
    } finally {
      const calls = this.#calls.get(session)! - 1;
      if (calls > 0) this.#calls.set(session, calls);
      else this.#calls.delete(session);
      // A look at a session that does not exist leaves no object behind.
      if (missing && calls === 0 && !session.busy && this.#sessions.get(key) === session) this.evict(key);
      // Nor do looks at many that do: each holds its file open.
      if (this.#sessions.size > MAX_IDLE_SESSIONS) this.#tidy();
    }
  }

  #alarm(key: string): Alarm {
    let alarm = this.#alarms.get(key);
    if (!alarm) {
      alarm = new TimerAlarm(
        () => this.#use(key, (session) => session.expire()),
        this.#services.now ?? Date.now,
      );
      this.#alarms.set(key, alarm);
    }
    return alarm;
  }
}

const isNotFound = (error: unknown): boolean =>
  error instanceof AdkvcError && error.code === 'session_not_found';

/** An alarm of this process: forgotten with it. */
export class TimerAlarm implements Alarm {
  at: number | null = null;
  readonly #fire: () => Promise<void>;
  readonly #now: () => number;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(fire: () => Promise<void>, now: () => number = Date.now) {
    this.#fire = fire;
    this.#now = now;
  }

  async get(): Promise<number | null> {
    return this.at;
  }

  async set(at: number): Promise<void> {
    this.stop();
    this.at = at;
    const timer: unknown = setTimeout(
      () => {
        this.at = null;
        // A failure (a disk that is full) is met again by the next look.
        this.#fire().catch(() => this.set(this.#now() + 60_000));
      },
      // What is due later looks again then.
      Math.min(Math.max(0, at - this.#now()), MAX_TIMER_MS),
    );
    this.#timer = timer as ReturnType<typeof setTimeout>;
    // Waiting for an expiry is no reason for a process to live on.
    if (typeof timer === 'object' && timer && 'unref' in timer) (timer as { unref(): void }).unref();
  }

  async clear(): Promise<void> {
    this.stop();
    this.at = null;
  }

  stop(): void {
    clearTimeout(this.#timer);
  }
}
