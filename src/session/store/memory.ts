import { type SessionStore, type StoreCounters, TransactionGuard } from './session-store.ts';

/** Holds a conversation in the process's memory: for tests, and for a host that should leave nothing behind. */
export class MemoryStore implements SessionStore {
  readonly counters: StoreCounters = { rowsRead: 0, rowsWritten: 0, bytesWritten: 0 };
  #rows = new Map<number, Uint8Array>();
  #guard = new TransactionGuard();

  transaction<T>(fn: () => T): T {
    // Values are never changed in place, so a copy of the map is a snapshot.
    const before = new Map(this.#rows);
    try {
      return this.#guard.run(fn);
    } catch (error) {
      // A refused nested call must not undo its outer transaction's writes: only the outermost one restores.
      if (!this.#guard.open) this.#rows = before;
      throw error;
    }
  }

  get(id: number): Uint8Array | undefined {
    this.counters.rowsRead++;
    return this.#rows.get(id)?.slice();
  }

  put(id: number, bytes: Uint8Array): void {
    this.#guard.checkPut(id, bytes);
    this.#rows.set(id, bytes.slice());
    this.counters.rowsWritten++;
    this.counters.bytesWritten += bytes.byteLength;
  }

  delete(ids: readonly number[]): void {
    this.#guard.checkOpen();
    for (const id of ids) if (this.#rows.delete(id)) this.counters.rowsWritten++;
  }

  ids(): number[] {
    return [...this.#rows.keys()].sort((a, b) => a - b);
  }

  size(): { rows: number; bytes: number } {
    let bytes = 0;
    for (const row of this.#rows.values()) bytes += row.byteLength;
    return { rows: this.#rows.size, bytes };
  }

  async sync(): Promise<void> {}

  async destroy(): Promise<void> {
    this.#rows.clear();
  }

  close(): void {}
}
