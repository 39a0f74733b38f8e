import { THRESHOLDS } from './cache-math.ts';
import {
  CODEBOOK_UNIT,
  CODEBOOKS,
  DROP,
  hadamardSize,
  PLAIN_GROUP,
  pad4,
  SEGMENT_TOKENS,
  TIERS,
  UNIT_INVERSE,
} from './layout.ts';

/** What the shaders are specialised for: attention of one model. */
export interface HeadShape {
  readonly heads: number;
  readonly kvHeads: number;
  /** Multiple of 4, at most 256. */
  readonly headDim: number;
}

/** Cells of a segment at most: every tier's tokens are padded to a multiple of 4. */
export const MAX_CELLS = pad4(SEGMENT_TOKENS + 3 * TIERS.filter((tier) => !tier.plain).length);

/** Bits as a nibble: 16 and 32 become 9 and 10. */
const nibble = (bits: number): number => (bits === 16 ? 9 : bits === 32 ? 10 : bits);
const packed = (half: 'kBits' | 'vBits', from: number): string =>
  `${TIERS.slice(from, from + 8).reduce((word, tier, i) => word + nibble(tier[half]) * 16 ** i, 0)}u`;

/** Lanes that share a block of 4 tokens, 8 channels each; at least 4, so that a lane can keep one token's score. */
export const lanesOf = (headDim: number): number => Math.max(4, 2 ** Math.ceil(Math.log2(headDim / 8)));

/** A float32 in full, with the point that WGSL wants. */
const f32Literal = (x: number): string => `${Math.fround(x).toExponential()}f`;

/** Warps of 32 lanes that work on one split; they share its table of levels and its scores. */
export const WARPS = 2;

/**
 * The constants in front of every shader, from layout.ts: the layout is written down once.
 * @param plain for records of plain tiers, whose vectors are not rotated: kernels of their own, so that the others do not pay for them
 */
export function shaderPrelude({ heads, kvHeads, headDim }: HeadShape, plain = false): string {
  return [
    `const HEADS = ${heads}u;`,
    `const KV_HEADS = ${kvHeads}u;`,
    `const GROUP = ${heads / kvHeads}u;`,
    `const HEAD_DIM = ${headDim}u;`,
    `const HADAMARD = ${hadamardSize(headDim)}u;`,
    `const HADAMARD_NORM = ${f32Literal(1 / Math.sqrt(hadamardSize(headDim)))};`,
    `const PLAIN = ${plain};`,
    `const PLAIN_GROUPS = ${Math.ceil(headDim / PLAIN_GROUP)}u;`,
    `const DROP = ${DROP}u;`,
    `const TIER_COUNT = ${TIERS.length}u;`,
    `const MAX_CELLS = ${MAX_CELLS}u;`,
    ...([1, 2, 3, 4] as const).map((b) => `const UNIT_INVERSE_${b} = ${f32Literal(UNIT_INVERSE[b])};`),
    `const K_BITS_LOW = ${packed('kBits', 0)};`,
    `const K_BITS_HIGH = ${packed('kBits', 8)};`,
    `const V_BITS_LOW = ${packed('vBits', 0)};`,
    `const V_BITS_HIGH = ${packed('vBits', 8)};`,
    '',
  ].join('\n');
}

/** Constants of attend.wgsl. */
export function attendPrelude({ headDim }: HeadShape): string {
  let at = 0;
  const starts = ([4, 3, 2, 1] as const).map((bits) => {
    const start = at;
    at += CODEBOOKS[bits].length;
    return `const LEVELS_${bits} = ${start}u;`;
  });
  return [`const LANES = ${lanesOf(headDim)}u;`, `const WARPS = ${WARPS}u;`, ...starts, ''].join('\n');
}

/** Fills attend.wgsl's table: each level once a lane. */
export const fillLut = (): string =>
  `fn fillLut(lane: u32) {\n${([4, 3, 2, 1] as const)
    .flatMap((bits) => CODEBOOKS[bits])
    .map((level, i) => `  lut[${i}u * 32u + lane] = ${level}.0;`)
    .join('\n')}\n}\n`;

/** Repeats the lines between `// each $x` and `// end $x` for x = 0 .. counts.x - 1, $x replaced; they nest. */
export const unroll = (source: string, counts: Readonly<Record<string, number>>): string =>
  source.replaceAll(/^ *\/\/ each \$(\w)\n([\s\S]*?)^ *\/\/ end \$\1\n/gm, (_, name: string, body: string) =>
    Array.from({ length: counts[name]! }, (_, i) =>
      unroll(body.replaceAll(`$${name}`, String(i)), counts),
    ).join(''),
  );

/** What encoding needs of the codebooks: levels of codes, levels below a magnitude (in codebook units, doubled), units. */
export function codebookFunctions(): string {
  const all = [1, 2, 3, 4] as const;
  const cases = (line: (bits: 1 | 2 | 3 | 4) => string): string =>
    all.map((bits) => `    case ${bits}u: { ${line(bits)} }`).join('\n');
  const body = (name: string, line: (bits: 1 | 2 | 3 | 4) => string, other: string): string =>
    `fn ${name} {\n  switch bits {\n${cases(line)}\n    default: { ${other} }\n  }\n}\n`;
  return [
    body(
      'levelOf(bits: u32, code: u32) -> f32',
      (bits) =>
        `var levels = array(${CODEBOOKS[bits].map((x) => `${x}.0`).join(', ')}); return levels[code];`,
      'return f32(bitcast<i32>(code << 24u) >> 24u);',
    ),
    body(
      'levelsBelow(bits: u32, x: f32) -> u32',
      (bits) => `return ${THRESHOLDS[bits].map((t) => `select(0u, 1u, x > ${t}.0)`).join(' + ') || '0u'};`,
      'return 0u;',
    ),
    body('unitOf(bits: u32) -> f32', (bits) => `return ${f32Literal(CODEBOOK_UNIT[bits])};`, 'return 1.0;'),
  ].join('\n');
}
