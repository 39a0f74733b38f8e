import { UnsupportedModelError } from '../core/errors.ts';
import { CODEBOOKS, SEGMENT_TOKENS } from './layout.ts';
import { type HeadShape, MAX_CELLS } from './webgpu-prelude.ts';

/** How attend-split.wgsl divides its work. */
export interface SplitDivision {
  /** Warps of 32 lanes that work on a split together: 2, 4 or 8. */
  readonly warps: number;
  /** Segments of a split at most: 2, 4 or 8; with more an integer sum could leave its 32 bits. */
  readonly segments: number;
  /** Copies of the table of levels: a power of two up to 32; with fewer, lanes wait for one another. */
  readonly replicas: number;
  /** Queries of 15 bits instead of 8 for keys of 1 to 4 bits. */
  readonly fine: boolean;
}

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

/** What a measurement leaves out, to learn what the rest takes; the results are wrong then. */
export interface SplitParts {
  readonly keys: boolean;
  readonly values: boolean;
}

/** Whether attend-split.wgsl has a lane for every 16 channels. */
export const isSplittable = ({ headDim }: HeadShape): boolean => headDim === 64 || headDim === 128;

const blocksOf = ({ segments }: SplitDivision): number => (segments * MAX_CELLS) / 4;
/** Blocks of 4 tokens that a lane finds. */
export const ownBlocks = (division: SplitDivision): number =>
  Math.ceil(blocksOf(division) / (division.warps * 32));

/** Pairs of codes of 4 bits, then of 3. */
const PAIRS = 256 + 64;
/** Bytes of workgroup memory. */
export function splitBytes({ heads, kvHeads, headDim }: HeadShape, division: SplitDivision): number {
  const { warps, segments, replicas } = division;
  const group = heads / kvHeads;
  const blocks = blocksOf(division);
  return (
    PAIRS * replicas * 4 +
    Math.max(blocks * group * 16, warps * group * headDim * 4) +
    blocks * (group + 1) * 8 +
    // Groups, their sizes and starts; records; queries; maxima, sums and means; the exchange of devices without subgroups.
    (16 * segments * 24 + segments * 16 + group * (headDim / 8) * 48) +
    (2 * group * warps + segments * group + group + warps * 64) * 4
  );
}

/** @throws UnsupportedModelError where a device has too little workgroup memory for the division, or the heads another size */
export function checkSplit(limits: GPUSupportedLimits, shape: HeadShape, division: SplitDivision): void {
  if (!isSplittable(shape))
    throw new UnsupportedModelError(
      `attention of whole splits wants 64 or 128 channels, not ${shape.headDim}`,
    );
  const bytes = splitBytes(shape, division);
  if (bytes > limits.maxComputeWorkgroupStorageSize)
    throw new UnsupportedModelError(
      `attention of splits of ${division.segments * SEGMENT_TOKENS} tokens with ${division.replicas} replicas needs ${bytes} bytes of workgroup memory, this GPU has ${limits.maxComputeWorkgroupStorageSize}`,
    );
}

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

/** Constants of attend-split.wgsl. */
export const splitPrelude = ({
  warps,
  segments,
  replicas,
  fine,
  keys = true,
  values = true,
}: SplitDivision & Partial<SplitParts>): string =>
  [
    `const WARPS = ${warps}u;`,
    `const SEGMENTS = ${segments}u;`,
    `const REPLICAS = ${replicas}u;`,
    `const LOG_REPLICAS = ${Math.log2(replicas)}u;`,
    `const FINE = ${fine};`,
    `const KEYS = ${keys};`,
    `const VALUES = ${values};`,
    ...([3, 4] as const).map(levelWords),
    '',
  ].join('\n');
