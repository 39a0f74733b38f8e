import { CorruptDataError } from '../core/errors.ts';
import { release } from '../core/release.ts';
import { checksum } from './checksum.ts';
import { MAX_ROW_BYTES, type SessionStore } from './store/session-store.ts';

/**
 * The frame around every stored row: u32 magic 'ADKV', u8 format version, u8 kind, u16 zero, u32 checksum of the
 * payload, u32 payload bytes; little-endian. A row is referred to by id *and* checksum, so that neither a damaged row nor a whole
 * row of another time passes for the one that was meant.
 */
export const FORMAT_VERSION = 1;
const MAGIC = 0x564b4441;
export const FRAME_BYTES = 16;
export const MAX_PAYLOAD_BYTES = MAX_ROW_BYTES - FRAME_BYTES;

/** What a row holds; the digit is stored. */
export const RowKind = { head: 1, state: 2, hot: 3, extent: 4, journal: 5, directory: 6, exact: 7 } as const;
export type RowKind = (typeof RowKind)[keyof typeof RowKind];

/** [row id, checksum, payload bytes] */
export type RowRef = readonly [row: number, check: number, bytes: number];

/** Writes `payload` framed; `row` has FRAME_BYTES of room in front of it, which are filled in. */
export function writeFramed(store: SessionStore, id: number, kind: RowKind, row: Uint8Array): RowRef {
  const payload = row.subarray(FRAME_BYTES);
  const check = checksum(payload, kind);
  const view = new DataView(row.buffer, row.byteOffset);
  view.setUint32(0, MAGIC, true);
  view.setUint8(4, FORMAT_VERSION);
  view.setUint8(5, kind);
  view.setUint16(6, 0, true);
  view.setUint32(8, check, true);
  view.setUint32(12, payload.byteLength, true);
  store.put(id, row);
  return [id, check, payload.byteLength];
}

/** The payload of a row. @throws CorruptDataError naming the row and what is wrong with it */
export function readRow(
  store: SessionStore,
  id: number,
  kind: RowKind,
): { payload: Uint8Array; check: number } {
  const row = store.get(id);
  if (!row) throw new CorruptDataError(`row ${id} is missing`, { row: id });
  return readFramed(row, id, kind);
}

/** The payload of a framed row that is at hand. @throws CorruptDataError naming it by `id` */
export function readFramed(
  row: Uint8Array,
  id: number,
  kind: RowKind,
): { payload: Uint8Array; check: number } {
  const wrong = (what: string) => new CorruptDataError(`row ${id} ${what}`, { row: id });
  if (row.byteLength < FRAME_BYTES) throw wrong('is shorter than its frame');
  const view = new DataView(row.buffer, row.byteOffset);
  if (view.getUint32(0, true) !== MAGIC) throw wrong('does not start with the format mark');
  if (view.getUint8(4) !== FORMAT_VERSION)
    throw wrong(`has format version ${view.getUint8(4)}, this is version ${FORMAT_VERSION}`);
  if (view.getUint8(5) !== kind || view.getUint16(6, true) !== 0) throw wrong('is of another kind');
  const payload = row.subarray(FRAME_BYTES);
  const check = view.getUint32(8, true);
  if (view.getUint32(12, true) !== payload.byteLength) throw wrong('has another length than written');
  if (checksum(payload, kind) !== check) throw wrong('fails its checksum');
  return { payload, check };
}

/** Reads the very row that was referred to. @throws CorruptDataError */
export function readRef(store: SessionStore, [id, check]: RowRef, kind: RowKind): Uint8Array {
  const row = readRow(store, id, kind);
  if (row.check !== check) throw new CorruptDataError(`row ${id} was overwritten by another`, { row: id });
  return row.payload;
}

/** Bytes of any length that were written in pieces. */
export function readBlob(store: SessionStore, refs: readonly RowRef[], kind: RowKind): Uint8Array {
  if (refs.length === 1) return readRef(store, refs[0]!, kind);
  const reader = new BlobReader(store, refs, kind);
  const whole = reader.read(0, reader.byteLength);
  reader.release();
  return whole;
}

/** Hands out row ids: first those that nothing refers to any more (an overwrite is billed as one row), then new ones. */
export class RowAllocator {
  readonly spare: number[];
  #next: number;

  /** @param first the lowest id that may be handed out */
  constructor(existing: readonly number[], used: ReadonlySet<number>, first: number) {
    this.spare = existing.filter((id) => id >= first && !used.has(id)).reverse();
    this.#next = Math.max(first, (existing.at(-1) ?? 0) + 1);
  }

  take(): number {
    return this.spare.pop() ?? this.#next++;
  }
}

/** Reads places of a blob, in about ascending order: the last row that was read is held. */
export class BlobReader {
  readonly byteLength: number;
  readonly #store: SessionStore;
  readonly #refs: readonly RowRef[];
  readonly #kind: RowKind;
  #row: { index: number; bytes: Uint8Array } | undefined;

  constructor(store: SessionStore, refs: readonly RowRef[], kind: RowKind) {
    this.#store = store;
    this.#refs = refs;
    this.#kind = kind;
    this.byteLength = refs.reduce((sum, ref) => sum + ref[2], 0);
  }

  /** The caller's own. @throws CorruptDataError when the blob ends before */
  read(at: number, count: number): Uint8Array {
    const out = new Uint8Array(count);
    this.readInto(at, out);
    return out;
  }

  /** Fills `out` from `at` on. @throws CorruptDataError when the blob ends before */
  readInto(at: number, out: Uint8Array): void {
    const count = out.byteLength;
    if (at + count > this.byteLength)
      throw new CorruptDataError(`${count} bytes at ${at} lie outside of ${this.byteLength}`);
    let done = 0;
    let skip = at;
    for (const [index, ref] of this.#refs.entries()) {
      if (done === count) break;
      if (skip >= ref[2]) {
        skip -= ref[2];
        continue;
      }
      if (this.#row?.index !== index) {
        this.release();
        this.#row = { index, bytes: readRef(this.#store, ref, this.#kind) };
      }
      const piece = this.#row.bytes.subarray(skip, skip + count - done);
      out.set(piece, done);
      done += piece.byteLength;
      skip = 0;
    }
  }

  /** Gives back the row that is held; whoever reads on reads it again. */
  release(): void {
    if (this.#row) release(this.#row.bytes);
    this.#row = undefined;
  }
}

/** Room for one row, which streams share one after the other. */
export class RowBuffer {
  readonly bytes = new Uint8Array(MAX_ROW_BYTES);
}

/** Writes a stream of bytes as rows of at most MAX_PAYLOAD_BYTES. One row's buffer at a time. */
export class RowStream {
  readonly refs: RowRef[] = [];
  #store: SessionStore;
  #rows: RowAllocator;
  #kind: RowKind;
  readonly #buffer: Uint8Array;
  #used = 0;

  /** @param buffer nobody else writes into it until `end` */
  constructor(store: SessionStore, rows: RowAllocator, kind: RowKind, buffer = new RowBuffer()) {
    this.#store = store;
    this.#rows = rows;
    this.#kind = kind;
    this.#buffer = buffer.bytes;
  }

  push(bytes: Uint8Array): void {
    for (let from = 0; from < bytes.byteLength; ) {
      const count = Math.min(bytes.byteLength - from, MAX_PAYLOAD_BYTES - this.#used);
      const part = count === bytes.byteLength ? bytes : bytes.subarray(from, from + count);
      this.#buffer.set(part, FRAME_BYTES + this.#used);
      this.#used += count;
      from += count;
      if (this.#used === MAX_PAYLOAD_BYTES) this.#flush();
    }
  }

  end(): RowRef[] {
    if (this.#used > 0) this.#flush();
    return this.refs;
  }

  #flush(): void {
    const row = this.#buffer.subarray(0, FRAME_BYTES + this.#used);
    this.refs.push(writeFramed(this.#store, this.#rows.take(), this.#kind, row));
    this.#used = 0;
  }
}
