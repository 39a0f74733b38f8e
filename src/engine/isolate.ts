import type { Kernels } from '../kernels/kernels.ts';
import { foreignFromBundle } from '../runtime/foreign.ts';
import type { BundleSource } from '../runtime/manifest.ts';
import type { OrtRunner } from '../runtime/ort.ts';
import type { ModelEngine } from './engine.ts';
import { loadEngine } from './load.ts';

/** Looks that find no progress before a waiter takes the load over: with 50 ms between looks, 3 seconds. */
const PATIENCE = 60;
export const LOOK_MS = 50;
/** A server samples from one row. */
const SERVED_LOGIT_ROWS = 1;
/**
 * What an isolate's kernels may take of the platform's 128 MB (https://developers.cloudflare.com/workers/platform/limits/#memory): weights,
 * workspaces, caches. The rest is for code, JS heap, tokenizer and SQLite's page cache; test/e2e/memory.test.ts adds all of it up.
 */
export const ISOLATE_BYTES = 128e6;
export const ISOLATE_KERNEL_BYTES = 110e6;
/**
 * Bytes of a conversation's cache in such an isolate: what the embedded model's weights and workspaces leave, less the exact part of an epoch and the
 * transient copies of a plan. All 8,192 positions fit (a test asks `worstCaseBytes`).
 */
export const ISOLATE_CACHE_BYTES = 14e6;

export interface IsolateHost {
  /** Called once an isolate. */
  readonly makeKernels: () => Kernels;
  /** For models with operators that no kernel has; not touched by others. */
  readonly ort?: OrtRunner;
  readonly wait: (ms: number) => Promise<void>;
}

/**
 * The weights of an isolate: all conversations in it share one engine. Who comes first loads; others look again until it is there.
 * They do not await the first one's promise: a request's streams and timers die with that request, and a promise that waits for
 * them never settles. So a load that failed or makes no progress is taken over by the next waiter, in the same memory:
 * the weights are never held twice. (A late first loader writes the same bytes to the same places.)
 */
export class IsolateEngine {
  #kernels: Kernels | undefined;
  #engine: ModelEngine | undefined;
  #attempt = 0;
  #loading = false;
  #progress = 0;

  get ready(): ModelEngine | undefined {
    return this.#engine;
  }
  get kernels(): Kernels | undefined {
    return this.#kernels;
  }

  async get(source: BundleSource, host: IsolateHost): Promise<ModelEngine> {
    for (let seen = -1, idle = 0; ; ) {
      if (this.#engine) return this.#engine;
      if (!this.#loading || idle >= PATIENCE) return await this.#load(source, host);
      idle = this.#progress === seen ? idle + 1 : 0;
      seen = this.#progress;
      await host.wait(LOOK_MS);
    }
  }

  async #load(source: BundleSource, host: IsolateHost): Promise<ModelEngine> {
    const attempt = ++this.#attempt;
    this.#loading = true;
    try {
      this.#kernels ??= host.makeKernels();
      this.#kernels.arena.reset();
      const engine = await loadEngine({
        source,
        kernels: this.#kernels,
        logitRows: SERVED_LOGIT_ROWS,
        ...(host.ort
          ? { foreign: foreignFromBundle(source, host.ort), ortHeapBytes: host.ort.heapBytes }
          : {}),
        onProgress: () => {
          if (attempt === this.#attempt) this.#progress++;
        },
      });
      // A late attempt that was taken over finds the engine there, or leaves it to who took over.
      if (attempt === this.#attempt) this.#engine = engine;
      return this.#engine ?? engine;
    } finally {
      if (attempt === this.#attempt) this.#loading = false;
    }
  }
}

/** The one exception to "no module-level state". */
export const isolateEngine = new IsolateEngine();
