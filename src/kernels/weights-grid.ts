import { bfloatAtLeast, bfloatToFloat } from '../core/half.ts';

/** An affine grid of 256 values in 32 bits: value = step * (origin + byte). */
export interface Grid {
  readonly word: number;
  readonly step: number;
  readonly origin: number;
}
const ORIGIN_LIMIT = 32767;

/**
 * The finest grid that covers lo..hi. Its step is a bfloat16, so that step and origin share a word; the step is chosen
 * first and the bytes are chosen against the rounded grid, so the rounding of the step costs coverage, not accuracy.
 */
export function gridFor(lo: number, hi: number): Grid {
  // 254, not 255 steps: rounding the origin down may cost one at the top.
  let step = Math.max((hi - lo) / 254, Math.max(Math.abs(lo), Math.abs(hi)) / (ORIGIN_LIMIT - 256));
  if (!(step > 2 ** -126)) step = 2 ** -126;
  const bits = bfloatAtLeast(step);
  step = bfloatToFloat(bits);
  const origin = Math.floor(lo / step);
  return { word: ((bits << 16) | (origin & 0xffff)) >>> 0, step, origin };
}

export function readGrid(word: number): Grid {
  return { word, step: bfloatToFloat(word >>> 16), origin: (word << 16) >> 16 };
}

/** The grid's byte nearest to a value. */
export const gridByte = (grid: Grid, value: number): number =>
  Math.min(255, Math.max(0, Math.round(value / grid.step - grid.origin)));
export const gridValue = (grid: Grid, byte: number): number => grid.step * (grid.origin + byte);
