import { existsSync, rmSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { dirname } from 'node:path';
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { CorruptDataError } from '../../core/errors.ts';
import type { Checkpointer } from './checkpointer.ts';
import {
  inBatches,
  KnownIds,
  type SessionStore,
  type StoreCounters,
  TransactionGuard,
} from './session-store.ts';

/** Bytes after which the log is carried over into the file: about two turns of a long conversation. */
const CHECKPOINT_BYTES = 8_000_000;
/** A connection that closes last locks the file for as long as it takes to carry the log over. */
const BUSY_MS = 10_000;

interface Opened {
  readonly database: DatabaseSync;
  readonly get: StatementSync;
  readonly put: StatementSync;
}

/**
 * One SQLite file a conversation, for Node. The file is made by the first transaction, never by a read.
 * Not for Workers: imports `node:sqlite`.
 */
export class NodeSqliteStore implements SessionStore {
  readonly counters: StoreCounters = { rowsRead: 0, rowsWritten: 0, bytesWritten: 0 };
  readonly path: string;
  readonly #checkpointer: Checkpointer | undefined;
  #opened: Opened | undefined;
  #guard = new TransactionGuard();
  readonly #ids = new KnownIds();
  /** The names of the files are on the disk. */
  #named = false;
  /** Bytes written when the log was carried over last, and the end of what does it. */
  #carried = 0;
  #carrying: Promise<void> | undefined;

  /**
   * @param path of the file; its folder must exist
   * @param checkpointer of the process; without it a transaction now and then takes some tens of milliseconds more
   */
  constructor(path: string, checkpointer?: Checkpointer) {
    this.path = path;
    this.#checkpointer = checkpointer;
  }

  transaction<T>(fn: () => T): T {
    return this.#guard.run(() => {
      const { database } = this.#open(true)!;
      database.exec('BEGIN IMMEDIATE');
      try {
        const result = fn();
        if (result instanceof Promise)
          throw new Error('a transaction is synchronous: its function must not return a promise');
        database.exec('COMMIT');
        return result;
      } catch (error) {
        this.#ids.forget();
        if (database.isTransaction) database.exec('ROLLBACK');
        throw error;
      }
    });
  }

  get(id: number): Uint8Array | undefined {
    this.counters.rowsRead++;
    return reading(() => this.#open(false)?.get.get(id)?.data as Uint8Array | undefined);
  }

  put(id: number, bytes: Uint8Array): void {
    this.#guard.checkPut(id, bytes);
    this.#open(true)!.put.run(id, bytes);
    this.#ids.add(id);
    this.counters.rowsWritten++;
    this.counters.bytesWritten += bytes.byteLength;
  }

  delete(ids: readonly number[]): void {
    this.#guard.checkOpen();
    this.#ids.delete(ids);
    for (const batch of inBatches(ids)) {
      const places = batch.map(() => '?').join(',');
      const { changes } = this.#open(true)!
        .database.prepare(`DELETE FROM rows WHERE id IN (${places})`)
        .run(...batch);
      this.counters.rowsWritten += Number(changes);
    }
  }

  ids(): number[] {
    return reading(() => {
      const database = this.#open(false)?.database;
      if (!database) return [];
      return this.#ids.list(() =>
        database
          .prepare('SELECT id FROM rows')
          .all()
          .map((row) => row.id as number),
      );
    });
  }

  size(): { rows: number; bytes: number } {
    const row = this.#open(false)
      ?.database.prepare('SELECT COUNT(*) AS rows, COALESCE(SUM(LENGTH(data)), 0) AS bytes FROM rows')
      .get();
    return { rows: (row?.rows as number) ?? 0, bytes: (row?.bytes as number) ?? 0 };
  }

  /** The log of the newest transactions goes to the disk while other conversations run. */
  async sync(): Promise<void> {
    if (!this.#opened) return;
    await flush(`${this.path}-wal`, 'r+');
    // Windows keeps names by itself, and opens no folders.
    if (!this.#named && process.platform !== 'win32') await flush(dirname(this.path), 'r');
    this.#named = true;
    const { bytesWritten } = this.counters;
    if (!this.#checkpointer || bytesWritten - this.#carried < CHECKPOINT_BYTES) return;
    this.#carried = bytesWritten;
    this.#carrying = this.#checkpointer.run(this.path);
  }

  /** Nobody carries the log over at this time. */
  async settled(): Promise<void> {
    await this.#carrying;
  }

  async destroy(): Promise<void> {
    this.close();
    // Who has a file open that is deleted could delete one that is made anew.
    await this.settled();
    this.#named = false;
    for (const suffix of ['', '-wal', '-shm']) rmSync(this.path + suffix, { force: true });
  }

  close(): void {
    this.#opened?.database.close();
    this.#opened = undefined;
    this.#ids.forget();
  }

  #open(create: boolean): Opened | undefined {
    if (this.#opened || (!create && !existsSync(this.path))) return this.#opened;
    const database = new DatabaseSync(this.path, { timeout: BUSY_MS });
    try {
      this.#opened = prepared(database);
    } catch (error) {
      database.close();
      throw error;
    }
    return this.#opened;
  }
}

function prepared(database: DatabaseSync): Opened {
  // Rows are large: the largest pages write them about four times as fast as the default's 4 KiB. A commit leaves the file whole whatever happens,
  // and `sync` makes it last: https://sqlite.org/pragma.html#pragma_synchronous
  database.exec('PRAGMA page_size = 65536; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL');
  // 32 MB, as the default of 1,000 is with smaller pages: about eight turns.
  database.exec('PRAGMA wal_autocheckpoint = 512');
  database.exec('CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, data BLOB NOT NULL)');
  return {
    database,
    get: database.prepare('SELECT data FROM rows WHERE id = ?'),
    put: database.prepare(
      'INSERT INTO rows (id, data) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET data = excluded.data',
    ),
  };
}

/** https://www.sqlite.org/rescode.html */
const SQLITE_CORRUPT = 11;
const SQLITE_NOTADB = 26;

/** @throws CorruptDataError for a file that is no database any more, or a damaged one */
function reading<T>(read: () => T): T {
  try {
    return read();
  } catch (error) {
    const { errcode, message } = error as { errcode?: number; message?: string };
    if (errcode === SQLITE_CORRUPT || errcode === SQLITE_NOTADB)
      throw new CorruptDataError(`the conversation's file cannot be read: ${message}`);
    throw error;
  }
}

/**
 * What was written to a file, or the names in a folder, outlives a loss of power. Not for files that SQLite holds locks on, which a second handle's end
 * would drop (https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_): it holds none on its log.
 */
async function flush(path: string, flags: 'r' | 'r+'): Promise<void> {
  const file = await open(path, flags).catch((error: NodeJS.ErrnoException) => {
    // Closed meanwhile: its log was written back then.
    if (error.code === 'ENOENT') return undefined;
    throw error;
  });
  if (!file) return;
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}
