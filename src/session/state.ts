import type { CacheHeader } from '../cache/persist.ts';
import { CorruptDataError } from '../core/errors.ts';
import { RowKind, type RowRef, readBlob } from './row.ts';
import type { SessionStore } from './store/session-store.ts';

/** One layer's blocks [first, first + count) that lie in an extent. */
export type Run = readonly [layer: number, first: number, count: number];

/**
 * Blocks stored together: one layer's run of segments after a rewrite, several layers' newest segments before. Its bytes start with
 * a directory. One row, unless a single block is larger than a row. Never changed once written.
 */
export interface Extent {
  readonly refs: readonly RowRef[];
  /** The cache's position when it was written: plans up to here are in its bytes. */
  readonly written: number;
  /** What is still in force; blocks that were rewritten elsewhere are no longer named. */
  readonly runs: readonly Run[];
}

/** Plans, as bytes that the cache made, applied at `positions`. */
export interface JournalPack {
  readonly refs: readonly RowRef[];
  readonly positions: readonly number[];
}

/** A whole state of the cache, as the rows that hold it. Rows are shared between states: copy on write. */
export interface StateRecord {
  readonly header: CacheHeader;
  /** All layers' hot parts one after the other, and the bytes of each. */
  readonly hot: { readonly refs: readonly RowRef[]; readonly sizes: readonly number[] };
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
  try {
    return JSON.parse(new TextDecoder().decode(bytes)) as StateRecord;
  } catch (cause) {
    throw new CorruptDataError(`the state at position ${entry.position} cannot be read: ${String(cause)}`);
  }
}

/** Every row that the record refers to, its own rows not included. */
export function* refsOf(record: StateRecord): Generator<RowRef> {
  yield* record.hot.refs;
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
  #at = new Map<string, { version: number; offset: number; bytes: number }>();

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const count = view.getUint32(0, true);
    let offset = directoryBytes(count);
    for (let i = 0; i < count; i++) {
      const at = 4 + 16 * i;
      const entry = { version: view.getUint32(at + 8, true), offset, bytes: view.getUint32(at + 12, true) };
      this.#at.set(`${view.getUint32(at, true)},${view.getUint32(at + 4, true)}`, entry);
      offset += padded(entry.bytes);
    }
  }

  get byteLength(): number {
    return this.#bytes.byteLength;
  }

  /** A view, for whoever copies it at once. @throws CorruptDataError when the extent does not hold the block */
  block(layer: number, segment: number): { version: number; bytes: Uint8Array } {
    const entry = this.#at.get(`${layer},${segment}`);
    if (!entry) throw new CorruptDataError(`no stored block of layer ${layer}, segment ${segment}`);
    return { version: entry.version, bytes: this.#bytes.subarray(entry.offset, entry.offset + entry.bytes) };
  }
}
