import { EPOCH } from '../core/config.ts';
import { AbortedError } from '../core/errors.ts';
import { JsonConstraint } from '../engine/constraint.ts';
import { shapeOf } from '../engine/json/schema.ts';
import type { Engine, GenerateEvent, Tokenizer } from '../engine/types.ts';
import type { TurnEvent, TurnRequest } from './api.ts';
import { commit } from './commit.ts';
import { answerKey, storedAnswer } from './continue-answer.ts';
import { type EngineIdentity, type Head, headWithin } from './head.ts';
import { CHECKPOINT_POSITIONS } from './limits.ts';
import { answered, type MadeAnswer, openings, type Prompt } from './log.ts';
import { type Residence, restoreNewest } from './recover.ts';
import type { Lease } from './scheduler.ts';
import type { Generate } from './services.ts';
import { spill, spillable } from './spill.ts';
import { refsOf, type StateRecord, type StateRows } from './state.ts';
import type { SessionStore } from './store/session-store.ts';

export interface TurnSetup {
  readonly engine: Engine;
  readonly identity: EngineIdentity;
  readonly generate: Generate;
  readonly store: SessionStore;
  readonly lease: Lease;
  /** What came before the turn could start. */
  readonly before: { readonly loadMs: number; readonly waitMs: number };
  readonly now: () => number;
  /** As stored, or new. */
  readonly head: Head;
  /** What was wrong with a copy of the head. */
  readonly damage: string | undefined;
  readonly prompt: Prompt;
  /** The resident cache, standing at head.log.fed. The turn takes it over. */
  readonly residence: Residence | undefined;
  readonly request: TurnRequest;
  readonly signal: AbortSignal;
  /** Rows that an export reads. */
  readonly pinned: () => Iterable<number>;
  /** Which rows older states need. */
  readonly known: StateRows;
  /** Nothing may be written any more. */
  readonly deleted: () => boolean;
  /** Told after each commit, which is durable then. */
  readonly committed: (head: Head) => Promise<void>;
  readonly emit: (event: TurnEvent) => void;
}

/**
 * Tasks in which nothing is computed after an answer's first token, so that it leaves at once: the streams between here and the client pass a piece on in a
 * task each, and in workerd all of them run on the thread that computes.
 */
const FIRST_TOKEN_HOPS = 4;

type Recovered = { reason: string; from: number; replayed: number };

/** One turn from its prompt to its last commit. Made for one use. */
export class Turn {
  /** The cache as the turn leaves it. */
  residence: Residence | undefined;
  /** The cache equals what is stored. */
  clean = false;
  readonly #setup: TurnSetup;
  #head: Head;
  /** What generation starts from: the prompt, and what is stored of its answer. */
  readonly #ids: readonly number[];
  readonly #answer: number[];
  /** Leading ids that are the log's. */
  readonly #shared: number;
  #content = '';
  #recovered: Recovered | undefined;
  #written = { rows: 0, bytes: 0 };
  /** What the newest commit that the cache goes on from holds: its rows are read until the next one is durable. */
  #committed: StateRecord | undefined;
  /** Rows written since. */
  #spilled = 0;
  #timing = { loadMs: 0, waitMs: 0, prefillMs: 0, decodeMs: 0, restoreMs: 0, commitMs: 0 };
  #committedAt = 0;
  #complete = false;

  constructor(setup: TurnSetup) {
    this.#setup = setup;
    this.#head = setup.head;
    this.residence = setup.residence;
    Object.assign(this.#timing, setup.before);
    const { head, prompt, request, engine } = setup;
    this.#answer = storedAnswer(head.log, prompt, request, engine);
    this.#ids = [...prompt.ids, ...this.#answer];
    // A stored answer is the log's to its end.
    this.#shared = this.#answer.length > 0 ? this.#ids.length : prompt.shared;
  }

  /** @throws AbortedError after the partial answer was committed */
  async run(): Promise<void> {
    const { engine, prompt, request, signal, lease, emit, now } = this.#setup;
    this.#reach();
    this.#committed = this.residence!.stored;
    const cache = () => this.residence!.cache;
    const cachedTokens = Math.min(cache().position, prompt.ids.length);
    this.#committedAt = cache().position;
    emit({ type: 'started', promptTokens: prompt.ids.length, cachedTokens });

    const text = engine.tokenizer.stream();
    for (const id of this.#answer) {
      const piece = text.push(id);
      this.#content += piece;
      emit({ type: 'token', id, text: piece });
    }

    let mark = now();
    let sampled = 0;
    let finish: { reason: 'stop' | 'length'; text: string } | undefined;
    try {
      const events = this.#setup.generate(engine, cache(), this.#ids, {
        sampling: request.sampling,
        stop: request.stop,
        maxTokens: request.maxTokens - this.#answer.length,
        constraint: this.#constraint(),
        current: cache,
        signal,
        yield: lease.yield,
      });
      for await (const event of events) {
        if (event.type === 'prefill') {
          emit(event);
          if (this.#checkpointDue(cache().position)) await this.#commit();
        } else if (event.type === 'token') {
          if (sampled++ === 0) {
            this.#timing.prefillMs = now() - mark;
            mark = now();
          }
          this.#answer.push(event.id);
          this.#content += event.text;
          emit(this.#tokenEvent(event));
          if (sampled === 1) for (let hop = 0; hop < FIRST_TOKEN_HOPS; hop++) await lease.yield();
          if (cache().position - this.#committedAt >= CHECKPOINT_POSITIONS) await this.#commit();
          else this.#spill();
        } else {
          finish = event;
          this.#complete = true;
          this.#content += event.text;
        }
        if (signal.aborted && !finish) break;
        if (!finish && lease.due && request.store) mark += await this.#handOver();
      }
    } catch (error) {
      // Only an abort leaves the cache whole.
      if (!(error instanceof AbortedError && signal.aborted)) {
        this.clean = false;
        throw error;
      }
    }
    this.#timing.decodeMs = now() - mark;
    // Aborted while it had handed over: all of it is stored.
    if (!this.residence) throw ended();
    await this.#commit(
      finish && request.note !== undefined
        ? {
            reason: finish.reason,
            promptTokens: prompt.ids.length,
            completionTokens: this.#answer.length,
            cachedTokens,
            at: now(),
            note: request.note,
          }
        : undefined,
    );
    if (!finish) throw ended();
    emit({
      type: 'finished',
      reason: finish.reason,
      text: finish.text,
      usage: {
        promptTokens: prompt.ids.length,
        completionTokens: this.#answer.length,
        cachedTokens,
      },
      cache: cache().report(),
      ...(this.#recovered && { recovered: this.#recovered }),
      timing: this.#timing,
      rows: { written: this.#written.rows, bytes: this.#written.bytes },
    });
  }

  /** Nothing of it runs any more: its cache is freed. */
  abandon(): void {
    this.residence?.cache.dispose();
    this.residence = undefined;
  }

  #constraint(): JsonConstraint | undefined {
    const { engine, request } = this.#setup;
    if (!request.format) return undefined;
    const constraint = new JsonConstraint(shapeOf(request.format), engine.tokenizer, engine.eosIds);
    for (const id of this.#answer) constraint.accept(id);
    return constraint;
  }

  #tokenEvent(event: Extract<GenerateEvent, { type: 'token' }>): TurnEvent {
    const { id, text, logprob, top } = event;
    const { tokenizer } = this.#setup.engine;
    const own = logprob === undefined ? undefined : pieceOf(tokenizer, id);
    return {
      type: 'token',
      id,
      text,
      ...(own && { logprob, piece: own.text, ...(own.bytes && { bytes: own.bytes }) }),
      ...(top && { top: top.map((one) => ({ ...one, ...pieceOf(tokenizer, one.id) })) }),
    };
  }

  /** Brings the cache to the newest position from which the prompt can be fed: at least its last token must be. */
  #reach(): void {
    const { engine, identity, store, head, now } = this.#setup;
    const last = this.#ids.length - 1;
    const foreign = head.log.fed > 0 ? difference(head.engine, identity) : undefined;
    const target = Math.min(this.#shared, last);
    const reusable = Math.min(head.log.fed, foreign ? last : target);
    const reasons: string[] = [];
    if (this.#setup.damage) reasons.push(`damaged: ${this.#setup.damage}`);
    if (foreign) reasons.push(foreign);
    else if (head.log.fed > target) reasons.push('cut: the conversation goes on from an earlier place');

    if (!this.residence || foreign || head.log.fed > target) {
      const start = now();
      this.residence?.cache.dispose();
      this.residence = undefined;
      if (!foreign) {
        const restored = restoreNewest(store, engine, head.states, target);
        reasons.push(...restored.passedOver.map((why) => `damaged: ${why}`));
        this.residence = restored.residence;
      }
      this.residence ??= { cache: engine.createCache(head.cacheConfig), stored: undefined };
      this.#timing.restoreMs = now() - start;
    }
    const from = this.residence.cache.position;
    if (reasons.length === 0 && from < reusable) reasons.push('missing: no stored state stands there');
    if (reasons.length > 0)
      this.#recovered = { reason: reasons.join('; '), from, replayed: Math.max(0, reusable - from) };
  }

  /**
   * Stores the cache, lets those who wait have its memory, and goes on with an equal one from the store.
   * @returns how long it took, ms
   */
  async #handOver(): Promise<number> {
    const { engine, store, lease, signal, now, prompt } = this.#setup;
    const start = now();
    await this.#commit();
    if (!this.clean) return now() - start;
    const { cache } = this.residence!;
    const { position } = cache;
    cache.dispose();
    this.residence = undefined;
    await lease.handOver(signal);
    const back = now();
    const { residence, passedOver } = restoreNewest(store, engine, this.#head.states, position);
    this.residence = residence ?? {
      cache: engine.createCache(this.#head.cacheConfig),
      stored: undefined,
    };
    this.#committed = this.residence.stored;
    const from = this.residence.cache.position;
    if (from < position) {
      this.#recovered = { reason: passedOver.join('; '), from, replayed: position - from };
      const missing = [...prompt.ids, ...this.#answer].slice(from, position);
      await engine.feed(this.residence.cache, missing, 'none', { signal, yield: lease.yield });
    }
    this.#timing.restoreMs += now() - back;
    this.#timing.waitMs += back - start;
    return now() - start;
  }

  /** During prefill, where the next event may be an epoch away. */
  #checkpointDue(position: number): boolean {
    const since = position - this.#committedAt;
    if (since + EPOCH > CHECKPOINT_POSITIONS) return true;
    return (
      since >= EPOCH &&
      openings(this.#setup.prompt.messages).some((end) => position <= end && end < position + EPOCH)
    );
  }

  /** Stores what the next commit then need not write. */
  #spill(): void {
    const { request, store, known, deleted, lease } = this.#setup;
    const { cache, stored } = this.residence!;
    const what = request.store && !deleted() ? spillable(cache, stored) : undefined;
    if (!stored || !what) return;
    lease.check();
    const result = spill(store, this.#head.states, cache, stored, what, this.#pinned(), known);
    this.residence = { cache, stored: result.stored };
    this.#spilled += result.rows;
    this.#written.rows += result.rows;
    this.#written.bytes += result.bytes;
  }

  *#pinned(): Generator<number> {
    yield* this.#setup.pinned();
    if (this.#committed) for (const [row] of refsOf(this.#committed)) yield row;
  }

  async #commit(made?: MadeAnswer): Promise<void> {
    const { request, prompt, identity, store, now } = this.#setup;
    if (this.#setup.deleted() || !request.store) {
      this.clean = false;
      return;
    }
    this.#setup.lease.check();
    const { cache, stored } = this.residence!;
    const start = now();
    const log = answered(
      prompt,
      this.#answer,
      this.#content,
      cache.position,
      this.#complete ? undefined : answerKey(request),
      made,
      request.idempotencyKey,
    );
    const sameEngine = !difference(this.#head.engine, identity);
    const next: Head = {
      ...headWithin(this.#head, prompt.shared),
      lastUsedAt: now(),
      report: cache.report(),
      engine: identity,
      log,
      // A state past the place where the prompt leaves the log belongs to what was cut.
      states: sameEngine
        ? this.#head.states.filter(
            ({ position }) => this.#head !== this.#setup.head || position <= prompt.shared,
          )
        : [],
    };
    this.clean = false;
    await cache.settle?.();
    const { known } = this.#setup;
    const result = commit(store, next, cache, stored, this.#pinned(), known, this.#spilled);
    this.#committed = result.stored;
    this.#spilled = 0;
    await store.sync();
    this.#setup.lease.check();
    this.#head = result.head;
    this.residence = { cache, stored: result.stored };
    this.clean = true;
    this.#committedAt = cache.position;
    this.#written.rows += result.rows;
    this.#written.bytes += result.bytes;
    await this.#setup.committed(result.head);
    this.#setup.lease.check();
    this.#timing.commitMs += now() - start;
  }
}

const whole = new TextDecoder('utf-8', { fatal: false, ignoreBOM: true });

/** A token by itself; its bytes are told where text cannot tell them. */
function pieceOf(tokenizer: Tokenizer, id: number): { text: string; bytes?: number[] } {
  const bytes = tokenizer.bytesOf(id);
  const text = whole.decode(bytes);
  return text.includes('\ufffd') ? { text, bytes: [...bytes] } : { text };
}

const ended = (): AbortedError =>
  new AbortedError('the turn was ended before its answer was complete; what was generated is kept');

/** Why states of one engine cannot be continued by another; undefined when they can. */
function difference(stored: EngineIdentity | null, engine: EngineIdentity): string | undefined {
  if (!stored) return undefined;
  if (stored.fingerprint !== engine.fingerprint)
    return `foreign: the stored state belongs to model ${stored.model} (${stored.fingerprint})`;
  if (stored.numerics !== engine.numerics)
    return `foreign: the stored state was computed by ${stored.numerics}, this is ${engine.numerics}`;
  if (stored.layoutVersion !== engine.layoutVersion)
    return `outdated: the stored layout has version ${stored.layoutVersion}`;
  return undefined;
}
