import { align } from '../core/arena.ts';
import {
  DROP,
  massBytes,
  recordBytes,
  recordCells,
  SEGMENT_TOKENS,
  segmentHeaderBytes,
  TIER_IDS,
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
    for (let layer = 0; layer < view.layers; layer++) {
      let masses = 0;
      for (let r = layer * view.kvHeads; r < (layer + 1) * view.kvHeads; r++) {
        const counts = countTiers(tiers, r * segment.tokens, segment.tokens);
        bytes += recordBytes(segment.tokens, counts, view.headDim);
        masses += massBytes(recordCells(counts));
      }
      // Records are multiples of the arena's step, masses of half of it.
      if (mass) bytes += align(masses);
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
  /** Positive, in the order of each segment's tiers. */
  readonly relevance: readonly Float32Array[];
  /** Finest first; eight at most. */
  readonly options: readonly TierOption[];
  /** Expected harm when all tokens of a head are held in an option, by head (layer * kvHeads + kvHead). Rises from option to option. */
  readonly distortions: readonly ArrayLike<number>[];
  readonly budgetBytes: number;
  readonly mass: boolean;
}

/** Relevance is compared as the upper 16 bits of its float32: a monotone key of 128 steps an octave. */
const KEY_BITS = 16;
const KEYS = 1 << (32 - KEY_BITS - 1);
const STEPS_PER_OCTAVE = 128;
/** ln lambda in key steps beyond which nothing changes. */
const LIMIT = 100 * STEPS_PER_OCTAVE;
/** The first guess looks at one token of so many. */
const SAMPLE = 8;
/** Half the width of the bracket that is first tried around the guess. */
const BRACKET = 8;
const MAX_OPTIONS = 8;
/** Cells go by four: a record's group with room left takes the best tokens of coarser groups, which costs no byte. */
const GROUP = 4;

/** Runs a generator to its end. */
export function lastOf<T>(steps: Generator<unknown, T>): T {
  for (;;) {
    const step = steps.next();
    if (step.done) return step.value;
  }
}

/** All steps of `allocateSteps` at once. */
export const allocate = (input: AllocationInput): Plan => lastOf(allocateSteps(input));

/**
 * Minimises the sum of relevance x distortion under a byte budget with one Lagrange multiplier over all layers and heads: the plan of
 * the smallest lambda, to half a percent, whose exact bytes fit; as many of the first layers as fit beside it take the next smaller one, since many
 * tokens may lie at the same threshold. Never promotes. When even the largest lambda does not fit, that plan is returned.
 * Yields the share that is done, 0 to 1.
 */
export function* allocateSteps(input: AllocationInput): Generator<number, Plan> {
  const allocation = new Allocation(input);
  for (const [s] of input.view.segments.entries()) {
    allocation.addKeys(s);
    yield (0.3 * (s + 1)) / input.view.segments.length;
  }
  let done = 0.3;
  // Every pass brings the end nearer by a share of what is left: how many there are is not known before.
  const pass = (): number => {
    done += (1 - done) / 8;
    return done;
  };
  // By layer, at the last lambda that fitted and at the last that did not: in the end at `high` and at `low`.
  const fitting = new Float64Array(input.view.layers);
  const above = new Float64Array(input.view.layers);
  const fits = (lambda: number): boolean => {
    const byLayer = allocation.bytesAt(lambda, 1);
    const right = sum(byLayer) <= input.budgetBytes;
    (right ? fitting : above).set(byLayer);
    return right;
  };
  const guess = allocation.guess(input.budgetBytes);
  yield pass();
  let low: number;
  let high: number;
  if (fits(guess)) {
    high = guess;
    low = guess - BRACKET;
    for (let width = BRACKET; low > -LIMIT && fits(low); width *= 2) {
      high = low;
      low -= width;
      yield pass();
    }
    if (low <= -LIMIT && fits(-LIMIT)) return allocation.planAt(-LIMIT, 0);
  } else {
    low = guess;
    high = guess + BRACKET;
    for (let width = BRACKET; high < LIMIT && !fits(high); width *= 2) {
      low = high;
      high += width;
      yield pass();
    }
    if (high >= LIMIT) return allocation.planAt(LIMIT, 0);
  }
  while (high - low > 1) {
    yield pass();
    const middle = Math.round((low + high) / 2);
    if (fits(middle)) high = middle;
    else low = middle;
  }
  yield pass();
  let left = input.budgetBytes - sum(fitting);
  let lower = 0;
  for (; lower < input.view.layers; lower++) {
    left -= above[lower]! - fitting[lower]!;
    if (left < 0) break;
  }
  return allocation.planAt(high, lower);
}

function sum(list: Float64Array): number {
  let all = 0;
  for (const x of list) all += x;
  return all;
}

class Allocation {
  readonly #input: AllocationInput;
  readonly #heads: number;
  /** By head: ln relevance over lambda at which each option starts to be too dear, in key steps (not rounded). */
  readonly #thresholds: readonly Float64Array[];
  readonly #tierOf: Uint8Array;
  /** By segment: each token's key, and the first option that it may get. */
  readonly #keys: Uint16Array[] = [];
  readonly #least: Uint8Array[] = [];
  /** Option by key, of the head being looked at. */
  readonly #option = new Uint8Array(KEYS);
  /** Tokens of a record by option chosen and by first option allowed. */
  readonly #classes = new Uint8Array(MAX_OPTIONS * MAX_OPTIONS);
  readonly #counts = new Uint8Array(TIER_IDS);
  readonly #byLayer: Float64Array;

  constructor(input: AllocationInput) {
    if (input.options.length > MAX_OPTIONS) throw new Error(`more than ${MAX_OPTIONS} options`);
    this.#input = input;
    this.#heads = input.view.layers * input.view.kvHeads;
    this.#byLayer = new Float64Array(input.view.layers);
    this.#tierOf = Uint8Array.from(input.options, (o) => o.tier);
    this.#thresholds = input.distortions.map((d) => hullThresholds(input.options, d));
  }

  addKeys(s: number): void {
    const { tiers } = this.#input.view.segments[s]!;
    const relevance = this.#input.relevance[s]!;
    const bits = new Uint32Array(relevance.buffer, relevance.byteOffset, relevance.length);
    const keys = new Uint16Array(tiers.length);
    const least = new Uint8Array(tiers.length);
    const first = new Uint8Array(256);
    for (let old = 0; old < FRESH; old++) {
      const index = this.#tierOf.findIndex((tier) => tier >= old);
      first[old] = index < 0 ? this.#tierOf.length - 1 : index;
    }
    for (let at = 0; at < keys.length; at++) {
      keys[at] = bits[at]! >>> KEY_BITS;
      least[at] = first[tiers[at]!]!;
    }
    this.#keys[s] = keys;
    this.#least[s] = least;
  }

  /** Options by key at lambda, for a head: lower keys get later options. */
  #lookUp(head: number, lambda: number): void {
    const thresholds = this.#thresholds[head]!;
    let end = KEYS;
    for (let i = 0; i < thresholds.length; i++) {
      const from = keyAt(thresholds[i]! + (lambda * Math.LN2) / STEPS_PER_OCTAVE);
      if (from < end) {
        this.#option.fill(i, from, end);
        end = from;
      }
    }
    this.#option.fill(thresholds.length, 0, end);
  }

  /** Bytes of each layer at lambda, of one token of `sample` each (1: exact). Overwritten by the next call. */
  bytesAt(lambda: number, sample: number): Float64Array {
    const { view, mass } = this.#input;
    const byLayer = this.#byLayer.fill(view.segments.length * segmentHeaderBytes(view.kvHeads));
    // Whether a layer's masses end within the arena's step: each is a multiple of half of it.
    const uneven = new Uint8Array(view.segments.length);
    for (let head = 0; head < this.#heads; head++) {
      if (head % view.kvHeads === 0) uneven.fill(0);
      this.#lookUp(head, lambda);
      let bytes = 0;
      for (const [s, { tokens }] of view.segments.entries()) {
        this.#classify(s, head * tokens, tokens, sample);
        if (sample === 1) fillGroups(this.#classes, this.#tierOf.length);
        this.#count(sample);
        bytes += recordBytes(tokens, this.#counts, view.headDim);
        if (!mass) continue;
        const cells = recordCells(this.#counts);
        bytes += massBytes(cells);
        uneven[s]! ^= (cells >> 2) & 1;
        if (head % view.kvHeads === view.kvHeads - 1) bytes += uneven[s]! * 8;
      }
      byLayer[Math.floor(head / view.kvHeads)]! += bytes;
    }
    return byLayer;
  }

  #classify(s: number, from: number, tokens: number, sample: number): void {
    const keys = this.#keys[s]!;
    const least = this.#least[s]!;
    const option = this.#option;
    const classes = this.#classes.fill(0);
    for (let at = from; at < from + tokens; at += sample) {
      const first = least[at]!;
      const chosen = option[keys[at]!]!;
      classes[(chosen > first ? chosen : first) * MAX_OPTIONS + first]!++;
    }
  }

  #count(factor: number): void {
    const counts = this.#counts.fill(0);
    for (let i = 0; i < this.#tierOf.length; i++) {
      let n = 0;
      for (let c = i * MAX_OPTIONS; c < (i + 1) * MAX_OPTIONS; c++) n += this.#classes[c]!;
      const tier = this.#tierOf[i]!;
      if (tier !== DROP) counts[tier] = n * factor;
    }
  }

  /** About the lambda that meets the budget, from a sample of the tokens. */
  guess(budget: number): number {
    let low = -LIMIT;
    let high = LIMIT;
    while (high - low > BRACKET) {
      const middle = Math.round((low + high) / 2);
      if (sum(this.bytesAt(middle, SAMPLE)) <= budget) high = middle;
      else low = middle;
    }
    return high;
  }

  /** The plan at lambda; its first `lower` layers as at the next smaller one. */
  planAt(lambda: number, lower: number): Plan {
    const { view } = this.#input;
    const tiers = view.segments.map(({ tiers: old }) => new Uint8Array(old.length));
    const chosen = new Uint8Array(SEGMENT_TOKENS);
    for (let head = 0; head < this.#heads; head++) {
      this.#lookUp(head, head < lower * view.kvHeads ? lambda - 1 : lambda);
      for (const [s, { tokens, tiers: old }] of view.segments.entries()) {
        const from = head * tokens;
        const keys = this.#keys[s]!.subarray(from, from + tokens);
        const least = this.#least[s]!.subarray(from, from + tokens);
        for (let t = 0; t < tokens; t++) chosen[t] = Math.max(this.#option[keys[t]!]!, least[t]!);
        this.#classify(s, from, tokens, 1);
        for (const { to, option, first, count } of fillGroups(this.#classes, this.#tierOf.length))
          takeBest(chosen, keys, least, { to, option, first, count });
        const out = tiers[s]!;
        for (let t = 0; t < tokens; t++) {
          const tier = this.#tierOf[chosen[t]!]!;
          const before = old[from + t]!;
          out[from + t] = before === FRESH || tier > before ? tier : before;
        }
      }
    }
    return { tiers };
  }
}

interface Move {
  readonly to: number;
  /** Of the tokens whose option was `option` and that may have options from `first` on, the `count` with the highest keys. */
  readonly option: number;
  readonly first: number;
  readonly count: number;
}
const NO_MOVES: readonly Move[] = [];

/**
 * Fills each option's last group of four with tokens of coarser options, nearest first, that may still be held so finely. `classes`: tokens by
 * [option][first option allowed], changed in place. The last option drops: it needs no filling.
 */
function fillGroups(classes: Uint8Array, options: number): readonly Move[] {
  let moves: Move[] | undefined;
  for (let to = 0; to < options - 1; to++) {
    let n = 0;
    for (let c = to * MAX_OPTIONS; c < (to + 1) * MAX_OPTIONS; c++) n += classes[c]!;
    let room = (GROUP - (n % GROUP)) % GROUP;
    for (let option = to + 1; room > 0 && option < options; option++)
      for (let first = to; room > 0 && first >= 0; first--) {
        const count = Math.min(room, classes[option * MAX_OPTIONS + first]!);
        if (count === 0) continue;
        classes[option * MAX_OPTIONS + first]! -= count;
        classes[to * MAX_OPTIONS + first]! += count;
        room -= count;
        moves ??= [];
        moves.push({ to, option, first, count });
      }
  }
  return moves ?? NO_MOVES;
}

/** Makes a move: the earlier of two equal keys goes first. */
function takeBest(
  chosen: Uint8Array,
  keys: Uint16Array,
  least: Uint8Array,
  { to, option, first, count }: Move,
): void {
  for (let n = 0; n < count; n++) {
    let best = -1;
    for (let t = 0; t < keys.length; t++)
      if (chosen[t] === option && least[t] === first && (best < 0 || keys[t]! > keys[best]!)) best = t;
    chosen[best] = to;
  }
}

const float = new Float32Array(1);
const word = new Uint32Array(float.buffer);
/** The lowest key whose relevance is not below e^log. */
function keyAt(log: number): number {
  float[0] = Math.exp(Math.min(Math.max(log, -80), 80));
  return Math.min(KEYS, (word[0]! + (1 << KEY_BITS) - 1) >>> KEY_BITS);
}
