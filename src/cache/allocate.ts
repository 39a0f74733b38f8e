import {
  cellBytes,
  DROP,
  massBytes,
  recordBytes,
  recordCells,
  recordFixedBytes,
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

/** ln lambda beyond which nothing changes. */
const LIMIT = 60;
/** The first guess looks at one token of so many. */
const SAMPLE = 16;
/** Width of the bracket that is first tried around the guess; each further bisection halves it. */
const BRACKET = 0.25;
const BISECTIONS = 14;

/** One record's tokens that are not settled yet. */
interface OpenRecord {
  readonly segment: number;
  readonly head: number;
  /** Indices into the segment's tiers, the first `open` of them, and their tiers at the middle of the bracket. */
  readonly index: Int32Array;
  readonly middle: Uint8Array;
  open: number;
  /** Settled tokens by tier. */
  readonly settled: Uint8Array;
  /** As last measured: final once no token is open. */
  bytes: number;
}

/**
 * Minimises the sum of relevance x distortion under a byte budget with one Lagrange multiplier over all layers and heads: the plan of
 * the smallest lambda, to 1e-4, whose exact bytes fit. Never promotes. When even the largest lambda does not fit, that plan is returned.
 */
export function allocate(input: AllocationInput): Plan {
  const { view, options, logRelevance, budgetBytes } = input;
  const heads = view.layers * view.kvHeads;
  const thresholds = input.distortions.map((d) => hullThresholds(options, d));
  const tierOf = Uint8Array.from(options, (o) => o.tier);
  const steps = options.length - 1;

  /** Tiers of all tokens at lambda. */
  const tiersAt = (lambda: number): Uint8Array[] =>
    view.segments.map(({ tokens, tiers: old }, s) => {
      const out = new Uint8Array(old.length);
      const log = logRelevance[s]!;
      for (let head = 0; head < heads; head++) {
        const limits = thresholds[head]!;
        for (let at = head * tokens; at < (head + 1) * tokens; at++) {
          const x = log[at]! - lambda;
          let i = 0;
          while (i < steps && x < limits[i]!) i++;
          const tier = tierOf[i]!;
          const before = old[at]!;
          out[at] = before === FRESH || tier > before ? tier : before;
        }
      }
      return out;
    });
  const fits = (tiers: readonly Uint8Array[]): boolean =>
    planBytes(view, { tiers }, input.mass) <= budgetBytes;

  // A bracket around the guess. Tiers only rise with lambda.
  const guess = guessLambda(input, thresholds);
  let high = guess;
  let coarse = tiersAt(high);
  let low = high;
  let fine = coarse;
  if (fits(coarse)) {
    for (let width = BRACKET; fits(fine); width *= 2) {
      if (low <= -LIMIT) return { tiers: fine };
      [high, coarse] = [low, fine];
      low = Math.max(low - width, -LIMIT);
      fine = tiersAt(low);
    }
  } else {
    for (let width = BRACKET; !fits(coarse); width *= 2) {
      if (high >= LIMIT) return { tiers: coarse };
      [low, fine] = [high, coarse];
      high = Math.min(high + width, LIMIT);
      coarse = tiersAt(high);
    }
  }

  // A token whose tier is the same at both ends is settled: bisection looks at the others alone.
  const headers = view.segments.length * view.layers * segmentHeaderBytes(view.kvHeads);
  const records = view.segments.flatMap((_, s) =>
    Array.from({ length: heads }, (_, head) => openRecord(s, head)),
  );
  for (let step = 0; step < BISECTIONS; step++) {
    const middle = (low + high) / 2;
    let bytes = headers;
    for (const record of records) {
      if (record.open > 0) measure(record, middle);
      bytes += record.bytes;
    }
    const ends = bytes <= budgetBytes ? coarse : fine;
    if (ends === coarse) high = middle;
    else low = middle;
    for (const record of records) if (record.open > 0) settle(record, ends);
  }
  return { tiers: coarse };

  function openRecord(segment: number, head: number): OpenRecord {
    const { tokens } = view.segments[segment]!;
    const index = Int32Array.from({ length: tokens }, (_, i) => head * tokens + i);
    const record: OpenRecord = {
      ...{ segment, head, index, middle: new Uint8Array(tokens) },
      ...{ open: tokens, settled: new Uint8Array(TIER_IDS), bytes: 0 },
    };
    close(record);
    if (record.open === 0) record.bytes = bytesOf(record, record.settled.slice());
    return record;
  }

  /** Padding makes bytes no plain sum over tokens: they follow from the counts. */
  function bytesOf({ segment }: OpenRecord, counts: Uint8Array): number {
    counts[DROP] = 0;
    const bytes = recordBytes(view.segments[segment]!.tokens, counts, view.headDim);
    return input.mass ? bytes + massBytes(recordCells(counts)) : bytes;
  }

  function measure(record: OpenRecord, lambda: number): void {
    const { index, middle, open } = record;
    const log = logRelevance[record.segment]!;
    const old = view.segments[record.segment]!.tiers;
    const limits = thresholds[record.head]!;
    const counts = record.settled.slice();
    for (let n = 0; n < open; n++) {
      const at = index[n]!;
      const x = log[at]! - lambda;
      let i = 0;
      while (i < steps && x < limits[i]!) i++;
      const tier = tierOf[i]!;
      const before = old[at]!;
      const now = before === FRESH || tier > before ? tier : before;
      middle[n] = now;
      counts[now]!++;
    }
    record.bytes = bytesOf(record, counts);
  }

  function settle(record: OpenRecord, ends: readonly Uint8Array[]): void {
    const end = ends[record.segment]!;
    for (let n = 0; n < record.open; n++) end[record.index[n]!] = record.middle[n]!;
    close(record);
  }

  /** Counts what is settled and keeps the rest open. */
  function close(record: OpenRecord): void {
    const [a, b] = [fine[record.segment]!, coarse[record.segment]!];
    let open = 0;
    for (let n = 0; n < record.open; n++) {
      const at = record.index[n]!;
      if (a[at] === b[at]) record.settled[b[at]!]!++;
      else record.index[open++] = at;
    }
    record.open = open;
  }
}

/** About the lambda that meets the budget, from a sample of the tokens and without padding. */
function guessLambda(input: AllocationInput, thresholds: readonly Float64Array[]): number {
  const { view, options, logRelevance } = input;
  const bytesOfTier = new Float64Array(TIER_IDS);
  for (const { id } of TIERS) bytesOfTier[id] = cellBytes(id, view.headDim, input.mass);
  const steps = options.length - 1;
  let fixed = view.segments.length * view.layers * segmentHeaderBytes(view.kvHeads);
  for (const { tokens } of view.segments)
    fixed += view.layers * view.kvHeads * recordFixedBytes(tokens, view.headDim);
  const bytesAt = (lambda: number): number => {
    let bytes = fixed;
    view.segments.forEach(({ tokens, tiers }, s) => {
      const log = logRelevance[s]!;
      for (let at = 0; at < tiers.length; at += SAMPLE) {
        const limits = thresholds[Math.floor(at / tokens)]!;
        const x = log[at]! - lambda;
        let i = 0;
        while (i < steps && x < limits[i]!) i++;
        const tier = options[i]!.tier;
        const before = tiers[at]!;
        bytes += SAMPLE * bytesOfTier[before === FRESH || tier > before ? tier : before]!;
      }
    });
    return bytes;
  };
  let low = -LIMIT;
  let high = LIMIT;
  while (high - low > BRACKET) {
    const middle = (low + high) / 2;
    if (bytesAt(middle) <= input.budgetBytes) high = middle;
    else low = middle;
  }
  return high;
}
