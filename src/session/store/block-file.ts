import { AdkvcError, CorruptDataError } from '../../core/errors.ts';
import { checksum } from '../checksum.ts';
import { type SessionStore, type StoreCounters, TransactionGuard } from './session-store.ts';

/** A file that is read and written at once, as FileSystemSyncAccessHandle is (https://fs.spec.whatwg.org/#api-filesystemsyncaccesshandle). */
export interface SyncFile {
  /** @returns bytes read: fewer at the file's end */
  read(into: Uint8Array<ArrayBuffer>, options: { at: number }): number;
  /** @returns bytes written. @throws DOMException QuotaExceededError */
  write(from: Uint8Array<ArrayBuffer>, options: { at: number }): number;
  truncate(size: number): void;
  getSize(): number;
  /** Returns when all that was written is durable. */
  flush(): void;
  close(): void;
}

/** Where the file of a store comes from: it is taken when something is written, never by a read. */
export interface SyncFiles {
  /** The file with this name, if there is one. */
  find(name: string): SyncFile | undefined;
  /** A file that holds nothing. @throws AdkvcError where none can be had at once */
  take(name: string): SyncFile;
  /** Resolves when files can be taken again; after a commit, and so often. */
  ready(): Promise<void>;
  /** The file, emptied, is nobody's any more. */
  give(name: string, file: SyncFile): void;
}

/*
 * The file:
 *   0, 512       two heads, written in turn: magic, generation, where the index lies, its bytes and checksum, and a checksum of their own
 *   1,024 ...    extents of whole blocks: rows, and the index (name; id, place and bytes of each row)
 * A row is never overwritten in place. A commit writes rows and index into blocks that no durable index names, flushes, then writes the head:
 * whenever the machine stops, the newest head whose index is whole names a whole state.
 */
const BLOCK = 512;
const DATA = 2 * BLOCK;
const MAGIC = 0x31534b41; // "AKS1"
const HEAD_BYTES = 36;
const ENTRY_BYTES = 24;

interface Extent {
  readonly at: number;
  readonly bytes: number;
}
interface Index {
  readonly name: string;
  readonly generation: number;
  readonly rows: Map<number, Extent>;
  /** Of the index itself. */
  readonly extent: Extent;
}

const blocks = (bytes: number): number => Math.ceil(bytes / BLOCK) * BLOCK;
const NOWHERE: Extent = { at: DATA, bytes: 0 };

/** Reads a file's newest whole state; undefined: it holds none. */
export function readIndex(file: SyncFile): Index | undefined {
  const heads = [0, 1].map((slot) => readHead(file, slot)).filter((head) => head !== undefined);
  heads.sort((a, b) => b.generation - a.generation);
  for (const { generation, extent, sum } of heads) {
    const bytes = new Uint8Array(extent.bytes);
    if (file.read(bytes, { at: extent.at }) !== bytes.byteLength || checksum(bytes) !== sum) continue;
    return { generation, extent, ...parseIndex(bytes) };
  }
  return undefined;
}

function readHead(file: SyncFile, slot: number) {
  const bytes = new Uint8Array(HEAD_BYTES);
  if (file.read(bytes, { at: slot * BLOCK }) !== HEAD_BYTES) return undefined;
  const view = new DataView(bytes.buffer);
  const whole = view.getUint32(HEAD_BYTES - 4, true) === checksum(bytes.subarray(0, HEAD_BYTES - 4));
  if (view.getUint32(0, true) !== MAGIC || !whole) return undefined;
  return {
    generation: view.getFloat64(8, true),
    extent: { at: view.getFloat64(16, true), bytes: view.getUint32(24, true) },
    sum: view.getUint32(28, true),
  };
}

function writeHead(file: SyncFile, generation: number, extent: Extent, sum: number): void {
  const bytes = new Uint8Array(HEAD_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, MAGIC, true);
  view.setFloat64(8, generation, true);
  view.setFloat64(16, extent.at, true);
  view.setUint32(24, extent.bytes, true);
  view.setUint32(28, sum, true);
  view.setUint32(HEAD_BYTES - 4, checksum(bytes.subarray(0, HEAD_BYTES - 4)), true);
  writeAll(file, bytes, (generation % 2) * BLOCK);
}

function indexBytes(name: string, rows: ReadonlyMap<number, Extent>): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(name);
  const begin = 8 + blocks8(text.byteLength);
  const bytes = new Uint8Array(begin + rows.size * ENTRY_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, text.byteLength, true);
  view.setUint32(4, rows.size, true);
  bytes.set(text, 8);
  let to = begin;
  for (const [id, { at, bytes: length }] of rows) {
    view.setFloat64(to, id, true);
    view.setFloat64(to + 8, at, true);
    view.setUint32(to + 16, length, true);
    to += ENTRY_BYTES;
  }
  return bytes;
}
const blocks8 = (bytes: number): number => (bytes + 7) & ~7;

function parseIndex(bytes: Uint8Array): Pick<Index, 'name' | 'rows'> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = view.getUint32(0, true);
  const rows = new Map<number, Extent>();
  for (let i = 0, from = 8 + blocks8(length); i < view.getUint32(4, true); i++, from += ENTRY_BYTES)
    rows.set(view.getFloat64(from, true), {
      at: view.getFloat64(from + 8, true),
      bytes: view.getUint32(from + 16, true),
    });
  return { name: new TextDecoder().decode(bytes.subarray(8, 8 + length)), rows };
}

function writeAll(file: SyncFile, bytes: Uint8Array<ArrayBuffer>, at: number): void {
  let written = 0;
  try {
    written = file.write(bytes, { at });
  } catch (error) {
    if (!(error instanceof Error && error.name === 'QuotaExceededError')) throw error;
  }
  if (written !== bytes.byteLength)
    throw new AdkvcError(
      'storage_full',
      `${written} of ${bytes.byteLength} bytes could be written: the storage is full; delete conversations to make room`,
    );
}

/** A conversation in one file, for hosts that have files which are written at once: a browser's own file system (opfs.ts). */
export class BlockFileStore implements SessionStore {
  readonly counters: StoreCounters = { rowsRead: 0, rowsWritten: 0, bytesWritten: 0 };
  readonly #name: string;
  readonly #files: SyncFiles;
  readonly #guard = new TransactionGuard();
  #file: SyncFile | undefined;
  #generation = 0;
  #rows = new Map<number, Extent>();
  #index = NOWHERE;
  /** Blocks that no durable index names, first to last. */
  #free: Extent[] = [];
  #end = DATA;
  /** Blocks that the index before the newest names: free once the newest is durable. */
  #leaving: Extent[] = [];
  /** Within a transaction: what was written so far, and where. */
  #pending: Map<number, Extent> | undefined;
  #written: Extent[] = [];

  constructor(name: string, files: SyncFiles) {
    this.#name = name;
    this.#files = files;
    this.#open();
  }

  transaction<T>(fn: () => T): T {
    return this.#guard.run(() => {
      this.#pending = new Map(this.#rows);
      this.#written = [];
      try {
        const result = fn();
        if (result instanceof Promise)
          throw new Error('a transaction is synchronous: its function must not return a promise');
        this.#commit(this.#pending);
        return result;
      } catch (error) {
        // Nothing durable names these blocks.
        for (const extent of this.#written) this.#release(extent);
        throw error;
      } finally {
        this.#pending = undefined;
        this.#written = [];
      }
    });
  }

  get(id: number): Uint8Array | undefined {
    this.counters.rowsRead++;
    const extent = (this.#pending ?? this.#rows).get(id);
    if (!extent) return undefined;
    const bytes = new Uint8Array(extent.bytes);
    const read = this.#file!.read(bytes, { at: extent.at });
    if (read !== bytes.byteLength)
      throw new CorruptDataError(
        `row ${id} of ${this.#name} ends after ${read} of ${bytes.byteLength} bytes`,
      );
    return bytes;
  }

  put(id: number, bytes: Uint8Array): void {
    this.#guard.checkPut(id, bytes);
    this.#file ??= this.#files.take(this.#name);
    const extent = this.#allocate(bytes.byteLength);
    // A view of memory that others share or that grows cannot be written from.
    writeAll(this.#file, bytes.slice(), extent.at);
    this.#pending!.set(id, extent);
    this.counters.rowsWritten++;
    this.counters.bytesWritten += bytes.byteLength;
  }

  delete(ids: readonly number[]): void {
    this.#guard.checkOpen();
    for (const id of ids) if (this.#pending!.delete(id)) this.counters.rowsWritten++;
  }

  ids(): number[] {
    return [...(this.#pending ?? this.#rows).keys()].sort((a, b) => a - b);
  }

  size(): { rows: number; bytes: number } {
    let bytes = 0;
    for (const extent of this.#rows.values()) bytes += extent.bytes;
    return { rows: this.#rows.size, bytes };
  }

  async sync(): Promise<void> {
    if (this.#file) this.#flush();
    await this.#files.ready();
  }

  async destroy(): Promise<void> {
    if (this.#file) {
      // Emptied before it can be anybody else's: a name without rows would come back otherwise.
      this.#file.truncate(0);
      this.#file.flush();
      this.#files.give(this.#name, this.#file);
    }
    this.#file = undefined;
    this.#generation = 0;
    this.#rows = new Map();
    this.#index = NOWHERE;
    this.#free = [];
    this.#leaving = [];
    this.#end = DATA;
  }

  /** The file stays open: its owner is who opened it. */
  close(): void {
    if (this.#file) this.#flush();
  }

  #open(): void {
    const file = this.#files.find(this.#name);
    const index = file && readIndex(file);
    if (!file || !index) return;
    this.#file = file;
    this.#generation = index.generation;
    this.#rows = index.rows;
    this.#index = index.extent;
    const used = [...index.rows.values(), index.extent].sort((a, b) => a.at - b.at);
    for (const { at, bytes } of used) {
      if (at > this.#end) this.#free.push({ at: this.#end, bytes: at - this.#end });
      this.#end = Math.max(this.#end, at + blocks(bytes));
    }
  }

  #commit(rows: Map<number, Extent>): void {
    if (!this.#file) return;
    const bytes = indexBytes(this.#name, rows);
    const index = this.#allocate(bytes.byteLength);
    writeAll(this.#file, bytes, index.at);
    this.#flush();
    const written = this.#written;
    // A head that failed half-way may be there all the same: nobody else may have what it names.
    this.#written = [];
    writeHead(this.#file, this.#generation + 1, index, checksum(bytes));
    this.#generation++;
    // What this state no longer names, and what was written and replaced within the transaction.
    const kept = new Set(rows.values());
    for (const extent of [...this.#rows.values(), ...written])
      if (!kept.has(extent) && extent !== index) this.#leaving.push(extent);
    this.#leaving.push(this.#index);
    this.#rows = rows;
    this.#index = index;
  }

  /** Makes the newest head durable: what only the one before it named is free. */
  #flush(): void {
    this.#file!.flush();
    for (const extent of this.#leaving) this.#release(extent);
    this.#leaving = [];
    if (this.#pending === undefined && this.#file!.getSize() > this.#end) this.#file!.truncate(this.#end);
  }

  /** The first gap that is large enough, or the file's end. */
  #allocate(length: number): Extent {
    const bytes = blocks(length);
    const place = this.#free.findIndex((gap) => gap.bytes >= bytes);
    let at = this.#end;
    if (place < 0) this.#end += bytes;
    else {
      const gap = this.#free[place]!;
      at = gap.at;
      const rest = { at: at + bytes, bytes: gap.bytes - bytes };
      this.#free.splice(place, 1, ...(rest.bytes > 0 ? [rest] : []));
    }
    const extent = { at, bytes: length };
    this.#written.push(extent);
    return extent;
  }

  /** Gaps are kept in order, and those that touch are one. */
  #release({ at, bytes: length }: Extent): void {
    let gap = { at, bytes: blocks(length) };
    if (gap.bytes === 0) return;
    let place = this.#free.findIndex((other) => other.at > at);
    if (place < 0) place = this.#free.length;
    const next = this.#free[place];
    if (next && gap.at + gap.bytes === next.at) {
      gap = { at: gap.at, bytes: gap.bytes + next.bytes };
      this.#free.splice(place, 1);
    }
    const before = this.#free[place - 1];
    if (before && before.at + before.bytes === gap.at) {
      gap = { at: before.at, bytes: before.bytes + gap.bytes };
      this.#free.splice(--place, 1);
    }
    if (gap.at + gap.bytes === this.#end) this.#end = gap.at;
    else this.#free.splice(place, 0, gap);
  }
}
