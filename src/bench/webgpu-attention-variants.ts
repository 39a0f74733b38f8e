import { InvalidInputError } from '../core/errors.ts';
import type { StreamDivision } from '../kernels/webgpu-attend-stream.ts';

export interface AttentionVariant {
  readonly name: string;
  readonly segmentsPerSplit: number;
  /** attend-stream.wgsl, so divided; undefined: attend.wgsl. */
  readonly stream?: StreamDivision & { readonly describes: boolean };
}

/** What the runtime uses of each kernel, and what comes near it. */
export const SWEEP: readonly string[] = ['float@4', 'stream-4-8', 'stream-8-16', 'stream-4-8-describes'];

const FLOAT = /^float@([1-9]\d*)$/;
const STREAM = /^stream-([1-9]\d?)-(2|4|8|16)(-describes)?$/;

/**
 * `float@SEGMENTS`, segments a split, or `stream-WARPS-SEGMENTS`, as StreamDivision says. `-describes` makes the table of blocks with each dispatch.
 * @throws InvalidInputError
 */
export function parseVariant(name: string): AttentionVariant {
  const float = FLOAT.exec(name);
  if (float) return { name, segmentsPerSplit: Number(float[1]) };
  const stream = STREAM.exec(name);
  if (!stream)
    throw new InvalidInputError(
      `"${name}" is no variant: float@4, or as in stream-4-8 (warps, segments)`,
      '--variant',
    );
  const [warps, segments] = stream.slice(1, 3).map(Number) as [number, number];
  return {
    ...{ name, segmentsPerSplit: segments },
    stream: { warps, segments, describes: stream[3] !== undefined },
  };
}
