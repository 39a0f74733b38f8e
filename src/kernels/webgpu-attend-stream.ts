import { CODEBOOKS } from './layout.ts';
import { type HeadShape, MAX_CELLS } from './webgpu-prelude.ts';

/** How attend-stream.wgsl divides its work. */
export interface StreamDivision {
  /** Warps of 32 lanes that work on a split together. */
  readonly warps: number;
  /** Segments of a split at most. */
  readonly segments: number;
}

/** Whether attend-stream.wgsl has lanes for the channels. */
export const isStreamable = ({ headDim }: HeadShape): boolean => headDim === 64 || headDim === 128;

/** A codebook's levels as bytes, 4 in each word. */
const levelWords = (bits: 3 | 4): string => {
  const words = new Uint32Array(Int8Array.from({ length: 16 }, (_, i) => CODEBOOKS[bits][i] ?? 0).buffer);
  return `const LEVELS_${bits} = vec4<u32>(${[...words].map((word) => `${word}u`).join(', ')});`;
};

/** What the runtime uses. */
export const STREAM: StreamDivision = { warps: 4, segments: 8 };

/** Vectors of 16 bytes of a split's and kvHead's table, as attend-describe.wgsl writes it. */
export const tableVectors = (segments: number): number => 1 + segments + (segments * MAX_CELLS) / 4;

/** Constants of attend-describe.wgsl and attend-stream.wgsl. */
export const streamPrelude = ({ warps, segments }: StreamDivision): string =>
  [
    `const WARPS = ${warps}u;`,
    `const SEGMENTS = ${segments}u;`,
    `const TABLE = ${tableVectors(segments)}u;`,
    ...([3, 4] as const).map(levelWords),
    '',
  ].join('\n');
