import {
  inBatches,
  KnownIds,
  type SessionStore,
  type StoreCounters,
  TransactionGuard,
} from './session-store.ts';

/** A conversation in its Durable Object's SQLite. The table is made by the first transaction, never by a read. */
export class DurableObjectStore implements SessionStore {
  readonly counters: StoreCounters = { rowsRead: 0, rowsWritten: 0, bytesWritten: 0 };
  #storage: DurableObjectStorage;
  #guard = new TransactionGuard();
  readonly #ids = new KnownIds();
  #hasTable: boolean;

  constructor(storage: DurableObjectStorage) {
    this.#storage = storage;
    this.#hasTable = this.#tableExists();
  }

  transaction<T>(fn: () => T): T {
    return this.#guard.run(() => {
      try {
        return this.#storage.transactionSync(() => {
          if (!this.#hasTable) {
            // An integer key is the row id itself: no index, so that one row is billed as one.
            this.#storage.sql.exec('CREATE TABLE rows (id INTEGER PRIMARY KEY, data BLOB NOT NULL)');
            this.#hasTable = true;
          }
          const result = fn();
          if (result instanceof Promise)
            throw new Error('a transaction is synchronous: its function must not return a promise');
          return result;
        });
      } catch (error) {
        this.#hasTable = this.#tableExists();
        this.#ids.forget();
        throw error;
      }
    });
  }

  get(id: number): Uint8Array | undefined {
    this.counters.rowsRead++;
    if (!this.#hasTable) return undefined;
    // toArray consumes the cursor before anything can be awaited.
    const [row] = this.#storage.sql
      .exec<{ data: ArrayBuffer }>('SELECT data FROM rows WHERE id = ?', id)
      .toArray();
    return row && new Uint8Array(row.data);
  }

  put(id: number, bytes: Uint8Array): void {
    this.#guard.checkPut(id, bytes);
    const cursor = this.#storage.sql.exec(
      'INSERT INTO rows (id, data) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET data = excluded.data',
      id,
      bytes,
    );
    this.#ids.add(id);
    this.counters.rowsWritten += cursor.rowsWritten;
    this.counters.bytesWritten += bytes.byteLength;
  }

  delete(ids: readonly number[]): void {
    this.#guard.checkOpen();
    this.#ids.delete(ids);
    for (const batch of inBatches(ids)) {
      const places = batch.map(() => '?').join(',');
      const cursor = this.#storage.sql.exec(`DELETE FROM rows WHERE id IN (${places})`, ...batch);
      this.counters.rowsWritten += cursor.rowsWritten;
    }
  }

  ids(): number[] {
    if (!this.#hasTable) return [];
    return this.#ids.list(() =>
      this.#storage.sql
        .exec<{ id: number }>('SELECT id FROM rows')
        .toArray()
        .map((row) => row.id),
    );
  }

  size(): { rows: number; bytes: number } {
    if (!this.#hasTable) return { rows: 0, bytes: 0 };
    return this.#storage.sql
      .exec<{ rows: number; bytes: number }>(
        'SELECT COUNT(*) AS rows, COALESCE(SUM(LENGTH(data)), 0) AS bytes FROM rows',
      )
      .one();
  }

  sync(): Promise<void> {
    return this.#storage.sync();
  }

  async destroy(): Promise<void> {
    this.#hasTable = false;
    this.#ids.forget();
    await this.#storage.deleteAlarm();
    await this.#storage.deleteAll();
  }

  close(): void {}

  #tableExists(): boolean {
    return (
      this.#storage.sql.exec("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'rows'").toArray()
        .length > 0
    );
  }
}
