import { UnsupportedModelError } from '../core/errors.ts';
import { CODEBOOKS } from './layout.ts';
import { type HeadShape, MAX_CELLS } from './webgpu-prelude.ts';

/** How attend-staged.wgsl divides its work. Results do not depend on it but for the order of sums over warps. */
export interface StagedDivision {
  /** Warps of 32 lanes that work on a record together: 2, 4 or 8. */
  readonly warps: number;
  /** Copies of the table of levels: a power of two up to 32; with fewer, lanes wait for one another. */
  readonly replicas: number;
  /** 16-byte vectors of a record that workgroup memory holds, rounded up to whole loads of the workgroup: 544 hold most records at a ratio of 4. */
  readonly vectors: number;
  /** The next record's loads are under way while one is worked on, at the price of registers. */
  readonly prefetch: boolean;
}

/** What a measurement leaves out, to learn what the rest takes; the results are wrong then. */
export interface StagedParts {
  readonly keys: boolean;
  readonly values: boolean;
}

/** Loads of a lane that bring in a record. */
export const loadsOf = ({ warps, vectors }: StagedDivision): number => Math.ceil(vectors / (warps * 32));

/** Whether attend-staged.wgsl has a lane for every channel. */
export const isStageable = ({ headDim }: HeadShape): boolean => [32, 64, 128].includes(headDim);

/** Bytes of workgroup memory. */
export function stagedBytes({ heads, kvHeads, headDim }: HeadShape, division: StagedDivision): number {
  const { warps, replicas } = division;
  const group = heads / kvHeads;
  const stage = loadsOf(division) * warps * 32;
  const outputs = warps * group * (headDim / 4) * 16;
  return (
    (stage + Math.floor(stage / 8)) * 16 +
    PAIRS * replicas * 4 +
    16 * 16 +
    Math.max(MAX_CELLS * group * 4, outputs) +
    MAX_CELLS * 4 +
    group * (headDim / 8) * 48 +
    group * 32 +
    // The count of blocks, and the exchange of devices without subgroups.
    (16 + warps * 32 * 8)
  );
}
/** Pairs of codes of 4 bits, then of 3. */
const PAIRS = 256 + 64;

/** The finest of these divisions that a device's workgroup memory has room for. */
export function stagedDivision(limits: GPUSupportedLimits, shape: HeadShape): StagedDivision {
  const found = DIVISIONS.find((d) => stagedBytes(shape, d) <= limits.maxComputeWorkgroupStorageSize);
  if (!found)
    throw new UnsupportedModelError(
      `staged attention of ${shape.headDim} channels needs ${stagedBytes(shape, DIVISIONS.at(-1)!)} bytes of workgroup memory, this GPU has ${limits.maxComputeWorkgroupStorageSize}`,
    );
  return found;
}
const DIVISIONS: readonly StagedDivision[] = [
  { warps: 4, replicas: 8, vectors: 640, prefetch: false },
  { warps: 4, replicas: 4, vectors: 256, prefetch: false },
  { warps: 2, replicas: 1, vectors: 64, prefetch: false },
];

/** A codebook's levels as bytes, 4 in each word. */
const levelWords = (bits: 3 | 4): string => {
  const words = new Uint32Array(Int8Array.from({ length: 16 }, (_, i) => CODEBOOKS[bits][i] ?? 0).buffer);
  return `const LEVELS_${bits} = vec4<u32>(${[...words].map((word) => `${word}u`).join(', ')});`;
};

/** Constants of attend-staged.wgsl. */
export const stagedPrelude = (
  { headDim }: HeadShape,
  division: StagedDivision,
  parts: StagedParts = { keys: true, values: true },
): string =>
  [
    `const WARPS = ${division.warps}u;`,
    `const REPLICAS = ${division.replicas}u;`,
    `const LOG_REPLICAS = ${Math.log2(division.replicas)}u;`,
    `const LOADS = ${loadsOf(division)}u;`,
    `const PREFETCH = ${division.prefetch};`,
    `const KEYS = ${parts.keys};`,
    `const VALUES = ${parts.values};`,
    `const HALF_VECS = ${headDim / 16}u;`,
    ...([3, 4] as const).map(levelWords),
    '',
  ].join('\n');
