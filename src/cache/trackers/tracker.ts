import type { CacheView, MassNeeds, SegmentView } from '../policy.ts';

/**
 * Attention history of every token, as a relevance. The kernels add each query's attention (all heads of a group) to a cell's fixed-point
 * mass; a tracker says how the mass ages, which queries count, and how it is read at an epoch. 2 bytes a cell, whichever tracker.
 */
export interface Tracker {
  readonly mass: MassNeeds;
  /** Relevance >= 0, one array a segment in the order of its tiers; 0 for dropped tokens. */
  read(view: CacheView): Float32Array[];
  /** The same head by head: fills `line` with the relevance of a head's tokens of all segments in position order. */
  lines(view: CacheView): (line: Float32Array, head: number) => void;
}

/**
 * Relevance as mass times a factor of the token's position.
 * @param factorAt of a view, asked once a plan
 */
export function scaledMass(
  mass: MassNeeds,
  factorAt: (view: CacheView) => (position: number) => number,
): Tracker {
  const factorsOf = (view: CacheView): Float64Array[] => {
    const at = factorAt(view);
    return view.segments.map(({ tokens, start }) =>
      Float64Array.from({ length: tokens }, (_, i) => at(start + i)),
    );
  };
  const massOf = ({ mass }: SegmentView): Uint16Array => {
    if (!mass) throw new Error('the view has no mass');
    return mass;
  };
  return {
    mass,
    read: (view) => {
      const factors = factorsOf(view);
      return view.segments.map((segment, s) => {
        const mass = massOf(segment);
        const out = new Float32Array(mass.length);
        for (let at = 0; at < out.length; at += segment.tokens) scale(mass, at, factors[s]!, out, at);
        return out;
      });
    },
    lines: (view) => {
      const factors = factorsOf(view);
      const masses = view.segments.map(massOf);
      return (line, head) => {
        let at = 0;
        for (const [s, own] of factors.entries()) {
          scale(masses[s]!, head * own.length, own, line, at);
          at += own.length;
        }
      };
    },
  };
}

/** Masses of a head's tokens of a segment, from `from` on, times their factors, into out[to ...]. */
function scale(mass: Uint16Array, from: number, factors: Float64Array, out: Float32Array, to: number): void {
  for (let i = 0; i < factors.length; i++) out[to + i] = mass[from + i]! * factors[i]!;
}
