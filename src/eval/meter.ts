import { snapshot } from '../bench/snapshot.ts';
import type { KvCache } from '../cache/cache.ts';
import { fetchAndFinish } from '../cache/fetched.ts';
import type { CacheStateReader } from '../cache/persist.ts';
import type { CacheConfig } from '../cache/policy.ts';
import type { ModelEngine } from '../engine/engine.ts';

const none = (): boolean => false;

export interface CacheFigures {
  /** Bytes held, averaged over the tokens fed; peak, copies included; and at the end of the prompt or text. */
  readonly averageBytes: number;
  readonly peakBytes: number;
  readonly bytes: number;
  /** Tiers assigned after the first, a token that has left the window. */
  readonly meanRecodes: number;
  /** fp16 bytes over bytes at that end. */
  readonly ratio: number;
}

/** A cache with its measuring instruments: bytes held token by token, time spent in the model. */
export class Meter {
  readonly engine: ModelEngine;
  cache: KvCache;
  /** Milliseconds in the model since the last `takeMs`. */
  #ms = 0;
  #byteTokens = 0;
  #tokens = 0;
  #peak = 0;

  constructor(engine: ModelEngine, config: CacheConfig) {
    this.engine = engine;
    this.cache = engine.createCache(config);
  }

  /** Feeds ids epoch by epoch. The sink's own time does not count as the model's. */
  async feed(
    ids: readonly number[],
    wanted: (index: number) => boolean = none,
    sink: (index: number, logits: Float32Array) => void = () => {},
  ): Promise<void> {
    for (let at = 0; at < ids.length; ) {
      const n = Math.min(ids.length - at, this.cache.room);
      let outside = 0;
      const from = at;
      const start = performance.now();
      await this.engine.feedEach(
        this.cache,
        ids.slice(at, at + n),
        (i) => wanted(from + i),
        (i, logits) => {
          const begin = performance.now();
          sink(from + i, logits);
          outside += performance.now() - begin;
        },
        // Nothing else runs in this thread: no turn waits for a pause.
        { yield: async () => {} },
      );
      this.#ms += performance.now() - start - outside;
      this.#byteTokens += this.cache.bytes * n;
      this.#tokens += n;
      // Nothing is committed here: what a session would keep for it is not wanted.
      this.cache.clearJournal();
      at += n;
    }
  }

  /** Feeds ids and returns the last one's logits, copied. */
  async last(ids: readonly number[]): Promise<Float32Array> {
    let last = new Float32Array(0);
    await this.feed(
      ids,
      (i) => i === ids.length - 1,
      (_, logits) => {
        last = logits.slice();
      },
    );
    return last;
  }

  /** Compresses now, wherever the clock stands. */
  async finish(): Promise<void> {
    this.figures();
    const start = performance.now();
    await fetchAndFinish(this.cache);
    this.#ms += performance.now() - start;
  }

  takeMs(): number {
    const ms = this.#ms;
    this.#ms = 0;
    return ms;
  }

  figures(): CacheFigures {
    const report = this.cache.report();
    this.#peak = Math.max(this.#peak, report.peakBytes);
    return {
      averageBytes: this.#tokens === 0 ? 0 : this.#byteTokens / this.#tokens,
      peakBytes: this.#peak,
      bytes: report.bytes,
      meanRecodes: report.meanRecodes ?? 0,
      ratio: report.ratio,
    };
  }

  /** Copies the state as a session stores it, with the instruments' readings: for `restore`, in this process or the next. */
  async save(): Promise<Saved> {
    await this.cache.settle();
    const peak = this.figures().peakBytes;
    const { reader } = snapshot(this.cache);
    const { header, journal } = reader;
    return {
      header,
      journal,
      layers: Array.from({ length: this.cache.layers }, (_, layer) => ({
        hot: reader.hot(layer),
        blocks: Array.from({ length: this.cache.segmentsOf(layer) }, (_, s) => reader.block(layer, s)),
      })),
      meter: { ms: this.#ms, byteTokens: this.#byteTokens, tokens: this.#tokens, peak },
    };
  }

  /** Goes back to a saved state, the instruments going on. @returns milliseconds that making the cache resident took */
  restore(saved: Saved): number {
    this.figures();
    this.cache.dispose();
    const start = performance.now();
    this.cache = this.engine.restoreCache(readerOf(saved)) as KvCache;
    return performance.now() - start;
  }

  /** Goes on from a state that another meter of this configuration saved, readings included. */
  resume(saved: Saved): void {
    this.restore(saved);
    this.#ms = saved.meter.ms;
    this.#byteTokens = saved.meter.byteTokens;
    this.#tokens = saved.meter.tokens;
    this.#peak = saved.meter.peak;
  }

  dispose(): void {
    this.cache.dispose();
  }
}

/** A cache's state and a meter's readings, as plain data. */
export interface Saved extends Pick<CacheStateReader, 'header' | 'journal'> {
  readonly layers: readonly {
    readonly hot: Uint8Array;
    readonly blocks: readonly { readonly version: number; readonly bytes: Uint8Array }[];
  }[];
  readonly meter: {
    readonly ms: number;
    readonly byteTokens: number;
    readonly tokens: number;
    readonly peak: number;
  };
}

const readerOf = ({ header, journal, layers }: Saved): CacheStateReader => ({
  header,
  journal,
  hot: (layer) => layers[layer]!.hot,
  block: (layer, segment) => layers[layer]!.blocks[segment]!,
});
