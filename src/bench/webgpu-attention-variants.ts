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
  ...['2-4-1', '2-4-4', '4-8-1', '4-8-2', '4-8-4', '4-8-8', '8-8-1', '8-8-4', '8-16-2', '8-16-4'],
  ...[
    '8-16-8',
    '16-16-4',
    '16-32-4',
    '16-32-16',
    '4-8-4-narrow',
    '8-8-4-narrow',
    '8-16-4-narrow',
    '16-16-4-narrow',
    '8-16-4-describes',
    '8-16-4-nolookups',
  ],
  ...['8-16-4-nokeys', '8-16-4-novalues', '8-16-4-nokeys-novalues'],
].map((name) => (name.includes('@') ? name : `stream-${name}`));

const STREAM =
  /^stream-(1|2|4|8|16)-(2|4|8|16|32)-(1|2|4|8|16|32)(-narrow)?(-describes)?((?:-no(?:keys|values|lookups))*)$/;
const NAME = /^(?:float@(\d+)|split-(2|4|8)-(2|4|8)-(1|2|4|8|16|32)((?:-(?:fine|nokeys|novalues))*))$/;

/**
 * `float@SEGMENTS`, segments a split, `stream-WARPS-SEGMENTS-REPLICAS[-narrow][-describes][-nokeys][-novalues][-nolookups]`, as StreamDivision says, or `split-WARPS-SEGMENTS-REPLICAS[-fine][-nokeys][-novalues]`, as SplitDivision and SplitParts say.
 * @throws InvalidInputError
 */
export function parseVariant(name: string): AttentionVariant {
  const stream = STREAM.exec(name);
  if (stream) {
    const without = (['keys', 'values', 'lookups'] as const).filter((part) =>
      stream[6]!.includes(`-no${part}`),
    );
    const [warps, segments, replicas] = stream.slice(1, 4).map(Number) as [number, number, number];
    return {
      ...{ name, segmentsPerSplit: segments },
      stream: {
        warps,
        segments,
        replicas,
        describes: stream[5] !== undefined,
        without,
        pairs: stream[4] ? 1 : 2,
      },
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
