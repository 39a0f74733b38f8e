import type { KvCache } from '../cache/cache.ts';

export interface ForwardOptions {
  readonly yield?: (() => Promise<void>) | undefined;
  /** Hands out only so many of a row's logits, the largest, best first, with their ids; at most ForwardPass.mostTop. */
  readonly top?: number | undefined;
}

/** What a row's logits go to: all of them, or the largest with their ids. Views are valid during the call only. */
export type LogitSink = (logits: Float32Array, ids?: Uint32Array) => void;

/** One token of a conversation, fed in company. */
export interface StepJob {
  readonly cache: KvCache;
  readonly id: number;
  readonly top?: number | undefined;
  /** Undefined: nobody wants its logits. */
  readonly sink?: LogitSink | undefined;
}

/** A chunk on its way through some of the steps. */
export interface Chunk {
  readonly ids: readonly number[];
  readonly rows: number;
  readonly wanted: readonly number[];
  readonly sink: (row: number, logits: Float32Array) => void;
  readonly options: ForwardOptions;
  readonly from?: number;
  readonly to?: number;
  /** The first layer of the cache, in the model. */
  readonly base?: number;
}

/** Before a chunk is fed: sees to it that the cache has room for it. @throws MemoryLimitError before anything is changed */
export function openChunk(cache: KvCache, rows: number): void {
  if (rows < 1 || rows > cache.room) throw new Error(`${rows} rows, room for ${cache.room}`);
  cache.reserve(rows);
}
