/** Shape of a llama-family decoder. Lengths count elements, not bytes. */
export interface ModelConfig {
  readonly name: string;
  readonly architecture: 'llama';
  readonly layers: number;
  readonly hidden: number;
  /** Query heads. */
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly ffn: number;
  readonly vocab: number;
  /** Positions the model was trained for. */
  readonly contextLength: number;
  readonly ropeTheta: number;
  readonly rmsEps: number;
  /** The score's factor before the softmax, 1/sqrt(headDim) unless the export says otherwise. */
  readonly attentionScale: number;
}

/** Bytes of one token's keys and values in fp16: the unit every ratio is measured against. */
export const fp16BytesPerToken = (c: Pick<ModelConfig, 'layers' | 'kvHeads' | 'headDim'>): number =>
  c.layers * c.kvHeads * c.headDim * 2 * 2;

/** Positions in one epoch and in one segment: the cache's clock. No prefill chunk crosses a multiple of it. */
export const EPOCH = 128;
