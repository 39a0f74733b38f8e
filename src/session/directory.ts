import { AdkvcError } from '../core/errors.ts';
import { MAX_SESSIONS_PER_KEY } from './limits.ts';
import { FRAME_BYTES, RowKind, readRow, writeFramed } from './row.ts';
import type { SessionStore } from './store/session-store.ts';

/** Where a session is listed: its owner's directory, and the name that the directory knows it by. */
export interface Listing {
  readonly directory: string;
  readonly key: string;
}

export interface DirectoryEntry {
  /** Of the session's object. */
  readonly key: string;
  readonly id: string;
  readonly createdAt: number;
  readonly implicit: boolean;
}

/** The directories of all owners, by name. */
export interface Directories {
  /** Listing it again changes nothing. @throws AdkvcError session_quota_exceeded */
  add(directory: string, entry: DirectoryEntry): Promise<void>;
  remove(directory: string, key: string): Promise<void>;
  /** Newest first. */
  list(directory: string): Promise<DirectoryEntry[]>;
}

/**
 * The sessions of one owner: which there are, not how they are; that, each tells of itself. Written when a session is made and when it is
 * deleted, never by a turn. A row a session. An entry whose session is gone (something crashed between the two) is harmless: who lists
 * finds it out and removes it.
 */
export class Directory {
  readonly #store: SessionStore;
  readonly #quota: number;
  #rows: Map<string, { row: number; entry: DirectoryEntry }> | undefined;
  /** The store is being destroyed: what was written meanwhile would go with it. */
  #ending: Promise<void> | undefined;

  constructor(store: SessionStore, quota = MAX_SESSIONS_PER_KEY) {
    this.#store = store;
    this.#quota = quota;
  }

  /** Implicit sessions, which expire by themselves, and others have a quota each. */
  async add(entry: DirectoryEntry): Promise<void> {
    while (this.#ending) await this.#ending.catch(() => {});
    const rows = this.#load();
    if (rows.has(entry.key)) return;
    let alike = 0;
    let row = 0;
    for (const other of rows.values()) {
      if (other.entry.implicit === entry.implicit) alike++;
      row = Math.max(row, other.row + 1);
    }
    if (alike >= this.#quota)
      throw new AdkvcError(
        'session_quota_exceeded',
        `this key has ${alike} sessions, which is its quota (MAX_SESSIONS_PER_KEY): delete some of them${entry.implicit ? ', or wait until idle ones expire' : ''}`,
        { data: { limit: this.#quota } },
      );
    const text = new TextEncoder().encode(JSON.stringify(entry));
    const framed = new Uint8Array(FRAME_BYTES + text.length);
    framed.set(text, FRAME_BYTES);
    this.#store.transaction(() => writeFramed(this.#store, row, RowKind.directory, framed));
    rows.set(entry.key, { row, entry });
    await this.#store.sync();
  }

  async remove(key: string): Promise<void> {
    const rows = this.#load();
    const found = rows.get(key);
    if (!found) return;
    this.#store.transaction(() => this.#store.delete([found.row]));
    rows.delete(key);
    // An owner without sessions leaves nothing behind.
    if (rows.size > 0) return this.#store.sync();
    this.#ending = this.#store.destroy().finally(() => {
      this.#ending = undefined;
    });
    await this.#ending;
  }

  list(): DirectoryEntry[] {
    return [...this.#load().values()].sort((a, b) => b.row - a.row).map(({ entry }) => entry);
  }

  #load() {
    this.#rows ??= new Map(
      this.#store.ids().map((row) => {
        const { payload } = readRow(this.#store, row, RowKind.directory);
        const entry = JSON.parse(new TextDecoder().decode(payload)) as DirectoryEntry;
        return [entry.key, { row, entry }];
      }),
    );
    return this.#rows;
  }
}

/** Directories of this process. */
export class LocalDirectories implements Directories {
  readonly #open: (directory: string) => SessionStore;
  readonly #quota: number | undefined;
  #directories = new Map<string, { directory: Directory; store: SessionStore }>();

  constructor(open: (directory: string) => SessionStore, quota?: number) {
    this.#open = open;
    this.#quota = quota;
  }

  async add(directory: string, entry: DirectoryEntry): Promise<void> {
    await this.#of(directory).add(entry);
  }
  async remove(directory: string, key: string): Promise<void> {
    await this.#of(directory).remove(key);
  }
  async list(directory: string): Promise<DirectoryEntry[]> {
    return this.#of(directory).list();
  }

  close(): void {
    for (const { store } of this.#directories.values()) store.close();
    this.#directories.clear();
  }

  #of(name: string): Directory {
    let found = this.#directories.get(name);
    if (!found) {
      const store = this.#open(name);
      found = { store, directory: new Directory(store, this.#quota) };
      this.#directories.set(name, found);
    }
    return found.directory;
  }
}
