/** A tier and its bytes a token-head. */
export interface TierOption {
  readonly tier: number;
  readonly bytes: number;
}

/**
 * Relevance over lambda at which an option starts to be worth its bytes: log thresholds, one between each two options. An option off the
 * lower convex hull of (bytes, distortion) gets an empty interval. thresholds[i]: below it, option i + 1 or later is chosen.
 */
export function hullThresholds(options: readonly TierOption[], distortion: ArrayLike<number>): Float64Array {
  const thresholds = new Float64Array(options.length - 1).fill(Number.NEGATIVE_INFINITY);
  let from = 0;
  while (from < options.length - 1) {
    let best = from + 1;
    let bestSlope = Number.NEGATIVE_INFINITY;
    for (let j = from + 1; j < options.length; j++) {
      const slope =
        (options[from]!.bytes - options[j]!.bytes) / Math.max(distortion[j]! - distortion[from]!, 1e-30);
      if (slope > bestSlope) {
        bestSlope = slope;
        best = j;
      }
    }
    thresholds.fill(Math.log(bestSlope), from, best);
    from = best;
  }
  return thresholds;
}
