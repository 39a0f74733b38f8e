import { type CacheStateReader, HOT_HEADER_BYTES, type PlanJournalEntry } from '../cache/persist.ts';
import { CorruptDataError } from '../core/errors.ts';
import type { Engine, EngineCache } from '../engine/types.ts';
import { decodeJournal } from './commit.ts';
import { ExactReader } from './exact-pieces.ts';
import { BlobReader, RowKind, readBlob } from './row.ts';
import { ExtentReader, readState, type StateEntry, type StateRecord } from './state.ts';
import type { SessionStore } from './store/session-store.ts';

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
  const state = new StoredState(store, stored);
  const cache = engine.restoreCache(state);
  state.release();
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
  readonly bytes: number;
  readonly #store: SessionStore;
  readonly #stored: StateRecord;
  readonly #exact: ExactReader;
  readonly #hot: BlobReader;
  /** The extent read last: blocks are asked for in the order in which they lie. */
  #extent: { index: number; reader: ExtentReader } | undefined;
  /** What `hot` returned last, one buffer for all layers. */
  #room = new Uint8Array(0);

  constructor(store: SessionStore, stored: StateRecord) {
    this.#store = store;
    this.#stored = stored;
    this.header = stored.header;
    this.journal = stored.journal
      .flatMap((pack) => decodeJournal(readBlob(store, pack.refs, RowKind.journal)))
      .sort((a, b) => a.position - b.position);
    const held = [stored.hot, ...stored.exact.pieces, ...stored.extents].flatMap(({ refs }) => refs);
    this.bytes = held.reduce((sum, [, , bytes]) => sum + bytes, 0);
    this.#exact = new ExactReader(store, stored);
    this.#hot = new BlobReader(store, stored.hot.refs, RowKind.hot);
  }

  hot(layer: number): Uint8Array {
    const { sizes } = this.#stored.hot;
    const size = sizes[layer];
    if (size === undefined || size < HOT_HEADER_BYTES)
      throw new CorruptDataError(`no stored hot part of layer ${layer}`);
    let at = 0;
    for (let below = 0; below < layer; below++) at += sizes[below]!;
    const header = this.#hot.read(at, HOT_HEADER_BYTES);
    const slots = new DataView(header.buffer).getUint32(0, true);
    const rest = HOT_HEADER_BYTES + this.#exact.bytesOf(layer, slots);
    const bytes = rest + size - HOT_HEADER_BYTES;
    if (this.#room.byteLength < bytes) this.#room = new Uint8Array(bytes);
    const out = this.#room.subarray(0, bytes);
    out.set(header);
    this.#exact.readInto(layer, slots, out.subarray(HOT_HEADER_BYTES, rest));
    this.#hot.readInto(at + HOT_HEADER_BYTES, out.subarray(rest));
    return out;
  }

  block(layer: number, segment: number): { version: number; bytes: Uint8Array } {
    const { extents, hot } = this.#stored;
    const at = segment * hot.sizes.length + layer;
    const holds = (index: number): boolean => {
      const extent = extents[index];
      return extent !== undefined && extent.first <= at && at < extent.first + extent.count;
    };
    let index = this.#extent?.index ?? 0;
    if (!holds(index)) index = holds(index + 1) ? index + 1 : extents.findIndex((_, i) => holds(i));
    if (index < 0) throw new CorruptDataError(`no stored block of layer ${layer}, segment ${segment}`);
    if (this.#extent?.index !== index) {
      this.#leaveExtent();
      const bytes = readBlob(this.#store, extents[index]!.refs, RowKind.extent);
      this.#extent = { index, reader: new ExtentReader(bytes) };
    }
    return this.#extent!.reader.block(layer, segment);
  }

  /** Gives back what is held of rows. */
  release(): void {
    this.#leaveExtent();
    this.#hot.release();
    this.#exact.release();
  }

  #leaveExtent(): void {
    this.#extent?.reader.release();
    this.#extent = undefined;
  }
}
