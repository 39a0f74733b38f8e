import type { CacheView, MassNeeds } from '../policy.ts';

/**
 * Attention history of every token, as a relevance. The kernels add each query's attention (all heads of a group) to a cell's fixed-point
 * mass; a tracker says how the mass ages, which queries count, and how it is read at an epoch. 2 bytes a cell, whichever tracker.
 */
export interface Tracker {
  readonly mass: MassNeeds;
  /** Relevance >= 0, one array a segment in the order of its tiers; 0 for dropped tokens. */
  read(view: CacheView): Float32Array[];
}

/** Relevance as mass times a factor of the token's position. */
export function scaledMass(view: CacheView, factor: (position: number) => number): Float32Array[] {
  return view.segments.map(({ tokens, start, mass }) => {
    if (!mass) throw new Error('the view has no mass');
    const factors = Float64Array.from({ length: tokens }, (_, i) => factor(start + i));
    const out = new Float32Array(mass.length);
    for (let head = 0; head < out.length; head += tokens)
      for (let i = 0; i < tokens; i++) out[head + i] = mass[head + i]! * factors[i]!;
    return out;
  });
}
