import { floatToHalf } from '../../src/core/half.ts';
import type { SourceMatrix, SourceType } from '../../src/kernels/weights.ts';

/** A small generator with a fixed seed (mulberry32): the same numbers in every run. */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Nearly normal: what trained weights and activations look like. */
export function normal(random: () => number): () => number {
  return () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

const BLOCK: Record<SourceType, number> = { F32: 1, F16: 1, Q8_0: 32, Q4_0: 32, Q4_1: 32 };

/** A matrix as a GGUF file would hold it, with scales and minima of a trained model's size. */
export function randomSource(type: SourceType, n: number, k: number, seed: number): SourceMatrix {
  const random = seeded(seed);
  const gauss = normal(random);
  const bytes = { F32: 4, F16: 2, Q8_0: 34, Q4_0: 18, Q4_1: 20 }[type];
  const data = new Uint8Array((n * k * bytes) / BLOCK[type]);
  const view = new DataView(data.buffer);
  for (let at = 0; at < data.length; at += bytes) {
    if (type === 'F32') view.setFloat32(at, gauss() * 0.05, true);
    else if (type === 'F16') view.setUint16(at, floatToHalf(gauss() * 0.05), true);
    else {
      const scale = 0.004 + 0.01 * random();
      for (let i = at; i < at + bytes; i++) data[i] = random() * 256;
      view.setUint16(at, floatToHalf(type === 'Q8_0' ? scale / 8 : scale), true);
      if (type === 'Q4_1') view.setUint16(at + 2, floatToHalf(-scale * (7 + 2 * gauss())), true);
    }
  }
  return { type, data, n, k };
}
