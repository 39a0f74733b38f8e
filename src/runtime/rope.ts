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
 */
export function ropeTables(
  frequencies: Float64Array,
  position: number,
  rows: number,
  cosines: Float32Array<ArrayBuffer> = new Float32Array(rows * frequencies.length),
  sines: Float32Array<ArrayBuffer> = new Float32Array(rows * frequencies.length),
): { cosines: Float32Array<ArrayBuffer>; sines: Float32Array<ArrayBuffer> } {
  const half = frequencies.length;
  for (let r = 0; r < rows; r++)
    for (let i = 0; i < half; i++) {
      const angle = Math.fround((position + r) * frequencies[i]!);
      cosines[r * half + i] = Math.cos(angle);
      sines[r * half + i] = Math.sin(angle);
    }
  return { cosines, sines };
}
