/** A Durable Object's value may hold 2,000,000 bytes; rows of 256 KiB are the fastest. https://developers.cloudflare.com/durable-objects/platform/limits/ */
export const MAX_ROW_BYTES = 256 * 1024;
/** Bound parameters of one statement. https://developers.cloudflare.com/durable-objects/platform/limits/ */
export const MAX_BOUND_PARAMETERS = 100;

/** What was done through a store object since it was made. */
export interface StoreCounters {
  rowsRead: number;
  /** Puts and deletes, as they are billed. */
  rowsWritten: number;
  bytesWritten: number;
}

/**
 * Where one conversation lives: numbered rows of bytes, nothing else, so that every host can hold it. Reads see the last
 * write, also within a transaction. Nothing is created by a read: a store that was never written to has no file and no table.
 *
 * @example
 * store.transaction(() => store.put(64, bytes));
 * await store.sync();
 */
export interface SessionStore {
  readonly counters: Readonly<StoreCounters>;
  /**
   * Runs `fn` atomically: all of its writes or, if it throws, none.
   * `fn` is synchronous; transactions do not nest.
   */
  transaction<T>(fn: () => T): T;
  /** The row's bytes, the caller's own, or undefined. */
  get(id: number): Uint8Array | undefined;
  /** Writes or overwrites a row; the bytes are copied. Only within a transaction. @throws RangeError above MAX_ROW_BYTES */
  put(id: number, bytes: Uint8Array): void;
  /** Ids that do not exist are ignored. Only within a transaction. */
  delete(ids: readonly number[]): void;
  /** All ids, ascending. */
  ids(): number[];
  /** Rows and payload bytes held. */
  size(): { rows: number; bytes: number };
  /** Resolves when everything committed before is durable. */
  sync(): Promise<void>;
  /** Deletes everything, its own files and tables included; the store can be written to again afterwards. */
  destroy(): Promise<void>;
  /** Releases handles; the bytes stay. */
  close(): void;
}

/** The checks that all implementations share. */
export class TransactionGuard {
  #open = false;

  get open(): boolean {
    return this.#open;
  }

  run<T>(body: () => T): T {
    if (this.#open) throw new Error('transactions do not nest');
    this.#open = true;
    try {
      const result = body();
      if (result instanceof Promise)
        throw new Error('a transaction is synchronous: its function must not return a promise');
      return result;
    } finally {
      this.#open = false;
    }
  }

  checkPut(id: number, bytes: Uint8Array): void {
    this.checkOpen();
    if (!Number.isSafeInteger(id) || id < 0) throw new RangeError(`row id ${id} is no integer from 0 on`);
    if (bytes.byteLength > MAX_ROW_BYTES)
      throw new RangeError(
        `row ${id} holds ${bytes.byteLength} bytes, ${MAX_ROW_BYTES} are allowed (MAX_ROW_BYTES)`,
      );
  }

  checkOpen(): void {
    if (!this.#open) throw new Error('rows are only written within a transaction');
  }
}

/** Which rows there are, asked once: the table's pages hold few of its large rows, and all of them would be looked through. */
export class KnownIds {
  #ids: Set<number> | undefined;

  /** Ascending. */
  list(read: () => number[]): number[] {
    this.#ids ??= new Set(read());
    return [...this.#ids].sort((a, b) => a - b);
  }
  add(id: number): void {
    this.#ids?.add(id);
  }
  delete(ids: readonly number[]): void {
    for (const id of ids) this.#ids?.delete(id);
  }
  /** The table may hold others now: a transaction failed, or all of it is gone. */
  forget(): void {
    this.#ids = undefined;
  }
}

export function* inBatches<T>(items: readonly T[], size = MAX_BOUND_PARAMETERS): Generator<T[]> {
  for (let i = 0; i < items.length; i += size) yield items.slice(i, i + size);
}
