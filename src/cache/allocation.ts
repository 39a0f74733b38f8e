import { release } from '../core/release.ts';
import { massBytes, RecordSizes, SEGMENT_TOKENS, segmentHeaderBytes } from '../kernels/layout.ts';
import { fillGroups, MAX_OPTIONS, type Move, makeMove } from './fill-groups.ts';
import { hullThresholds, type TierOption } from './hull.ts';
import { type CacheView, FRESH, type Plan } from './policy.ts';

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
  /** The keys take the place of the relevance, whose memory is given back with theirs. */
  readonly overwrite?: boolean;
}

/** Relevance is compared as the upper 16 bits of its float32: a monotone key of 128 steps an octave. */
const KEY_BITS = 16;
const KEYS = 1 << (32 - KEY_BITS - 1);
const STEPS_PER_OCTAVE = 128;
/** ln lambda in key steps beyond which nothing changes. */
export const LIMIT = 100 * STEPS_PER_OCTAVE;
/** The first guess looks at one token of so many. */
const SAMPLE = 8;
/** Half the width of the bracket that is first tried around the guess. */
export const BRACKET = 8;

/** Tokens of a segment, or a sample of them, [heads][tokens]: a key times MAX_OPTIONS plus the first option that the token may get. */
interface Tokens {
  readonly words: Uint32Array;
  /** Of a head. */
  readonly tokens: number;
}
/** Tokens are counted in so many places in turn: a count that was just written is slow to read. */
const PLACES = 4;

/** Classes, option * MAX_OPTIONS + first, that tokens get where an option is chosen: the bytes by first option allowed. */
const PATTERNS = new BigUint64Array(
  Uint8Array.from({ length: MAX_OPTIONS * MAX_OPTIONS }, (_, i) => {
    const first = i % MAX_OPTIONS;
    return Math.max(Math.floor(i / MAX_OPTIONS), first) * MAX_OPTIONS + first;
  }).buffer,
);

/** The tokens of a view as an allocation sees them: what they take, and which options they get, at a lambda. */
export class Allocation {
  readonly #input: AllocationInput;
  readonly #heads: number;
  /** By head: ln relevance over lambda at which each option starts to be too dear. */
  readonly #thresholds: readonly Float64Array[];
  readonly #tierOf: Uint8Array;
  readonly #sizes: RecordSizes;
  /** By segment. */
  readonly #all: Tokens[] = [];
  readonly #sample: Tokens[] = [];
  /** Of all tokens. */
  #leastKey = KEYS - 1;
  #mostKey = 0;
  /** Class by word, of the head being looked at; the same by key. */
  readonly #classOf = new Uint8Array(KEYS * MAX_OPTIONS);
  readonly #classesOf = new BigUint64Array(this.#classOf.buffer);
  /** Tokens of a record by place and class, as bytes, by fours, by eights. */
  readonly #places = new Uint8Array(PLACES * MAX_OPTIONS * MAX_OPTIONS);
  readonly #fours = new Int32Array(this.#places.buffer);
  readonly #eights = new Float64Array(this.#places.buffer);
  /** Tokens of a record by option chosen and by first option allowed: the first place. And by option. */
  readonly #classes = this.#places.subarray(0, MAX_OPTIONS * MAX_OPTIONS);
  readonly #counts = new Int32Array(MAX_OPTIONS);
  /** Bytes of each layer as countLayer found them. */
  readonly byLayer: Float64Array;

  constructor(input: AllocationInput) {
    if (input.options.length > MAX_OPTIONS) throw new Error(`more than ${MAX_OPTIONS} options`);
    this.#input = input;
    this.#heads = input.view.layers * input.view.kvHeads;
    this.byLayer = new Float64Array(input.view.layers);
    this.#tierOf = Uint8Array.from(input.options, (o) => o.tier);
    this.#sizes = new RecordSizes(
      input.options.map((o) => o.tier),
      input.view.headDim,
    );
    this.#thresholds = input.distortions.map((d) => hullThresholds(input.options, d));
  }

  addKeys(s: number): void {
    const { tiers, tokens } = this.#input.view.segments[s]!;
    const relevance = this.#input.relevance[s]!;
    const bits = new Uint32Array(relevance.buffer, relevance.byteOffset, relevance.length);
    const words = this.#input.overwrite ? bits : new Uint32Array(tiers.length);
    const first = new Uint8Array(256);
    for (let old = 0; old < FRESH; old++) {
      const index = this.#tierOf.findIndex((tier) => tier >= old);
      first[old] = index < 0 ? this.#tierOf.length - 1 : index;
    }
    let low = this.#leastKey;
    let high = this.#mostKey;
    for (let at = 0; at < words.length; at++) {
      const key = bits[at]! >>> KEY_BITS;
      words[at] = key * MAX_OPTIONS + first[tiers[at]!]!;
      if (key < low) low = key;
      if (key > high) high = key;
    }
    this.#leastKey = low;
    this.#mostKey = high;
    this.#all[s] = { words, tokens };
    const few = Math.ceil(tokens / SAMPLE);
    const sample = new Uint32Array(this.#heads * few);
    for (let head = 0, to = 0; head < this.#heads; head++)
      for (let t = 0; t < tokens; t += SAMPLE, to++) sample[to] = words[head * tokens + t]!;
    this.#sample[s] = { words: sample, tokens: few };
  }

  /** No counting or planning afterwards. */
  release(): void {
    for (const { words } of [...this.#all, ...this.#sample]) release(words);
    release(this.#classOf);
    release(this.#places);
  }

  /** Classes at lambda, for a head: lower keys get later options. Only of keys that tokens have. */
  #lookUp(head: number, lambda: number): void {
    const thresholds = this.#thresholds[head]!;
    let end = this.#mostKey + 1;
    for (let i = 0; i < thresholds.length; i++) {
      const from = Math.max(this.#leastKey, keyAt(thresholds[i]! + (lambda * Math.LN2) / STEPS_PER_OCTAVE));
      if (from < end) {
        this.#classesOf.fill(PATTERNS[i]!, from, end);
        end = from;
      }
    }
    this.#classesOf.fill(PATTERNS[thresholds.length]!, this.#leastKey, end);
  }

  /** Puts a layer's bytes at lambda into byLayer; of one token of SAMPLE each where a sample is enough. */
  countLayer(layer: number, lambda: number, sampled = false): void {
    const { view, mass } = this.#input;
    const { segments, kvHeads } = view;
    const counts = this.#counts;
    let bytes = segments.length * segmentHeaderBytes(kvHeads);
    // Whether the segment's masses end within the arena's step: each is a multiple of half of it.
    const uneven = new Uint8Array(segments.length);
    for (let head = layer * kvHeads; head < (layer + 1) * kvHeads; head++) {
      this.#lookUp(head, lambda);
      for (let s = 0; s < segments.length; s++) {
        if (sampled) this.#countSample(this.#sample[s]!, head);
        else {
          this.#classify(this.#all[s]!, head);
          fillGroups(this.#classes, counts, this.#tierOf.length);
        }
        bytes += this.#sizes.bytes(segments[s]!.tokens, counts);
        if (!mass) continue;
        bytes += massBytes(this.#sizes.cells);
        uneven[s]! ^= (this.#sizes.cells >> 2) & 1;
      }
    }
    if (mass) for (const odd of uneven) bytes += odd * 8;
    this.byLayer[layer] = bytes;
  }

  /** Tokens by option, each of a sample for SAMPLE. */
  #countSample({ words, tokens }: Tokens, head: number): void {
    const counts = this.#counts;
    for (let i = 0; i < MAX_OPTIONS; i++) counts[i] = 0;
    for (let at = head * tokens; at < (head + 1) * tokens; at++)
      counts[this.#classOf[words[at]!]! >> 3]! += SAMPLE;
  }

  /** Counts a head's tokens of a segment by class and by option. */
  #classify({ words, tokens }: Tokens, head: number): void {
    const classOf = this.#classOf;
    const places = this.#places;
    const fours = this.#fours;
    const eights = this.#eights;
    for (let i = 0; i < PLACES * MAX_OPTIONS; i++) eights[i] = 0;
    let at = head * tokens;
    const end = at + tokens;
    for (; at + 3 < end; at += PLACES) {
      places[classOf[words[at]!]!]!++;
      places[64 + classOf[words[at + 1]!]!]!++;
      places[128 + classOf[words[at + 2]!]!]!++;
      places[192 + classOf[words[at + 3]!]!]!++;
    }
    for (; at < end; at++) places[classOf[words[at]!]!]!++;
    // Four counts at a time: a record's tokens, 128 at most, do not overflow a byte.
    for (let i = 0, option = 0; option < MAX_OPTIONS; i += 2, option++) {
      const low = fours[i]! + fours[i + 16]! + fours[i + 32]! + fours[i + 48]!;
      const high = fours[i + 1]! + fours[i + 17]! + fours[i + 33]! + fours[i + 49]!;
      fours[i] = low;
      fours[i + 1] = high;
      this.#counts[option] = Math.imul(low + high, 0x01010101) >>> 24;
    }
  }

  /** About the lambda that meets the budget, from a sample of the tokens. Yields once a probe. */
  *guessSteps(budget: number): Generator<void, number> {
    let low = -LIMIT;
    let high = LIMIT;
    while (high - low > BRACKET) {
      const middle = Math.round((low + high) / 2);
      let bytes = 0;
      for (let layer = 0; layer < this.byLayer.length; layer++) {
        this.countLayer(layer, middle, true);
        bytes += this.byLayer[layer]!;
      }
      if (bytes <= budget) high = middle;
      else low = middle;
      yield;
    }
    return high;
  }

  /** For planLayer to fill. */
  emptyPlan(): Plan {
    return { tiers: this.#input.view.segments.map(({ tiers }) => new Uint8Array(tiers.length)) };
  }

  /** Puts a layer's tiers at lambda into the plan. */
  planLayer(layer: number, lambda: number, plan: Plan): void {
    const { kvHeads, segments } = this.#input.view;
    const options = this.#tierOf.length;
    const chosen = new Uint8Array(SEGMENT_TOKENS);
    const moves: Move[] = [];
    for (let head = layer * kvHeads; head < (layer + 1) * kvHeads; head++) {
      this.#lookUp(head, lambda);
      for (let s = 0; s < segments.length; s++) {
        const { tokens, tiers: old } = segments[s]!;
        const { words } = this.#all[s]!;
        const out = plan.tiers[s]!;
        const from = head * tokens;
        for (let t = 0; t < tokens; t++) chosen[t] = this.#classOf[words[from + t]!]!;
        this.#classify(this.#all[s]!, head);
        moves.length = 0;
        fillGroups(this.#classes, this.#counts, options, moves);
        for (const move of moves) makeMove(move, chosen, words, from, tokens);
        for (let t = 0; t < tokens; t++) {
          const tier = this.#tierOf[chosen[t]! >> 3]!;
          const before = old[from + t]!;
          out[from + t] = before === FRESH || tier > before ? tier : before;
        }
      }
    }
  }
}

const float = new Float32Array(1);
const word = new Uint32Array(float.buffer);
/** The lowest key whose relevance is not below e^log. */
function keyAt(log: number): number {
  float[0] = Math.exp(Math.min(Math.max(log, -80), 80));
  return Math.min(KEYS, (word[0]! + (1 << KEY_BITS) - 1) >>> KEY_BITS);
}
