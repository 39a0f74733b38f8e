import { InvalidInputError } from '../core/errors.ts';
import type { SplitDivision, SplitParts } from '../kernels/webgpu-split.ts';

export interface AttentionVariant {
  readonly name: string;
  readonly segmentsPerSplit: number;
  /** attend-split.wgsl, so divided; undefined: attend.wgsl, which the runtime uses. */
  readonly split?: SplitDivision & Partial<SplitParts>;
}

/** What is worth knowing of a device that nothing was measured on: divisions, replicas, and what each part takes. */
export const SWEEP: readonly string[] = [
  'float@4',
  ...['4-4-8', '4-8-8', '4-2-8', '2-2-8', '2-4-8', '8-4-8', '8-8-8'].map((division) => `split-${division}`),
  ...['4-4-1', '4-4-4', '4-4-16'].map((division) => `split-${division}`),
  'split-4-4-8-fine',
  'split-4-4-8-nokeys',
  'split-4-4-8-novalues',
  'split-4-4-8-nokeys-novalues',
];

const NAME = /^(?:float@(\d+)|split-(2|4|8)-(2|4|8)-(1|2|4|8|16|32)((?:-(?:fine|nokeys|novalues))*))$/;

/**
 * `float@SEGMENTS`, segments a split, or `split-WARPS-SEGMENTS-REPLICAS[-fine][-nokeys][-novalues]`, as SplitDivision and SplitParts say.
 * @throws InvalidInputError
 */
export function parseVariant(name: string): AttentionVariant {
  const found = NAME.exec(name);
  const [float, warps, segments, replicas] = [1, 2, 3, 4].map((i) => Number(found?.[i])) as [
    number,
    number,
    number,
    number,
  ];
  if (!found || float < 1)
    throw new InvalidInputError(
      `"${name}" is no variant: float@4, or as in split-4-8-8-fine (2, 4 or 8 warps; 2, 4 or 8 segments; 1 to 32 replicas)`,
      '--variant',
    );
  if (found[1] !== undefined) return { name, segmentsPerSplit: float };
  const flags = found[5]!;
  return {
    ...{ name, segmentsPerSplit: segments },
    split: {
      ...{ warps, segments, replicas, fine: flags.includes('fine') },
      ...{ keys: !flags.includes('nokeys'), values: !flags.includes('novalues') },
    },
  };
}
