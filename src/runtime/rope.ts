import type { ModelConfig } from '../core/config.ts';

/** Rounded twice, as 1 / base^x is in training code: the single rounding differs in the last bit of every third frequency. */
export const ropeFrequencies = ({ headDim, ropeTheta }: ModelConfig): Float64Array =>
  Float64Array.from({ length: headDim / 2 }, (_, i) => {
    const power = Math.fround(ropeTheta ** ((2 * i) / headDim));
    return Math.fround(1 / power);
  });

/**
 * Cosines and sines of positions `position` ... `position + rows - 1`, f32 [rows, headDim / 2]. Frequencies and angles are rounded to float32
 * before the cosine, as the training code of these models does: at position 7,000 the rounding of the angle itself is visible in the fourth digit.
 * From `trained` positions on nothing was rounded in training, and rounding would be an error that grows with the position.
 */
export function ropeTables(
  frequencies: Float64Array,
  position: number,
  rows: number,
  cosines: Float32Array<ArrayBuffer> = new Float32Array(rows * frequencies.length),
  sines: Float32Array<ArrayBuffer> = new Float32Array(rows * frequencies.length),
  trained = Number.POSITIVE_INFINITY,
): { cosines: Float32Array<ArrayBuffer>; sines: Float32Array<ArrayBuffer> } {
  const half = frequencies.length;
  for (let r = 0; r < rows; r++)
    for (let i = 0; i < half; i++) {
      const exact = (position + r) * frequencies[i]!;
      const angle = position + r < trained ? Math.fround(exact) : exact;
      cosines[r * half + i] = Math.cos(angle);
      sines[r * half + i] = Math.sin(angle);
    }
  return { cosines, sines };
}
