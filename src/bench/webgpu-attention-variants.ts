import { InvalidInputError } from '../core/errors.ts';
import type { StreamDivision } from '../kernels/webgpu-attend-stream.ts';

export interface AttentionVariant {
  readonly name: string;
  readonly segmentsPerSplit: number;
  /** attend-stream.wgsl, so divided; undefined: attend.wgsl. */
  readonly stream?: StreamDivision & { readonly describes: boolean };
}

/** What the runtime uses of each kernel, what comes near it, and what its parts take. */
export const SWEEP: readonly string[] = [
  ...['float@4', 'stream-4-8-1-22', 'stream-4-8-1-21', 'stream-8-16-1-22', 'stream-4-8-1-22-describes'],
  ...['stream-4-8-1-22-noblocks', 'stream-4-8-1-22-nolookups', 'stream-4-8-1-22-nokeys'],
  ...['stream-4-8-1-22-novalues', 'stream-4-8-1-22-nokeys-novalues'],
];

const PARTS = ['keys', 'values', 'lookups', 'blocks'] as const;
const FLOAT = /^float@([1-9]\d*)$/;
const STREAM =
  /^stream-([1-9]\d?)-(2|4|8|16|32)-(1|2|4|8|16|32)-(1|2)(1|2)(-describes)?((?:-no(?:keys|values|lookups|blocks))*)$/;

/**
 * `float@SEGMENTS`, segments a split, or `stream-WARPS-SEGMENTS-REPLICAS-PAIRS`, PAIRS two digits: of keys and of values, as StreamDivision says. `-describes`
 * makes the table of blocks with each dispatch; `-nokeys`, `-novalues`, `-nolookups` and `-noblocks` leave out what they name, to learn what the rest takes.
 * @throws InvalidInputError
 */
export function parseVariant(name: string): AttentionVariant {
  const float = FLOAT.exec(name);
  if (float) return { name, segmentsPerSplit: Number(float[1]) };
  const stream = STREAM.exec(name);
  if (!stream)
    throw new InvalidInputError(
      `"${name}" is no variant: float@4, or as in stream-4-8-1-22 (warps, segments, replicas, pairs of keys and of values)`,
      '--variant',
    );
  const [warps, segments, replicas] = stream.slice(1, 4).map(Number) as [number, number, number];
  const [pairs, valuePairs] = stream.slice(4, 6).map(Number) as [1 | 2, 1 | 2];
  const without = PARTS.filter((part) => stream[7]!.includes(`-no${part}`));
  const describes = stream[6] !== undefined;
  return {
    ...{ name, segmentsPerSplit: segments },
    stream: { warps, segments, replicas, pairs, valuePairs, describes, without },
  };
}
