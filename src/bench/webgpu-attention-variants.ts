import { InvalidInputError } from '../core/errors.ts';
import type { SplitDivision, SplitParts, StreamDivision } from '../kernels/webgpu-split.ts';

export interface AttentionVariant {
  readonly name: string;
  readonly segmentsPerSplit: number;
  /** attend-split.wgsl, so divided; undefined: attend.wgsl, which the runtime uses. */
  readonly split?: SplitDivision & Partial<SplitParts>;
  /** attend-stream.wgsl, so divided. */
  readonly stream?: StreamDivision & { readonly describes: boolean };
}

/** What is worth knowing of a device that nothing was measured on: divisions, replicas, and what each part takes. */
export const SWEEP: readonly string[] = [
  ...['4-8-1-22', '4-8-1-21', '5-8-1-22', '6-8-1-22', '6-8-1-21', '7-8-1-22', '7-8-1-21', '3-8-1-22'],
  ...['8-8-1-22', '8-16-1-22', '8-16-1-21', '10-16-1-22', '10-16-1-21', '12-16-1-22', '12-16-1-21'],
  ...['4-8-1-22-describes', '4-8-1-22-noblocks', '4-8-1-22-nolookups', '4-8-1-22-nokeys-novalues'],
].map((name) => `stream-${name}`);

const PARTS = ['keys', 'values', 'lookups', 'blocks'] as const;
const STREAM =
  /^stream-(\d{1,2})-(2|4|8|16|32)-(1|2|4|8|16|32)-(1|2)(1|2)(-describes)?((?:-no(?:keys|values|lookups|blocks))*)$/;
const NAME = /^(?:float@(\d+)|split-(2|4|8)-(2|4|8)-(1|2|4|8|16|32)((?:-(?:fine|nokeys|novalues))*))$/;

/**
 * `float@SEGMENTS`, segments a split, `stream-WARPS-SEGMENTS-REPLICAS-PAIRS[-describes][-nokeys][-novalues][-nolookups]`, as StreamDivision says, or `split-WARPS-SEGMENTS-REPLICAS[-fine][-nokeys][-novalues]`, as SplitDivision and SplitParts say.
 * @throws InvalidInputError
 */
export function parseVariant(name: string): AttentionVariant {
  const stream = STREAM.exec(name);
  if (stream) {
    const [warps, segments, replicas] = stream.slice(1, 4).map(Number) as [number, number, number];
    const [pairs, valuePairs] = stream.slice(4, 6).map(Number) as [1 | 2, 1 | 2];
    const without = PARTS.filter((part) => stream[7]!.includes(`-no${part}`));
    const describes = stream[6] !== undefined;
    return {
      ...{ name, segmentsPerSplit: segments },
      stream: { warps, segments, replicas, pairs, valuePairs, describes, without },
    };
  }
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
