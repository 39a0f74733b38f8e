import { CODEBOOKS, DROP, MASS_ONE, pad4, SEGMENT_TOKENS, TIERS } from './layout.ts';

/** What the shaders are specialised for: attention of one model. */
export interface HeadShape {
  readonly heads: number;
  readonly kvHeads: number;
  /** Multiple of 4, at most 256. */
  readonly headDim: number;
}

/** Cells of a segment at most: every tier's tokens are padded to a multiple of 4. */
export const MAX_CELLS = pad4(SEGMENT_TOKENS + 3 * TIERS.length);

/** Bits as a nibble: 16 and 32 become 9 and 10. */
const nibble = (bits: number): number => (bits === 16 ? 9 : bits === 32 ? 10 : bits);
const packed = (half: 'kBits' | 'vBits', from: number): string =>
  `${TIERS.slice(from, from + 8).reduce((word, tier, i) => word + nibble(tier[half]) * 16 ** i, 0)}u`;

/** Lanes that share a block of 4 tokens, 8 channels each; at least 4, so that a lane can keep one token's score. */
export const lanesOf = (headDim: number): number => Math.max(4, 2 ** Math.ceil(Math.log2(headDim / 8)));

/** The constants in front of every shader, from layout.ts: the layout is written down once. */
export function shaderPrelude({ heads, kvHeads, headDim }: HeadShape): string {
  const levels: number[] = [];
  const starts = ([4, 3, 2, 1] as const).map((bits) => {
    const at = levels.length;
    levels.push(...CODEBOOKS[bits]);
    return `const LEVELS_${bits} = ${at}u;`;
  });
  return [
    `const HEADS = ${heads}u;`,
    `const KV_HEADS = ${kvHeads}u;`,
    `const GROUP = ${heads / kvHeads}u;`,
    `const HEAD_DIM = ${headDim}u;`,
    `const LANES = ${lanesOf(headDim)}u;`,
    `const DROP = ${DROP}u;`,
    `const TIER_COUNT = ${TIERS.length}u;`,
    `const MAX_CELLS = ${MAX_CELLS}u;`,
    `const MASS_ONE = ${MASS_ONE}.0;`,
    `const K_BITS_LOW = ${packed('kBits', 0)};`,
    `const K_BITS_HIGH = ${packed('kBits', 8)};`,
    `const V_BITS_LOW = ${packed('vBits', 0)};`,
    `const V_BITS_HIGH = ${packed('vBits', 8)};`,
    ...starts,
    '',
  ].join('\n');
}

/** Fills attend.wgsl's table: each level once a lane. */
export const fillLut = (): string =>
  `fn fillLut(lane: u32) {\n${([4, 3, 2, 1] as const)
    .flatMap((bits) => CODEBOOKS[bits])
    .map((level, i) => `  lut[${i}u * 32u + lane] = ${level}.0;`)
    .join('\n')}\n}\n`;
