import { AdkvcError } from '../../core/errors.ts';
import { BlockFileStore, readIndex, type SyncFile, type SyncFiles } from './block-file.ts';
import type { SessionStore } from './session-store.ts';

/** Files kept for stores that will be written for the first time: making one takes a promise, and a transaction cannot wait. */
const SPARE_FILES = 8;

/** What a dedicated worker's FileSystemFileHandle has; the DOM's own types leave it out. */
interface WorkerFileHandle {
  createSyncAccessHandle(): Promise<SyncFile>;
}

/**
 * A folder of a browser's origin private file system (https://fs.spec.whatwg.org/), one file a store. All files are held open: reads and
 * writes are then done at once, as a SessionStore's are. In dedicated workers only, and in one at a time: files are locked.
 */
export class OpfsFolder implements SyncFiles {
  readonly #folder: FileSystemDirectoryHandle;
  readonly #named = new Map<string, SyncFile>();
  readonly #spare: SyncFile[] = [];
  #next = 0;
  #making: Promise<void> | undefined;

  private constructor(folder: FileSystemDirectoryHandle) {
    this.#folder = folder;
  }

  /**
   * @param name of the folder below the origin's root
   * @throws AdkvcError storage_unavailable: the browser has no such files, or another tab holds them
   */
  static async open(name: string): Promise<OpfsFolder> {
    try {
      const root = await navigator.storage.getDirectory();
      const opened = new OpfsFolder(await root.getDirectoryHandle(name, { create: true }));
      await opened.#openAll();
      await opened.ready();
      return opened;
    } catch (cause) {
      const why = cause instanceof Error ? `${cause.name}: ${cause.message}` : String(cause);
      throw new AdkvcError(
        'storage_unavailable',
        `this browser's own file system cannot be used (${why}): close other tabs of this page, leave private browsing, or use a newer browser`,
        { cause },
      );
    }
  }

  /** A store whose file is there, or will be with its first transaction. */
  store(name: string): SessionStore {
    return new BlockFileStore(name, this);
  }
  /** Names of all stores that hold something. */
  get names(): string[] {
    return [...this.#named.keys()];
  }

  find(name: string): SyncFile | undefined {
    return this.#named.get(name);
  }
  take(name: string): SyncFile {
    const held = this.#named.get(name);
    if (held) return held;
    const file = this.#spare.pop();
    if (!file)
      throw new AdkvcError('memory_limit', 'too many conversations begin at once: try again in a second', {
        data: { retryAfter: 1 },
      });
    this.#named.set(name, file);
    void this.ready();
    return file;
  }
  give(name: string, file: SyncFile): void {
    this.#named.delete(name);
    this.#spare.push(file);
  }

  ready(): Promise<void> {
    this.#making ??= this.#make().finally(() => {
      this.#making = undefined;
    });
    return this.#making;
  }
  async #make(): Promise<void> {
    while (this.#spare.length < SPARE_FILES)
      this.#spare.push(await this.#openFile(String(this.#next++), true));
  }

  close(): void {
    for (const file of [...this.#named.values(), ...this.#spare]) file.close();
  }

  async #openAll(): Promise<void> {
    const names: string[] = [];
    for await (const name of (this.#folder as unknown as { keys(): AsyncIterable<string> }).keys())
      names.push(name);
    this.#next = Math.max(-1, ...names.map(Number)) + 1;
    const files = await Promise.all(names.map((name) => this.#openFile(name, false)));
    for (const [i, file] of files.entries()) {
      const index = readIndex(file);
      if (index) this.#named.set(index.name, file);
      else if (this.#spare.length < SPARE_FILES) this.#spare.push(file);
      else {
        // More than are needed: many conversations were deleted.
        file.close();
        await this.#folder.removeEntry(names[i]!);
      }
    }
  }

  async #openFile(name: string, create: boolean): Promise<SyncFile> {
    const handle = await this.#folder.getFileHandle(name, { create });
    return (handle as unknown as WorkerFileHandle).createSyncAccessHandle();
  }
}
