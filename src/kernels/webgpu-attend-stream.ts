import { CODEBOOKS } from './layout.ts';
import { type HeadShape, MAX_CELLS } from './webgpu-prelude.ts';

/** How attend-stream.wgsl divides its work. */
export interface StreamDivision {
  /** Warps of 32 lanes that work on a split together. */
  readonly warps: number;
  /** Segments of a split at most. */
  readonly segments: number;
  /** Copies of the table of levels: a power of two up to 32; with fewer, lanes wait for one another, with more, fewer workgroups fit on a multiprocessor. */
  readonly replicas: number;
  /** Pairs of chunks (8 channels) of a lane, of keys and of values. With 1, lanes need fewer registers and are more. */
  readonly pairs: 1 | 2;
  readonly valuePairs: 1 | 2;
  /** What a measurement leaves out. */
  readonly without?: readonly ('keys' | 'values' | 'lookups' | 'blocks')[];
}

/** Whether attend-stream.wgsl has lanes for the channels. */
export const isSplittable = ({ headDim }: HeadShape): boolean => headDim === 64 || headDim === 128;

/** A codebook's levels as bytes, 4 in each word. */
const levelWords = (bits: 3 | 4): string => {
  const words = new Uint32Array(Int8Array.from({ length: 16 }, (_, i) => CODEBOOKS[bits][i] ?? 0).buffer);
  return `const LEVELS_${bits} = vec4<u32>(${[...words].map((word) => `${word}u`).join(', ')});`;
};

/** What the runtime uses. */
export const STREAM: StreamDivision = { warps: 4, segments: 8, replicas: 1, pairs: 2, valuePairs: 2 };

/** Vectors of 16 bytes of a split's and kvHead's table, as attend-describe.wgsl writes it. */
export const tableVectors = (segments: number): number => 1 + segments + (segments * MAX_CELLS) / 4;

/** Constants of attend-describe.wgsl and attend-stream.wgsl. */
export const streamPrelude = ({
  warps,
  segments,
  replicas,
  pairs,
  valuePairs,
  without = [],
}: StreamDivision): string =>
  [
    `const WARPS = ${warps}u;`,
    `const SEGMENTS = ${segments}u;`,
    `const PAIRS = ${pairs}u;`,
    `const VALUE_PAIRS = ${valuePairs}u;`,
    `const TABLE = ${tableVectors(segments)}u;`,
    `const REPLICAS = ${replicas}u;`,
    `const LOG_REPLICAS = ${Math.log2(replicas)}u;`,
    ...(['keys', 'values', 'lookups', 'blocks'] as const).map(
      (part) => `const ${part.toUpperCase()} = ${!without.includes(part)};`,
    ),
    ...([3, 4] as const).map(levelWords),
    '',
  ].join('\n');
