import { extname } from 'node:path';
import { Worker } from 'node:worker_threads';

/** This file's own, in the checkout and in the package. */
const WORKER = new URL(`./checkpoint-worker${extname(import.meta.url)}`, import.meta.url);

/**
 * Shortens the logs of this process's SQLite files in a thread of its own: what a checkpoint waits for, the disk, would hold up every conversation. One at a time. The thread starts
 * with the first one and keeps no process alive.
 */
export class Checkpointer {
  #worker: Worker | undefined;
  readonly #waiting = new Map<string, { readonly done: Promise<void>; readonly end: () => void }>();

  /** @returns when nobody has the file open for it any more; never rejects, since the log loses nothing */
  run(path: string): Promise<void> {
    const waiting = this.#waiting.get(path);
    if (waiting) return waiting.done;
    let end!: () => void;
    const done = new Promise<void>((resolve) => {
      end = resolve;
    });
    this.#waiting.set(path, { done, end });
    this.#worker ??= this.#start();
    this.#worker.postMessage(path);
    return done;
  }

  #start(): Worker {
    const worker = new Worker(WORKER);
    const end = (path: string): void => {
      this.#waiting.get(path)?.end();
      this.#waiting.delete(path);
    };
    worker.on('message', end);
    // A thread that cannot run leaves it to SQLite's own checkpoints.
    const gone = (): void => {
      if (this.#worker === worker) this.#worker = undefined;
      for (const path of [...this.#waiting.keys()]) end(path);
    };
    worker.on('error', gone);
    worker.on('exit', gone);
    worker.unref();
    return worker;
  }
}
