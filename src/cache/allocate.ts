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
  const tiersAt = (lambda: number): Uint8Array[] =>
    view.segments.map((segment, s) => {
      const n = segment.tokens;
      const out = new Uint8Array(segment.tiers.length);
      for (let r = 0; r < heads; r++)
        for (let i = r * n; i < (r + 1) * n; i++)
          out[i] = choose(thresholds[r]!, logRelevance[s]![i]! - lambda, segment.tiers[i]!);
      return out;
    });

  // Tiers only rise with lambda. So a token whose tier is the same at both ends of the bracket is settled: each bisection looks at the others alone.
  let low = -60;
  let high = 60;
  const fine = tiersAt(low);
  if (planBytes(view, { tiers: fine }, input.mass) <= input.budgetBytes) return { tiers: fine };
  const coarse = tiersAt(high);
  const records = view.segments.flatMap((segment, s) =>
    Array.from({ length: heads }, (_, r) => openRecord(s, r, segment.tokens)),
  );
  const headers = view.segments.length * view.layers * segmentHeaderBytes(view.kvHeads);
  for (let step = 0; step < BISECTIONS; step++) {
    const middle = (low + high) / 2;
    let bytes = headers;
    for (const record of records) {
      if (record.open > 0) measure(record, middle);
      bytes += record.bytes;
    }
    const fits = bytes <= input.budgetBytes;
    if (fits) high = middle;
    else low = middle;
    for (const record of records) if (record.open > 0) settle(record, fits);
  }
  return { tiers: coarse };

  interface OpenRecord {
    readonly segment: number;
    readonly head: number;
    readonly tokens: number;
    /** Indices of tokens not settled yet, the first `open` of them, and their tiers at the middle. */
    readonly index: Int32Array;
    readonly middle: Uint8Array;
    open: number;
    /** Settled tokens by tier. */
    readonly settled: Uint8Array;
    bytes: number;
  }

  function openRecord(segment: number, head: number, tokens: number): OpenRecord {
    const index = Int32Array.from({ length: tokens }, (_, i) => head * tokens + i);
    return {
      ...{ segment, head, tokens, index, middle: new Uint8Array(tokens) },
      ...{ open: tokens, settled: new Uint8Array(TIER_IDS), bytes: 0 },
    };
  }

  /** The record's bytes at lambda. Padding makes them no plain sum over tokens: they follow from the counts. */
  function measure(record: OpenRecord, lambda: number): void {
    const { segment, head, index, middle } = record;
    const counts = record.settled.slice();
    for (let i = 0; i < record.open; i++) {
      const at = index[i]!;
      const tier = choose(
        thresholds[head]!,
        logRelevance[segment]![at]! - lambda,
        view.segments[segment]!.tiers[at]!,
      );
      middle[i] = tier;
      counts[tier]!++;
    }
    counts[DROP] = 0;
    record.bytes = recordBytes(record.tokens, counts, view.headDim);
    if (input.mass) record.bytes += massBytes(recordCells(counts));
  }

  function settle(record: OpenRecord, fits: boolean): void {
    const { segment, index, middle, settled } = record;
    const end = fits ? coarse[segment]! : fine[segment]!;
    let open = 0;
    for (let i = 0; i < record.open; i++) {
      const at = index[i]!;
      end[at] = middle[i]!;
      if (fine[segment]![at] === coarse[segment]![at]) settled[coarse[segment]![at]!]!++;
      else index[open++] = at;
    }
    record.open = open;
    // No token is open: what was measured at the middle holds from here on.
  }
}

/** Finest tier id of a table entry; for reports. */
export const tierName = (id: number): string => (id === DROP ? 'drop' : (TIERS[id]?.name ?? `tier ${id}`));
