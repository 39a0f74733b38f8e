import type { ModelConfig } from '../core/config.ts';
import { SOURCE_BLOCK, type SourceType } from '../kernels/weights.ts';
import type { Activation } from './llama-graph.ts';

export type { SourceType } from '../kernels/weights.ts';

/** Bytes of one row of k elements; k must be a multiple of the block's elements. */
export const sourceRowBytes = (type: SourceType, k: number): number => {
  const block = SOURCE_BLOCK[type];
  return (k / block.elements) * block.bytes;
};

/** One weight as its source holds it, under the name the graph uses. */
export interface SourceTensor {
  /** The graph's name (llama-graph.ts): `layers.3.q_proj`. */
  readonly name: string;
  /** The name in the file, for messages. */
  readonly sourceName: string;
  readonly type: SourceType;
  /** [n, k] for a matrix, [dim] for a norm. */
  readonly shape: readonly number[];
  /** Bytes in the source. */
  readonly bytes: number;
  /** Rows in the graph's order (q and k in rotate-half order). */
  read(): Promise<Uint8Array>;
}

/** A model ready to be bundled, whatever it was read from. Only one tensor's bytes are in memory at a time. */
export interface ModelSource {
  readonly config: ModelConfig;
  /** In the order in which they are written. The tied output matrix is no tensor of its own. */
  readonly tensors: readonly SourceTensor[];
  readonly tied: boolean;
  /** What the feed-forward part applies to its gate; absent: SiLU. */
  readonly activation?: Activation;
  /** A HuggingFace tokenizer.json, parsed. */
  readonly tokenizer: Record<string, unknown>;
  readonly chatTemplate: string | null;
  readonly eosIds: readonly number[];
  readonly bosId: number | null;
  readonly generation: { temperature: number; topP: number; maxTokens: number };
  /** `file` without folders, so that the bundle does not depend on where the source lay. */
  readonly source: { readonly file: string; readonly bytes: number; readonly sha256: string };
  close(): Promise<void>;
}

/**
 * Undoes the row order of interleaved rotary pairs: within each head, row 2j + h becomes row h * headDim/2 + j.
 * @param data rows of `rowBytes` bytes each, heads * headDim of them
 */
export function unpermuteRows(
  data: Uint8Array,
  rowBytes: number,
  heads: number,
  headDim: number,
): Uint8Array {
  const out = new Uint8Array(data.length);
  const half = headDim / 2;
  for (let head = 0; head < heads; head++) {
    for (let j = 0; j < half; j++) {
      for (let h = 0; h < 2; h++) {
        const from = (head * headDim + 2 * j + h) * rowBytes;
        out.set(data.subarray(from, from + rowBytes), (head * headDim + h * half + j) * rowBytes);
      }
    }
  }
  return out;
}
