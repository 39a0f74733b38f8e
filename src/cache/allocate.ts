import {
  DROP,
  massBytes,
  recordBytes,
  recordCells,
  segmentHeaderBytes,
  TIER_IDS,
  TIERS,
} from '../kernels/layout.ts';
import type { CacheView, Plan } from './policy.ts';
import { FRESH } from './policy.ts';
import { countTiers } from './segments.ts';

/** Bytes that all segment blocks hold under a plan, every header, map, mean, scale, padding and mass counted. */
export function planBytes(view: CacheView, plan: Plan, mass: boolean): number {
  let bytes = 0;
  view.segments.forEach((segment, s) => {
    bytes += view.layers * segmentHeaderBytes(view.kvHeads);
    const tiers = plan.tiers[s]!;
    for (let r = 0; r < view.layers * view.kvHeads; r++) {
      const counts = countTiers(tiers, r * segment.tokens, segment.tokens);
      bytes += recordBytes(segment.tokens, counts, view.headDim);
      if (mass) bytes += massBytes(recordCells(counts));
    }
  });
  return bytes;
}

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

export interface AllocationInput {
  readonly view: CacheView;
  /** ln relevance in the order of each segment's tiers. */
  readonly logRelevance: readonly Float32Array[];
  /** Finest first. */
  readonly options: readonly TierOption[];
  /** Expected harm when all tokens of a head are held in an option, by head (layer * kvHeads + kvHead). Rises from option to option. */
  readonly distortions: readonly ArrayLike<number>[];
  readonly budgetBytes: number;
  readonly mass: boolean;
}

const BISECTIONS = 24;

/**
 * Minimises the sum of relevance x distortion under a byte budget with one Lagrange multiplier over all layers and heads: the plan of
 * the smallest lambda whose exact bytes fit. Never promotes. When even the largest lambda does not fit, that plan is returned.
 */
export function allocate(input: AllocationInput): Plan {
  const { view, options, logRelevance, distortions } = input;
  const heads = view.layers * view.kvHeads;
  const thresholds = distortions.map((d) => hullThresholds(options, d));
  const tierOf = Uint8Array.from(options, (o) => o.tier);
  const last = options.length - 1;

  const choose = (limits: Float64Array, log: number, old: number): number => {
    let i = 0;
    while (i < last && log < limits[i]!) i++;
    const tier = tierOf[i]!;
    return old === FRESH || tier > old ? tier : old;
  };
  // Padding makes bytes no plain sum over tokens: counts are gathered per record.
  const counts = new Uint8Array(TIER_IDS);
  const bytesAt = (lambda: number): number => {
    let bytes = view.segments.length * view.layers * segmentHeaderBytes(view.kvHeads);
    view.segments.forEach((segment, s) => {
      const n = segment.tokens;
      const relevance = logRelevance[s]!;
      for (let r = 0; r < heads; r++) {
        counts.fill(0);
        for (let i = r * n; i < (r + 1) * n; i++)
          counts[choose(thresholds[r]!, relevance[i]! - lambda, segment.tiers[i]!)]!++;
        counts[DROP] = 0;
        bytes += recordBytes(n, counts, view.headDim);
        if (input.mass) bytes += massBytes(recordCells(counts));
      }
    });
    return bytes;
  };

  let low = -60;
  let high = 60;
  if (bytesAt(low) <= input.budgetBytes) high = low;
  else
    for (let i = 0; i < BISECTIONS; i++) {
      const middle = (low + high) / 2;
      if (bytesAt(middle) <= input.budgetBytes) high = middle;
      else low = middle;
    }
  return {
    tiers: view.segments.map((segment, s) => {
      const n = segment.tokens;
      const out = new Uint8Array(segment.tiers.length);
      for (let i = 0; i < out.length; i++) {
        const limits = thresholds[Math.floor(i / n)]!;
        out[i] = choose(limits, logRelevance[s]![i]! - high, segment.tiers[i]!);
      }
      return out;
    }),
  };
}

/** Finest tier id of a table entry; for reports. */
export const tierName = (id: number): string => (id === DROP ? 'drop' : (TIERS[id]?.name ?? `tier ${id}`));
