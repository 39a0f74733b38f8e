export interface ForwardOptions {
  readonly yield?: (() => Promise<void>) | undefined;
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
