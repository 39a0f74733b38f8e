/**
 * Random values as a pure function of their indices: no generator keeps state, so that a resumed conversation draws what an
 * uninterrupted one would have drawn. Mixing: the finaliser of MurmurHash3 (A. Appleby, public domain), chained over the indices.
 */
export function hash32(...indices: readonly number[]): number {
  let h = 0x9e3779b9;
  for (const index of indices) {
    h = Math.imul(h ^ (index >>> 0), 0x85ebca6b);
    h ^= h >>> 13;
    h = Math.imul(h, 0xc2b2ae35);
    h ^= h >>> 16;
    h = (h + 0x9e3779b9) | 0;
  }
  return h >>> 0;
}

/** Uniform in [0, 1) with 53 bits. */
export function uniform01(...indices: readonly number[]): number {
  const high = hash32(...indices, 1) >>> 5;
  const low = hash32(...indices, 2) >>> 6;
  return (high * 67108864 + low) / 9007199254740992;
}
