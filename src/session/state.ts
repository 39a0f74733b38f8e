import type { CacheHeader } from '../cache/persist.ts';
import { CorruptDataError } from '../core/errors.ts';
import { release } from '../core/release.ts';
import { RowKind, type RowRef, readBlob } from './row.ts';
import type { SessionStore } from './store/session-store.ts';

/** Of a state and of all that it names. Another version is passed over: the log leads to the same cache. */
export const STATE_VERSION = 2;

/**
 * Blocks stored together, in one row unless a single block is larger. Blocks count segment by segment, in each layer by layer: a cache holds the first
 * so many of them, and extents divide these without a gap. Its bytes start with a directory. Never changed once written.
 */
export interface Extent {
  readonly refs: readonly RowRef[];
  /** The cache's position when it was written: plans up to here are in its bytes. */
  readonly written: number;
  readonly first: number;
  readonly count: number;
}

/**
 * Exact tokens at positions [from, to) of all layers, stored once: u32 first position of each layer (later than `from` where its tokens were
 * compressed already), then layer by layer the planes of these tokens.
 */
export interface ExactPiece {
  readonly refs: readonly RowRef[];
  readonly from: number;
  readonly to: number;
}

/** Plans, as bytes that the cache made, applied at `positions`. */
export interface JournalPack {
  readonly refs: readonly RowRef[];
  readonly positions: readonly number[];
}

/** A whole state of the cache, as the rows that hold it. Rows are shared between states: copy on write. */
export interface StateRecord {
  readonly version: typeof STATE_VERSION;
  readonly header: CacheHeader;
  /** All layers' hot parts one after the other, without their exact tokens, and the bytes of each. */
  readonly hot: { readonly refs: readonly RowRef[]; readonly sizes: readonly number[] };
  readonly exact: {
    readonly stride: number;
    readonly planes: number;
    readonly pinned: number;
    /** Ascending. */
    readonly pieces: readonly ExactPiece[];
  };
  readonly extents: readonly Extent[];
  readonly journal: readonly JournalPack[];
}

/** A state as the head names it. */
export interface StateEntry {
  readonly refs: readonly RowRef[];
  readonly position: number;
}

export const encodeState = (record: StateRecord): Uint8Array =>
  new TextEncoder().encode(JSON.stringify(record));

/** @throws CorruptDataError */
export function readState(store: SessionStore, entry: StateEntry): StateRecord {
  const bytes = readBlob(store, entry.refs, RowKind.state);
  let record: StateRecord;
  try {
    record = JSON.parse(new TextDecoder().decode(bytes)) as StateRecord;
  } catch (cause) {
    throw new CorruptDataError(`the state at position ${entry.position} cannot be read: ${String(cause)}`);
  }
  if (record.version !== STATE_VERSION)
    throw new CorruptDataError(
      `the state at position ${entry.position} has version ${record.version ?? 1}, this is version ${STATE_VERSION}`,
    );
  return record;
}

/** Every row that the record refers to, its own rows not included. */
export function* refsOf(record: StateRecord): Generator<RowRef> {
  yield* record.hot.refs;
  for (const piece of record.exact.pieces) yield* piece.refs;
  for (const extent of record.extents) yield* extent.refs;
  for (const pack of record.journal) yield* pack.refs;
}

/** An extent's directory: u32 blocks; then for each u32 layer, segment, version, bytes; then the blocks, each padded to 4. */
export const directoryBytes = (blocks: number): number => 4 + 16 * blocks;
export const padded = (bytes: number): number => (bytes + 3) & ~3;

export interface BlockEntry {
  readonly layer: number;
  readonly segment: number;
  readonly version: number;
  readonly bytes: number;
}

export function encodeDirectory(blocks: readonly BlockEntry[]): Uint8Array {
  const words = new Uint32Array(1 + 4 * blocks.length);
  words[0] = blocks.length;
  for (const [i, block] of blocks.entries())
    words.set([block.layer, block.segment, block.version, block.bytes], 1 + 4 * i);
  return new Uint8Array(words.buffer);
}

/** An extent that was read: finds its blocks. */
export class ExtentReader {
  #bytes: Uint8Array;
  #at = new Map<number, { version: number; offset: number; bytes: number }>();

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const count = view.getUint32(0, true);
    let offset = directoryBytes(count);
    for (let i = 0; i < count; i++) {
      const at = 4 + 16 * i;
      const entry = { version: view.getUint32(at + 8, true), offset, bytes: view.getUint32(at + 12, true) };
      this.#at.set(keyOf(view.getUint32(at, true), view.getUint32(at + 4, true)), entry);
      offset += padded(entry.bytes);
    }
  }

  /** A view, for whoever copies it at once. @throws CorruptDataError when the extent does not hold the block */
  block(layer: number, segment: number): { version: number; bytes: Uint8Array } {
    const entry = this.#at.get(keyOf(layer, segment));
    if (!entry) throw new CorruptDataError(`no stored block of layer ${layer}, segment ${segment}`);
    return { version: entry.version, bytes: this.#bytes.subarray(entry.offset, entry.offset + entry.bytes) };
  }

  /** Gives the extent's bytes back. */
  release(): void {
    release(this.#bytes);
  }
}

const keyOf = (layer: number, segment: number): number => segment * 65536 + layer;

/** Every row that a state needs, its own included; read once. */
export class StateRows {
  readonly #known = new WeakMap<StateEntry, readonly RowRef[]>();

  /** Undefined for a state that is damaged: it is of no use, and its rows are given up. */
  of(store: SessionStore, entry: StateEntry): readonly RowRef[] | undefined {
    const known = this.#known.get(entry);
    if (known) return known;
    try {
      const refs = [...entry.refs, ...refsOf(readState(store, entry))];
      this.#known.set(entry, refs);
      return refs;
    } catch {
      return undefined;
    }
  }
}
