import type { CacheStateReader, PlanJournalEntry } from '../cache/persist.ts';
import { CorruptDataError } from '../core/errors.ts';
import type { Engine, EngineCache } from '../engine/types.ts';
import { decodeJournal } from './commit.ts';
import { RowKind, readBlob, readRef } from './row.ts';
import { ExtentReader, readState, type StateEntry, type StateRecord } from './state.ts';
import type { SessionStore } from './store/session-store.ts';

/** Bytes of extents kept while a cache is restored: the newest segments of several layers lie in one extent. */
const EXTENT_BUFFER_BYTES = 4_000_000;

/** A cache and what of it is in the store. */
export interface Residence {
  readonly cache: EngineCache;
  readonly stored: StateRecord | undefined;
}

export interface Restored {
  /** Undefined: no state could be used, the log is fed from position 0. */
  readonly residence: Residence | undefined;
  /** Why newer states than the one used were passed over. */
  readonly passedOver: string[];
}

/**
 * The newest whole state at or before `target`. A state that is damaged or foreign is passed over: an older one and the log
 * lead to the same bytes.
 */
export function restoreNewest(
  store: SessionStore,
  engine: Engine,
  states: readonly StateEntry[],
  target: number,
): Restored {
  const passedOver: string[] = [];
  for (const entry of states.toReversed()) {
    if (entry.position > target) continue;
    try {
      const stored = readState(store, entry);
      return { residence: { cache: restore(store, engine, stored), stored }, passedOver };
    } catch (error) {
      if (!isDamage(error)) throw error;
      passedOver.push(error.message);
    }
  }
  return { residence: undefined, passedOver };
}

/** Bytes that make no sense are met as an error of a check, or of reading past their end. */
export const isDamage = (error: unknown): error is Error =>
  error instanceof CorruptDataError || error instanceof RangeError;

/** @throws CorruptDataError when a row is damaged or the state belongs to another model, numerics or layout */
export function restore(store: SessionStore, engine: Engine, stored: StateRecord): EngineCache {
  const cache = engine.restoreCache(new StoredState(store, stored));
  if (cache.position !== stored.header.position) {
    cache.dispose();
    throw new CorruptDataError(
      `a state of position ${stored.header.position} was restored at ${cache.position}`,
    );
  }
  // The journal that was replayed is in the store already.
  cache.clearJournal();
  return cache;
}

/** Reads a state row by row, in the order in which a cache asks for it, and never holds all of it. */
export class StoredState implements CacheStateReader {
  readonly header: StateRecord['header'];
  readonly journal: readonly PlanJournalEntry[];
  #store: SessionStore;
  #stored: StateRecord;
  #hotAt: number[] = [];
  #hotRow: { index: number; bytes: Uint8Array } | undefined;
  /** Extents in the order of their last use. */
  #extents = new Map<number, ExtentReader>();
  #held = 0;
  #placeOf = new Map<string, number>();

  constructor(store: SessionStore, stored: StateRecord) {
    this.#store = store;
    this.#stored = stored;
    this.header = stored.header;
    this.journal = stored.journal
      .flatMap((pack) => decodeJournal(readBlob(store, pack.refs, RowKind.journal)))
      .sort((a, b) => a.position - b.position);
    let at = 0;
    for (const size of stored.hot.sizes) {
      this.#hotAt.push(at);
      at += size;
    }
    stored.extents.forEach(({ runs }, index) => {
      for (const [layer, first, count] of runs)
        for (let segment = first; segment < first + count; segment++)
          this.#placeOf.set(`${layer},${segment}`, index);
    });
  }

  hot(layer: number): Uint8Array {
    const size = this.#stored.hot.sizes[layer];
    if (size === undefined) throw new CorruptDataError(`no stored hot part of layer ${layer}`);
    const out = new Uint8Array(size);
    let skip = this.#hotAt[layer]!;
    let done = 0;
    for (const [index, ref] of this.#stored.hot.refs.entries()) {
      if (done === size) break;
      if (skip >= ref[2]) {
        skip -= ref[2];
        continue;
      }
      // Neighbouring layers share a row: the last one read is kept.
      if (this.#hotRow?.index !== index)
        this.#hotRow = { index, bytes: readRef(this.#store, ref, RowKind.hot) };
      const piece = this.#hotRow.bytes.subarray(skip, skip + size - done);
      out.set(piece, done);
      done += piece.byteLength;
      skip = 0;
    }
    return out;
  }

  block(layer: number, segment: number): { version: number; bytes: Uint8Array } {
    const index = this.#placeOf.get(`${layer},${segment}`);
    if (index === undefined)
      throw new CorruptDataError(`no stored block of layer ${layer}, segment ${segment}`);
    return this.#extent(index).block(layer, segment);
  }

  #extent(index: number): ExtentReader {
    let extent = this.#extents.get(index);
    if (extent) this.#extents.delete(index);
    else {
      extent = new ExtentReader(readBlob(this.#store, this.#stored.extents[index]!.refs, RowKind.extent));
      this.#held += extent.byteLength;
    }
    this.#extents.set(index, extent);
    for (const [oldest, reader] of this.#extents) {
      if (this.#held <= EXTENT_BUFFER_BYTES || oldest === index) break;
      this.#extents.delete(oldest);
      this.#held -= reader.byteLength;
    }
    return extent;
  }
}
