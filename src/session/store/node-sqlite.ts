import { existsSync, rmSync } from 'node:fs';
import { DatabaseSync } from 'node:sqlite';
import { inBatches, type SessionStore, type StoreCounters, TransactionGuard } from './session-store.ts';

/**
 * One SQLite file a conversation, for Node. The file is made by the first transaction, never by a read.
 * Not for Workers: imports `node:sqlite`.
 */
export class NodeSqliteStore implements SessionStore {
  readonly counters: StoreCounters = { rowsRead: 0, rowsWritten: 0, bytesWritten: 0 };
  readonly path: string;
  #database: DatabaseSync | undefined;
  #guard = new TransactionGuard();

  /** @param path of the file; its folder must exist. */
  constructor(path: string) {
    this.path = path;
  }

  transaction<T>(fn: () => T): T {
    return this.#guard.run(() => {
      const database = this.#open(true)!;
      database.exec('BEGIN IMMEDIATE');
      try {
        const result = fn();
        if (result instanceof Promise)
          throw new Error('a transaction is synchronous: its function must not return a promise');
        database.exec('COMMIT');
        return result;
      } catch (error) {
        if (database.isTransaction) database.exec('ROLLBACK');
        throw error;
      }
    });
  }

  get(id: number): Uint8Array | undefined {
    this.counters.rowsRead++;
    const row = this.#open(false)?.prepare('SELECT data FROM rows WHERE id = ?').get(id);
    return row?.data as Uint8Array | undefined;
  }

  put(id: number, bytes: Uint8Array): void {
    this.#guard.checkPut(id, bytes);
    this.#open(true)!
      .prepare(
        'INSERT INTO rows (id, data) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET data = excluded.data',
      )
      .run(id, bytes);
    this.counters.rowsWritten++;
    this.counters.bytesWritten += bytes.byteLength;
  }

  delete(ids: readonly number[]): void {
    this.#guard.checkOpen();
    for (const batch of inBatches(ids)) {
      const places = batch.map(() => '?').join(',');
      const { changes } = this.#open(true)!
        .prepare(`DELETE FROM rows WHERE id IN (${places})`)
        .run(...batch);
      this.counters.rowsWritten += Number(changes);
    }
  }

  ids(): number[] {
    const rows = this.#open(false)?.prepare('SELECT id FROM rows ORDER BY id').all() ?? [];
    return rows.map((row) => row.id as number);
  }

  size(): { rows: number; bytes: number } {
    const row = this.#open(false)
      ?.prepare('SELECT COUNT(*) AS rows, COALESCE(SUM(LENGTH(data)), 0) AS bytes FROM rows')
      .get();
    return { rows: (row?.rows as number) ?? 0, bytes: (row?.bytes as number) ?? 0 };
  }

  /** Nothing to wait for: a commit returns when its bytes are on the disk (synchronous = FULL). */
  async sync(): Promise<void> {}

  async destroy(): Promise<void> {
    this.close();
    for (const suffix of ['', '-wal', '-shm']) rmSync(this.path + suffix, { force: true });
  }

  close(): void {
    this.#database?.close();
    this.#database = undefined;
  }

  #open(create: boolean): DatabaseSync | undefined {
    if (this.#database || (!create && !existsSync(this.path))) return this.#database;
    const database = new DatabaseSync(this.path);
    // Rows are large: the largest pages but one write them about three times as fast as the default's 4 KiB.
    database.exec('PRAGMA page_size = 32768; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL');
    database.exec('CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, data BLOB NOT NULL)');
    this.#database = database;
    return database;
  }
}
