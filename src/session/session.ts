import type { CacheConfig } from '../cache/policy.ts';
import { AbortedError, AdkvcError, CorruptDataError, InvalidInputError } from '../core/errors.ts';
import type { Engine } from '../engine/types.ts';
import { bytesToAdmit } from './admission.ts';
import { adopt } from './adopt.ts';
import type {
  ImportOptions,
  SaidMessage,
  SessionCacheMap,
  SessionExport,
  SessionInfo,
  TurnEvent,
  TurnRequest,
} from './api.ts';
import { ByteReader } from './byte-reader.ts';
import { cacheMap } from './cache-map.ts';
import type { Listing } from './directory.ts';
import { exists, notFound } from './errors.ts';
import { type Alarm, armExpiry, onAlarm } from './expiry.ts';
import { Exports } from './exports.ts';
import { type Head, isExpired, writeHead } from './head.ts';
import { saidMessages, sessionInfo } from './info.ts';
import { KeptHead } from './kept-head.ts';
import { IMPLICIT_TTL_SECONDS, IMPORT_TIMEOUT_MS } from './limits.ts';
import { joinPrompt, markOf, moved, titleOf } from './log.ts';
import { identityOf, newHead } from './new-head.ts';
import type { Residence } from './recover.ts';
import type { Tenant } from './scheduler.ts';
import type { SessionServices } from './services.ts';
import { StateRows } from './state.ts';
import type { SessionStore } from './store/session-store.ts';
import { Turn } from './turn.ts';
import { TurnLock } from './turn-lock.ts';
import { unsay } from './unsay.ts';
import { toWire } from './wire.ts';

const DELETED = Symbol('deleted');

/**
 * One conversation. Turns run one at a time; reads see the last commit without waiting. What it keeps in memory (its
 * resident cache, the head) is a copy of what is in the store and may be forgotten at any time between turns.
 */
export class Session implements Tenant {
  readonly key: string;
  readonly #services: SessionServices;
  readonly #store: SessionStore;
  readonly #alarm: Alarm;
  readonly #now: () => number;
  readonly #lock = new TurnLock();
  readonly #head: KeptHead;
  #residence: Residence | undefined;
  #running: AbortController | undefined;
  /** The turn that runs; it holds the residence meanwhile. */
  #turn: Turn | undefined;
  /** A session that its first turn is making, as reads see it until the first commit. Nothing of it is stored. */
  #beginning: { readonly head: Head; readonly title: string } | undefined;
  readonly #known = new StateRows();
  /** Commits that are being exported: their rows stay as they are. */
  readonly #exports: Exports;

  /** @param key names the conversation within the isolate */
  constructor(key: string, services: SessionServices, store: SessionStore, alarm: Alarm) {
    this.key = key;
    this.#services = services;
    this.#store = store;
    this.#alarm = alarm;
    this.#now = services.now ?? Date.now;
    this.#head = new KeptHead(store);
    this.#exports = new Exports(store);
  }

  get residentBytes(): number {
    return (this.#turn?.residence ?? this.#residence)?.cache.bytes ?? 0;
  }
  get implicit(): boolean {
    return this.#head.known?.implicit ?? false;
  }
  get lastUsedAt(): number {
    return this.#head.known?.lastUsedAt ?? 0;
  }
  /** A turn runs or waits. */
  get busy(): boolean {
    return this.#lock.held || this.#lock.waiting > 0;
  }

  /** Something reads or writes it. */
  get used(): boolean {
    return this.busy || this.#exports.running > 0;
  }

  forget(): void {
    this.#residence?.cache.dispose();
    this.#residence = undefined;
  }

  abandon(): void {
    this.#turn?.abandon();
    this.forget();
  }

  /** The object is given up: memory and handles go, the store's bytes stay. */
  close(): void {
    this.forget();
    this.#services.scheduler.leave(this);
    this.#store.close();
  }

  /** @throws AdkvcError session_exists */
  async create(
    id: string,
    options: { cache?: Partial<CacheConfig>; ttlSeconds?: number; listing?: Listing },
  ): Promise<SessionInfo> {
    const engine = await this.#services.loadEngine();
    const release = await this.#lock.acquire();
    try {
      await this.#vacate(id);
      const head = newHead(id, this.#now(), {
        ...options,
        cacheBytes: this.#services.cacheBytes,
        implicit: false,
        engine,
      });
      engine.worstCaseBytes(head.cacheConfig, 1); // refuses a configuration that no cache could have
      await this.#list(head);
      this.#store.transaction(() => writeHead(this.#store, head));
      await this.#store.sync();
      await armExpiry(this.#alarm, head);
      this.#head.keep(head);
      return this.info();
    } finally {
      release();
    }
  }

  /** @throws AdkvcError session_not_found */
  info(): SessionInfo {
    const head = this.#existing();
    const told = sessionInfo(
      head,
      this.#store.size().bytes,
      this.#running !== undefined || this.#lock.waiting > 0,
    );
    return head === this.#beginning?.head ? { ...told, title: this.#beginning.title } : told;
  }

  /** @throws AdkvcError session_not_found */
  messages(): SaidMessage[] {
    return saidMessages(this.#existing());
  }

  /** @throws AdkvcError session_not_found, session_moved, session_busy; InvalidInputError message */
  async unsay(count: number, mark?: string): Promise<void> {
    const release = await this.#lock.acquire();
    try {
      const head = this.#existing();
      if (mark !== undefined && markOf(head.log.messages.slice(0, count - 1)) !== mark) throw moved(head.log);
      // An export pins rows that are to go.
      this.#exports.refuse(1);
      this.forget();
      this.#head.forget();
      this.#head.keep(unsay(this.#store, head, count));
      await this.#store.sync();
    } finally {
      release();
    }
  }

  /**
   * Which tiers hold which tokens, as of the last commit; read from the store, no memory of the kernels' is taken.
   * @throws AdkvcError session_not_found; InvalidInputError layer
   */
  async cacheMap(layer?: number): Promise<SessionCacheMap> {
    const { model, tokenizer } = await this.#services.loadEngine();
    if (layer !== undefined && layer >= model.layers)
      throw new InvalidInputError(`layer must be below ${model.layers}`, 'layer');
    return cacheMap(this.#store, this.#existing(), model, tokenizer, layer);
  }

  /**
   * The conversation as of its last commit, or its first `messages` messages, as one stream; turns go on meanwhile.
   * @throws AdkvcError session_not_found, session_busy; InvalidInputError messages
   */
  export(messages?: number): SessionExport {
    return this.#exports.open(this.#existing(), messages);
  }

  /**
   * Becomes the exported conversation, under another id. Nothing stays behind when it fails: rows are no session until the head is
   * written, last.
   * @throws AdkvcError session_exists, and what readExport throws
   */
  async import(
    id: string,
    stream: ReadableStream<Uint8Array>,
    options: ImportOptions = {},
  ): Promise<SessionInfo> {
    const file = new ByteReader(stream);
    try {
      const engine = await this.#services.loadEngine();
      const release = await this.#lock.acquire();
      try {
        await this.#vacate(id);
        await this.#alarm.set(this.#now() + IMPORT_TIMEOUT_MS);
        try {
          const head = await adopt(this.#store, engine, file, { ...options, id, now: this.#now() });
          await this.#list(head);
          await this.#store.sync();
          this.#head.keep(head);
          await this.#alarm.clear();
          await armExpiry(this.#alarm, head);
        } catch (error) {
          await this.#destroy();
          throw error;
        }
        return this.info();
      } finally {
        release();
      }
    } finally {
      await file.cancel();
    }
  }

  /** Ends the running turn, then deletes every byte. @throws AdkvcError session_not_found */
  async delete(): Promise<void> {
    if (!this.busy && this.#head.peek() === undefined) throw notFound();
    const gone = new AdkvcError('session_not_found', 'the session was deleted while this turn waited');
    this.#lock.refuseAll(gone);
    this.#running?.abort(DELETED);
    const release = await this.#lock.acquire(undefined, Number.POSITIVE_INFINITY);
    try {
      await this.#destroy();
    } finally {
      release();
    }
  }

  /** Called by the host when the alarm fires, or, `resumed`, when it begins and may have lost alarms. */
  async expire(resumed = false): Promise<void> {
    const step = onAlarm(this.#head.peek(), this.busy, this.#now(), resumed);
    if (typeof step === 'number') await this.#alarm.set(step);
    if (step !== 'delete') return;
    const release = await this.#lock.acquire();
    try {
      await this.#destroy();
    } finally {
      release();
    }
  }

  /**
   * Runs one turn; its events go to `emit`, which never waits. What goes wrong before `started` is thrown, later it is emitted as `failed`.
   * When `signal` fires the turn ends at the next token, what was generated is committed, and an AbortedError is emitted (for nobody).
   */
  async turn(
    id: string,
    request: TurnRequest,
    signal: AbortSignal,
    emit: (event: TurnEvent) => void,
  ): Promise<void> {
    const release = await this.#lock.acquire(signal);
    const controller = new AbortController();
    const abort = () => controller.abort();
    if (signal.aborted) abort();
    else signal.addEventListener('abort', abort, { once: true });
    this.#running = controller;
    let started = false;
    try {
      await this.#run(id, request, controller.signal, (event) => {
        started = true;
        emit(event);
      });
    } catch (error) {
      const told =
        controller.signal.reason === DELETED ? notFound('the session was deleted during this turn') : error;
      if (!started) throw told;
      emit({ type: 'failed', error: toWire(told) });
    } finally {
      // The turn's own end is what is told.
      await this.#unlistUnbegun().catch(() => {});
      this.#running = undefined;
      this.#beginning = undefined;
      signal.removeEventListener('abort', abort);
      release();
    }
  }

  async #run(
    id: string,
    request: TurnRequest,
    signal: AbortSignal,
    emit: (event: TurnEvent) => void,
  ): Promise<void> {
    const { scheduler } = this.#services;
    const begin = this.#now();
    const engine = await this.#services.loadEngine();
    const loadMs = this.#now() - begin;
    const { head, damage } = await this.#headForTurn(id, request, engine);
    const isNew = this.#head.known === undefined;
    const identity = identityOf(engine);
    const sameModel = head.engine?.fingerprint === identity.fingerprint;
    const prompt = joinPrompt(engine, head.log, request, sameModel);
    const tokens = Math.min(prompt.ids.length + request.maxTokens, engine.positionLimit(head.cacheConfig));
    const capacity = scheduler.capacity(engine);
    const bytes = bytesToAdmit(capacity, engine, head.cacheConfig, prompt.ids.length, tokens);
    if (signal.aborted) throw new AbortedError();

    if (isNew) {
      if (request.store) this.#beginning = { head, title: titleOf(prompt) };
      await this.#list(head);
    }
    const asked = this.#now();
    const lease = await scheduler.admit(this, engine, bytes, signal);
    const turn = new Turn({
      engine,
      identity,
      generate: this.#services.generate,
      store: this.#store,
      lease,
      before: { loadMs, waitMs: this.#now() - asked },
      now: this.#now,
      head,
      damage,
      prompt,
      residence: this.#residence,
      request: { ...request, maxTokens: tokens - prompt.ids.length },
      signal,
      pinned: () => this.#exports.pinned(),
      known: this.#known,
      deleted: () => signal.reason === DELETED,
      committed: async (next) => {
        this.#head.keep(next);
        await armExpiry(this.#alarm, next);
      },
      emit,
    });
    this.#turn = turn;
    this.#residence = undefined;
    try {
      await turn.run();
    } finally {
      this.#turn = undefined;
      if (turn.clean) this.#residence = turn.residence;
      else {
        // Memory may differ from the store now; the store is right, and is read again.
        turn.residence?.cache.dispose();
        this.#head.forget();
        scheduler.leave(this);
      }
      lease.release();
    }
  }

  /** The stored head, or one for a session that begins with this turn. */
  async #headForTurn(
    id: string,
    request: TurnRequest,
    engine: Engine,
  ): Promise<{ head: Head; damage: string | undefined }> {
    const fresh = () =>
      newHead(id, this.#now(), {
        cache: request.cache,
        cacheBytes: this.#services.cacheBytes,
        ttlSeconds: request.ttlSeconds ?? (request.implicit ? IMPLICIT_TTL_SECONDS : undefined),
        implicit: request.implicit,
        listing: request.store ? request.listing : undefined,
        engine,
      });
    try {
      const head = this.#head.read();
      if (head && isExpired(head, this.#now())) {
        await this.#destroy();
        return { head: fresh(), damage: undefined };
      }
      if (!head) await this.#clearUnfinished();
      return { head: head ?? fresh(), damage: this.#head.damage };
    } catch (error) {
      // Nothing tells what was said before, unless the request does.
      if (!(error instanceof CorruptDataError) || request.mode === 'append') throw error;
      return { head: fresh(), damage: error.message };
    }
  }

  /** Before the session is there: an entry without a session does no harm. @throws AdkvcError session_quota_exceeded */
  async #list({ id, createdAt, implicit, listing }: Head): Promise<void> {
    if (listing)
      await this.#services.directories?.add(listing.directory, {
        key: listing.key,
        id,
        createdAt,
        implicit,
      });
  }

  /** A first turn that left nothing leaves no entry either: nobody may ask for the list, which would clear it away, and it counts against the quota. */
  async #unlistUnbegun(): Promise<void> {
    if (this.#beginning && this.#store.ids().length === 0) await this.#unlist(this.#beginning.head);
  }

  async #unlist({ listing }: Pick<Head, 'listing'>): Promise<void> {
    if (listing) await this.#services.directories?.remove(listing.directory, listing.key);
  }

  #existing(): Head {
    const head = this.#head.read() ?? this.#beginning?.head;
    if (!head || (isExpired(head, this.#now()) && !this.busy)) throw notFound();
    return head;
  }

  /** Before another session is written here. One that has expired and waits for its alarm is none any more. @throws AdkvcError session_exists */
  async #vacate(id: string): Promise<void> {
    const head = this.#head.read();
    if (!head) await this.#clearUnfinished();
    else if (isExpired(head, this.#now())) await this.#destroy();
    else throw exists(id);
  }

  /** Rows without a head are of an import that was cut off. */
  async #clearUnfinished(): Promise<void> {
    if (this.#store.ids().length > 0) await this.#destroy();
  }

  async #destroy(): Promise<void> {
    this.forget();
    this.#services.scheduler.leave(this);
    const head = this.#head.peek();
    try {
      await this.#alarm.clear();
      await this.#store.destroy();
    } finally {
      // Not before: who reads meanwhile would find it stored, and keep it.
      this.#head.forget();
    }
    if (typeof head === 'object') await this.#unlist(head);
  }
}
