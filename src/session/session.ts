import { type CacheConfig, completeConfig } from '../cache/policy.ts';
import {
  AbortedError,
  AdkvcError,
  ContextLengthError,
  CorruptDataError,
  InvalidInputError,
} from '../core/errors.ts';
import type { Engine } from '../engine/types.ts';
import { LAYOUT_VERSION } from '../kernels/layout.ts';
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
import { type Alarm, armExpiry, onAlarm } from './expiry.ts';
import { type EngineIdentity, expiresAt, FIRST_FREE_ROW, type Head, readHead, writeHead } from './head.ts';
import {
  IMPLICIT_TTL_SECONDS,
  IMPORT_TIMEOUT_MS,
  MAX_EXPORTS_PER_SESSION,
  RETRY_AFTER_SECONDS,
} from './limits.ts';
import { EMPTY_LOG, joinPrompt, titleOf } from './log.ts';
import type { Residence } from './recover.ts';
import { RowAllocator, RowKind, RowStream } from './row.ts';
import type { Tenant } from './scheduler.ts';
import type { SessionServices } from './services.ts';
import { encodeState } from './state.ts';
import type { SessionStore } from './store/session-store.ts';
import { exportChunks, type Imported, readExport, type Snapshot, snapshot } from './transfer.ts';
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
  #head: Head | undefined;
  #damage: string | undefined;
  #residence: Residence | undefined;
  #running: AbortController | undefined;
  /** The turn that runs; it holds the residence meanwhile. */
  #turn: Turn | undefined;
  /** Commits that are being exported: their rows stay as they are. */
  #exports = new Set<Snapshot>();

  /** @param key names the conversation within the isolate */
  constructor(key: string, services: SessionServices, store: SessionStore, alarm: Alarm) {
    this.key = key;
    this.#services = services;
    this.#store = store;
    this.#alarm = alarm;
    this.#now = services.now ?? Date.now;
  }

  get residentBytes(): number {
    return (this.#turn?.residence ?? this.#residence)?.cache.bytes ?? 0;
  }
  get implicit(): boolean {
    return this.#head?.implicit ?? false;
  }
  get lastUsedAt(): number {
    return this.#head?.lastUsedAt ?? 0;
  }
  /** A turn runs or waits. */
  get busy(): boolean {
    return this.#lock.held || this.#lock.waiting > 0;
  }

  /** Something reads or writes it. */
  get used(): boolean {
    return this.busy || this.#exports.size > 0;
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
      if (this.#readHead()) throw exists(id);
      await this.#clearUnfinished();
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
      this.#head = head;
      return this.info();
    } finally {
      release();
    }
  }

  /** @throws AdkvcError session_not_found */
  info(): SessionInfo {
    const head = this.#existing();
    return {
      id: head.id,
      title: titleOf(head.log),
      model: head.engine?.model ?? '',
      createdAt: head.createdAt,
      lastUsedAt: head.lastUsedAt,
      expiresAt: expiresAt(head),
      turns: head.log.messages.filter(({ role }) => role === 'assistant').length,
      tokens: head.log.ids.length,
      cacheConfig: head.cacheConfig,
      cache: head.report,
      storedBytes: this.#store.size().bytes,
      ...(head.foreign && { foreign: head.foreign }),
    };
  }

  /** @throws AdkvcError session_not_found */
  messages(): SaidMessage[] {
    return this.#existing().log.messages.map(({ role, content, made, withdrawn }) => ({
      role,
      content,
      ...(made && { made }),
      ...(withdrawn && { withdrawn }),
    }));
  }

  /** @throws AdkvcError session_not_found, session_busy; InvalidInputError message */
  async unsay(count: number): Promise<void> {
    const release = await this.#lock.acquire();
    try {
      const head = this.#existing();
      // An export pins rows that are to go.
      if (this.#exports.size > 0) throw exporting(this.#exports.size, 1);
      this.forget();
      this.#head = undefined;
      this.#head = unsay(this.#store, head, count);
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
    const head = this.#existing();
    if (this.#exports.size >= MAX_EXPORTS_PER_SESSION)
      throw exporting(this.#exports.size, MAX_EXPORTS_PER_SESSION);
    const shot = snapshot(this.#store, head, messages);
    this.#exports.add(shot);
    const end = () => this.#exports.delete(shot);
    const chunks = exportChunks(this.#store, shot);
    // Pulled by the reader: a row is read when it can be sent.
    const stream = new ReadableStream<Uint8Array>(
      {
        pull(controller) {
          try {
            const { done, value } = chunks.next();
            if (!done) return controller.enqueue(value);
            end();
            controller.close();
          } catch (error) {
            end();
            controller.error(error);
          }
        },
        cancel() {
          end();
        },
      },
      { highWaterMark: 0 },
    );
    return { bytes: shot.bytes, stream };
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
        if (this.#readHead()) throw exists(id);
        await this.#clearUnfinished();
        await this.#alarm.set(this.#now() + IMPORT_TIMEOUT_MS);
        try {
          await this.#take(id, options, engine, file);
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

  async #take(id: string, options: ImportOptions, engine: Engine, file: ByteReader): Promise<void> {
    const store = this.#store;
    const putRow = (row: number, bytes: Uint8Array): void => store.transaction(() => store.put(row, bytes));
    const imported = await readExport(file, engine, putRow, options.foreignNumerics);
    engine.worstCaseBytes(imported.cacheConfig, 1); // refuses a configuration that no cache could have
    const head = store.transaction(() => {
      const made = adopted(id, this.#now(), options, imported, store);
      writeHead(store, made);
      return made;
    });
    await this.#list(head);
    await store.sync();
    this.#head = head;
    await this.#alarm.clear();
    await armExpiry(this.#alarm, head);
  }

  /** Ends the running turn, then deletes every byte. @throws AdkvcError session_not_found */
  async delete(): Promise<void> {
    if (!this.busy && this.#store.ids().length === 0) throw notFound();
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

  /** Called by the host when the alarm fires. */
  async expire(): Promise<void> {
    const step = onAlarm(this.#peekHead(), this.busy, this.#now());
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
      this.#running = undefined;
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
    const isNew = this.#head === undefined;
    const identity = identityOf(engine);
    const sameModel = head.engine?.fingerprint === identity.fingerprint;
    const prompt = joinPrompt(engine, head.log, request, sameModel);
    const tokens = Math.min(prompt.ids.length + request.maxTokens, engine.positionLimit(head.cacheConfig));
    const bytes = this.#checkFits(engine, head.cacheConfig, prompt.ids.length, tokens);
    if (signal.aborted) throw new AbortedError();

    if (isNew) await this.#list(head);
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
      pinned: () => [...this.#exports].flatMap(({ stored }) => stored),
      deleted: () => signal.reason === DELETED,
      committed: async (next) => {
        this.#head = next;
        this.#damage = undefined;
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
        this.#head = undefined;
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
      const head = this.#readHead();
      if (head && isExpired(head, this.#now())) {
        await this.#destroy();
        return { head: fresh(), damage: undefined };
      }
      if (!head) await this.#clearUnfinished();
      return { head: head ?? fresh(), damage: this.#damage };
    } catch (error) {
      // Nothing tells what was said before, unless the request does.
      if (!(error instanceof CorruptDataError) || request.mode === 'append') throw error;
      return { head: fresh(), damage: error.message };
    }
  }

  /** The bytes to be admitted by. @throws ContextLengthError naming the tokens that would fit */
  #checkFits(engine: Engine, config: CacheConfig, promptTokens: number, tokens: number): number {
    const limit = engine.positionLimit(config);
    if (promptTokens >= limit)
      throw new ContextLengthError(
        `messages take ${promptTokens} tokens, ${limit - 1} fit before an answer: shorten them or start a new session`,
        { tokens: promptTokens, limit: limit - 1 },
      );
    const bytes = engine.worstCaseBytes(config, tokens);
    const capacity = this.#services.scheduler.capacity(engine);
    if (bytes <= capacity) return bytes;
    let low = 0;
    for (let high = tokens; low < high; ) {
      const middle = Math.ceil((low + high) / 2);
      if (engine.worstCaseBytes(config, middle) <= capacity) low = middle;
      else high = middle - 1;
    }
    throw new ContextLengthError(
      `${tokens} tokens (messages and max_tokens) need ${bytes} bytes under policy ${config.policy}, ${capacity} are there: at most ${low} tokens fit`,
      { tokens, limit: low },
    );
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

  #existing(): Head {
    const head = this.#readHead();
    if (!head || (isExpired(head, this.#now()) && !this.busy)) throw notFound();
    return head;
  }

  #readHead(): Head | undefined {
    if (this.#head) return this.#head;
    const reading = readHead(this.#store);
    this.#head = reading?.head;
    this.#damage = reading?.damage;
    return this.#head;
  }

  /** Rows without a head are of an import that was cut off. */
  async #clearUnfinished(): Promise<void> {
    if (this.#store.ids().length > 0) await this.#destroy();
  }

  /** 'damaged': there are rows, and nothing can be told about them. */
  #peekHead(): Head | 'damaged' | undefined {
    try {
      return this.#readHead() ?? (this.#store.ids().length > 0 ? 'damaged' : undefined);
    } catch (error) {
      if (error instanceof CorruptDataError) return 'damaged';
      throw error;
    }
  }

  #peekListing(): Listing | undefined {
    const head = this.#peekHead();
    return head === 'damaged' ? undefined : head?.listing;
  }

  async #destroy(): Promise<void> {
    this.forget();
    this.#services.scheduler.leave(this);
    const listing = this.#peekListing();
    this.#head = undefined;
    this.#damage = undefined;
    await this.#alarm.clear();
    await this.#store.destroy();
    if (listing) await this.#services.directories?.remove(listing.directory, listing.key);
  }
}

const notFound = (message = 'no such session') =>
  new AdkvcError('session_not_found', message, { param: 'session_id' });

const exporting = (running: number, limit: number) =>
  new AdkvcError(
    'session_busy',
    `${running} exports of this session run already (MAX_EXPORTS_PER_SESSION); try again in ${RETRY_AFTER_SECONDS} s`,
    { data: { retryAfter: RETRY_AFTER_SECONDS, limit } },
  );

const exists = (id: string) =>
  new AdkvcError('session_exists', `session ${id} exists already`, { param: 'id' });

const isExpired = (head: Head, now: number): boolean => {
  const at = expiresAt(head);
  return at !== null && now >= at;
};

const identityOf = (engine: Engine): EngineIdentity => ({
  model: engine.model.name,
  fingerprint: engine.fingerprint,
  numerics: engine.numerics,
  layoutVersion: LAYOUT_VERSION,
});

function newHead(
  id: string,
  now: number,
  options: {
    cache?: Partial<CacheConfig>;
    cacheBytes?: number;
    ttlSeconds?: number;
    implicit: boolean;
    engine: Engine;
    listing?: Listing;
  },
): Head {
  return {
    id,
    createdAt: now,
    lastUsedAt: now,
    ttlSeconds: options.ttlSeconds ?? null,
    implicit: options.implicit,
    ...(options.listing && { listing: options.listing }),
    cacheConfig: completeConfig(options.cache, options.cacheBytes),
    report: null,
    engine: identityOf(options.engine),
    log: EMPTY_LOG,
    states: [],
  };
}

/** Within the transaction that writes the head: the state record gets its rows beside those that it names. */
function adopted(
  id: string,
  now: number,
  options: ImportOptions,
  imported: Imported,
  store: SessionStore,
): Head {
  const { state, ttlSeconds, ...rest } = imported;
  const base = {
    ...rest,
    id,
    createdAt: now,
    lastUsedAt: now,
    ttlSeconds: options.ttlSeconds ?? ttlSeconds,
    implicit: false,
    ...(options.listing && { listing: options.listing }),
  };
  if (!state) return { ...base, states: [] };
  const existing = store.ids();
  const rows = new RowStream(
    store,
    new RowAllocator(existing, new Set(existing), FIRST_FREE_ROW),
    RowKind.state,
  );
  rows.push(encodeState(state));
  return { ...base, states: [{ refs: rows.end(), position: state.header.position }] };
}
