import { InvalidInputError } from '../core/errors.ts';
import type { StagedDivision, StagedParts } from '../kernels/webgpu-staged.ts';

export interface AttentionVariant {
  readonly name: string;
  readonly segmentsPerSplit: number;
  /** attend-staged.wgsl, so divided; undefined: attend.wgsl, which the runtime uses. */
  readonly staged?: StagedDivision & Partial<StagedParts>;
}

/** What is worth knowing of a device that nothing was measured on: divisions, splits, and what each part takes. */
export const SWEEP: readonly string[] = [
  'float@4',
  'float@1',
  ...['4-8', '4-4', '4-16', '4-1', '8-8', '8-4', '2-8', '2-1', '1-1'].map((pair) => `staged-${pair}-640@4`),
  ...[1, 2, 8, 16].map((split) => `staged-4-8-640@${split}`),
  'staged-4-8-640-prefetch@4',
  'staged-8-8-768-prefetch@8',
  // Records read where they lie.
  'staged-4-8-64@4',
  'staged-4-8-640-nokeys@4',
  'staged-4-8-640-novalues@4',
  'staged-4-8-640-nokeys-novalues@4',
];

const NAME = /^(float|staged-(\d+)-(\d+)-(\d+)((?:-(?:prefetch|nokeys|novalues))*))@(\d+)$/;

/**
 * `float@SEGMENTS` or `staged-WARPS-REPLICAS-VECTORS[-prefetch][-nokeys][-novalues]@SEGMENTS`: SEGMENTS a split; the rest as StagedDivision and StagedParts say.
 * @throws InvalidInputError
 */
export function parseVariant(name: string): AttentionVariant {
  const found = NAME.exec(name);
  const [warps, replicas, vectors, segmentsPerSplit] = [2, 3, 4, 6].map((i) => Number(found?.[i])) as [
    number,
    number,
    number,
    number,
  ];
  const staged = found?.[1] !== 'float';
  if (
    !found ||
    segmentsPerSplit < 1 ||
    (staged && (![1, 2, 4, 8].includes(warps) || ![1, 2, 4, 8, 16, 32].includes(replicas) || vectors < 64))
  )
    throw new InvalidInputError(
      `"${name}" is no variant: float@4, or as in staged-4-8-640-prefetch@4 (1 to 8 warps, 1 to 32 replicas, at least 64 vectors, segments a split)`,
      '--variant',
    );
  if (!staged) return { name, segmentsPerSplit };
  const flags = found[5]!;
  return {
    ...{ name, segmentsPerSplit },
    staged: {
      ...{ warps, replicas, vectors, prefetch: flags.includes('prefetch') },
      ...{ keys: !flags.includes('nokeys'), values: !flags.includes('novalues') },
    },
  };
}
