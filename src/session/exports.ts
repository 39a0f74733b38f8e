import { AdkvcError } from '../core/errors.ts';
import type { SessionExport } from './api.ts';
import type { Head } from './head.ts';
import { MAX_EXPORTS_PER_SESSION, RETRY_AFTER_SECONDS } from './limits.ts';
import type { SessionStore } from './store/session-store.ts';
import { exportChunks, type Snapshot, snapshot } from './transfer.ts';

/** The exports of one session that are being read: the rows of their commits stay as they are meanwhile. */
export class Exports {
  readonly #store: SessionStore;
  readonly #running = new Set<Snapshot>();

  constructor(store: SessionStore) {
    this.#store = store;
  }

  get running(): number {
    return this.#running.size;
  }

  /** Rows that no commit may overwrite. */
  pinned(): number[] {
    return [...this.#running].flatMap(({ stored }) => stored);
  }

  /** @throws AdkvcError session_busy when `limit` of them run */
  refuse(limit: number): void {
    if (this.#running.size < limit) return;
    throw new AdkvcError(
      'session_busy',
      `${this.#running.size} exports of this session run already (MAX_EXPORTS_PER_SESSION); try again in ${RETRY_AFTER_SECONDS} s`,
      { data: { retryAfter: RETRY_AFTER_SECONDS, limit } },
    );
  }

  /**
   * The conversation as of its last commit, or its first `messages` messages; read row by row as the reader pulls.
   * @throws AdkvcError session_busy; InvalidInputError messages
   */
  open(head: Head, messages?: number): SessionExport {
    this.refuse(MAX_EXPORTS_PER_SESSION);
    const shot = snapshot(this.#store, head, messages);
    this.#running.add(shot);
    const end = () => this.#running.delete(shot);
    const chunks = exportChunks(this.#store, shot);
    const stream = new ReadableStream<Uint8Array>(
      {
        pull(controller) {
          try {
            const { done, value } = chunks.next();
            if (!done) return controller.enqueue(value);
            end();
            controller.close();
          } catch (error) {
            end();
            controller.error(error);
          }
        },
        cancel() {
          end();
        },
      },
      { highWaterMark: 0 },
    );
    return { bytes: shot.bytes, stream };
  }
}
