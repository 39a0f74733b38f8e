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
  'float@4',
  ...['4-8-1-22', '4-8-1-21', '4-8-1-12', '4-8-1-11', '2-4-1-22', '2-4-1-21', '4-4-1-22', '4-4-1-21'],
  ...['8-16-1-22', '8-8-1-21', '8-16-1-11', '4-8-4-22', '2-8-1-22', '2-8-1-21', '4-16-1-22'],
  ...['4-8-1-22-describes', '4-8-1-22-nolookups', '4-8-1-22-nokeys', '4-8-1-22-novalues'],
  '4-8-1-22-nokeys-novalues',
].map((name) => (name.includes('@') ? name : `stream-${name}`));

const PARTS = ['keys', 'values', 'lookups'] as const;
const STREAM =
  /^stream-(1|2|4|8|16)-(2|4|8|16|32)-(1|2|4|8|16|32)-(1|2)(1|2)(-describes)?((?:-no(?:keys|values|lookups))*)$/;
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
