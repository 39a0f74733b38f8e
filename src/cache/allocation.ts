import { release } from '../core/release.ts';
import { DROP, massBytes, RecordSizes, segmentHeaderBytes } from '../kernels/layout.ts';
import { fillGroups, Lists, MAX_OPTIONS, type Move, takeBest } from './fill-groups.ts';
import { hullThresholds, type TierOption } from './hull.ts';
import { type CacheView, FRESH, type Plan } from './policy.ts';

export interface AllocationInput {
  readonly view: CacheView;
  /** Fills `line` with the relevance, not negative, of a head's tokens of all segments in position order; asked once for each head, in order. */
  readonly relevance: (line: Float32Array, head: number) => void;
  /** Finest first; eight at most. */
  readonly options: readonly TierOption[];
  /**
   * Expected harm when all tokens of a head are held in an option, by head (layer * kvHeads + kvHead). Rises from option to option. Asked when the relevance
   * of all heads is known.
   */
  readonly distortions: () => readonly ArrayLike<number>[];
  readonly budgetBytes: number;
  readonly mass: boolean;
}

/** Relevance is compared as the upper 16 bits of its float32: a monotone key of 128 steps an octave. */
const KEY_BITS = 16;
const STEPS_PER_OCTAVE = 128;
/** ln lambda in key steps beyond which nothing changes. */
export const LIMIT = 100 * STEPS_PER_OCTAVE;
/** Keys of a head that are told apart, 64 octaves below its highest; what lies further below counts as the lowest of them, no relevance as 0. */
const KEYS = 65536 / MAX_OPTIONS;
/** The first guess looks at one token of so many. */
export const SAMPLE = 8;
/** Half the width of the bracket that is first tried around the guess. */
export const BRACKET = 8;
/** Half the width of the bracket outside of which tokens are counted once for all. */
const WINDOW = 32;
/** Set in a class of which another lambda of the bracket would make another one. */
const OPEN = 128;
/** Four of them. */
const OPENED = 0x80808080 | 0;
const CLASSES = MAX_OPTIONS * MAX_OPTIONS;

/** Classes, option * MAX_OPTIONS + first, that tokens get where an option is chosen: the bytes by first option allowed. */
const PATTERNS = new BigUint64Array(
  Uint8Array.from({ length: CLASSES }, (_, i) => {
    const first = i % MAX_OPTIONS;
    return Math.max(Math.floor(i / MAX_OPTIONS), first) * MAX_OPTIONS + first;
  }).buffer,
);

/** The tokens of a view, as a search for a plan asks about them. Head by head `addHead`, then `weigh`, then the others. */
export interface Allocating {
  /** Of a head in all segments. */
  readonly tokens: number;
  /** Bytes of each layer as countLayer found them. */
  readonly byLayer: Float64Array;
  /** Takes a head's relevance, as AllocationInput's `relevance` gave it. */
  addHead(head: number, line: Float32Array): void;
  /** Takes what each option costs a head, as AllocationInput's `distortions` says. */
  weigh(distortions: readonly ArrayLike<number>[]): void;
  /** Lambdas that are asked for from now on lie from `low` to `high`. */
  narrow(low: number, high: number): void;
  /** Puts a layer's bytes at lambda into byLayer. */
  countLayer(layer: number, lambda: number): void;
  /** About the lambda that meets the budget, from a sample of the tokens. Yields once a probe. */
  guessSteps(budget: number): Generator<void, number>;
  /** For planLayer to fill. */
  emptyPlan(): Plan;
  /** Puts a layer's tiers at lambda into the plan. No counting of this layer afterwards. */
  planLayer(layer: number, lambda: number, plan: Plan): void;
  /** No counting or planning afterwards. */
  release(): void;
}

/** Keys that words count from, and how many there are, by the least key above 0 (or any above the largest: there is none) and the largest. Key 0 is that of no relevance. */
export function shownKeys(low: number, most: number): { least: number; keys: number } {
  const least = Math.max(Math.min(low, most), most - KEYS + 2) - 1;
  return { least, keys: most - least + 1 };
}
/** The first of a head's keys that gets an option at a lambda rather than a later one. */
export function keyLimit(threshold: number, lambda: number, least: number, keys: number): number {
  const key = keyAt(threshold + (lambda * Math.LN2) / STEPS_PER_OCTAVE);
  return Math.min(Math.max(key - least, 1), keys);
}
/** First option allowed by tier held. */
export function firstOptions(tiers: readonly number[]): Uint8Array {
  const first = new Uint8Array(256);
  for (let old = 0; old < FRESH; old++) {
    const index = tiers.findIndex((tier) => tier >= old);
    first[old] = index < 0 ? tiers.length - 1 : index;
  }
  return first;
}
/** Allocating's. @param guessLayer puts a layer's bytes into `byLayer` */
export function* guessSteps(
  byLayer: Float64Array,
  budget: number,
  guessLayer: (layer: number, lambda: number) => void,
): Generator<void, number> {
  let low = -LIMIT;
  let high = LIMIT;
  while (high - low > BRACKET) {
    const middle = Math.round((low + high) / 2);
    let bytes = 0;
    for (let layer = 0; layer < byLayer.length && bytes <= budget; layer++) {
      guessLayer(layer, middle);
      bytes += byLayer[layer]!;
    }
    if (bytes <= budget) high = middle;
    else low = middle;
    yield;
  }
  return high;
}

/**
 * The tokens of a view as an allocation sees them: what they take, and which options they get, at a lambda. Lambdas are asked for within a bracket that
 * narrows; tokens whose option is the same in all of it are counted once, the others are kept in lists.
 */
export class Allocation implements Allocating {
  readonly #input: Omit<AllocationInput, 'relevance' | 'distortions' | 'budgetBytes'>;
  readonly #heads: number;
  /** Tokens of a head, and where each segment's begin among them. */
  readonly #tokens: number;
  readonly #starts: readonly number[];
  /** By head: ln relevance over lambda at which each option starts to be too dear. */
  #thresholds: readonly Float64Array[] = [];
  readonly #tierOf: Uint8Array;
  readonly #sizes: RecordSizes;
  /** [heads][tokens] the key, counted from the head's least, times MAX_OPTIONS plus the first option that the token may get. */
  readonly #words: Uint16Array;
  /** By head: the keys that words count from, and how many there are. */
  readonly #least: Int32Array;
  readonly #keys: Int32Array;
  /** Class by word of the head that is looked at; the same by key, and by halves of keys. */
  readonly #classOf = new Uint8Array(KEYS * MAX_OPTIONS);
  readonly #classesOf = new BigUint64Array(this.#classOf.buffer);
  readonly #halvesOf = new Int32Array(this.#classOf.buffer);
  /** The bracket, and where the lists were begun: they know nothing of lambdas outside. */
  #low = 0;
  #high = -1;
  /** A record's listed tokens, at the place of its first word; how many they are; the others of the record by class. */
  readonly #open: Uint8Array;
  readonly #opened: Uint8Array;
  readonly #closed: Uint8Array;
  readonly #closedFours: Int32Array;
  /** Tokens of a record by class, those that are open OPEN further; in two places in turn: a count that was just written is slow to read. */
  readonly #places = new Uint8Array(4 * OPEN);
  readonly #fours = new Int32Array(this.#places.buffer);
  readonly #eights = new Float64Array(this.#places.buffer);
  /** All tokens of a record by class: the first place. And by option. */
  readonly #classes = this.#places.subarray(0, CLASSES);
  readonly #counts = new Int32Array(MAX_OPTIONS);
  readonly #lists = new Lists();
  readonly byLayer: Float64Array;

  constructor(input: Omit<AllocationInput, 'relevance' | 'distortions' | 'budgetBytes'>) {
    if (input.options.length > MAX_OPTIONS) throw new Error(`more than ${MAX_OPTIONS} options`);
    const { layers, kvHeads, headDim, segments } = input.view;
    this.#input = input;
    this.#heads = layers * kvHeads;
    let tokens = 0;
    this.#starts = segments.map((segment) => {
      tokens += segment.tokens;
      return tokens - segment.tokens;
    });
    this.#tokens = tokens;
    this.byLayer = new Float64Array(layers);
    this.#uneven = new Uint8Array(segments.length);
    this.#begun = new Uint8Array(this.#heads);
    const tiers = input.options.map((o) => o.tier);
    this.#tierOf = Uint8Array.from(tiers);
    this.#sizes = new RecordSizes(tiers, headDim);
    this.#words = new Uint16Array(this.#heads * tokens);
    this.#least = new Int32Array(this.#heads);
    this.#keys = new Int32Array(this.#heads);
    this.#open = new Uint8Array(this.#heads * tokens);
    this.#opened = new Uint8Array(this.#heads * segments.length);
    this.#closed = new Uint8Array(this.#heads * segments.length * CLASSES);
    this.#closedFours = new Int32Array(this.#closed.buffer);
  }

  get tokens(): number {
    return this.#tokens;
  }

  addHead(head: number, line: Float32Array): void {
    const { segments } = this.#input.view;
    const bits = new Uint32Array(line.buffer, line.byteOffset, line.length);
    const { least, keys } = shownKeys(...keyRange(bits));
    this.#least[head] = least;
    this.#keys[head] = keys;
    const first = (this.#first ??= firstOptions([...this.#tierOf]));
    const begin = head * this.#tokens;
    for (let s = 0; s < segments.length; s++) {
      const { tiers, tokens } = segments[s]!;
      const start = this.#starts[s]!;
      putWords(bits, start, tokens, least, tiers, head * tokens, first, this.#words, begin + start);
    }
  }
  #first: Uint8Array | undefined;

  weigh(distortions: readonly ArrayLike<number>[]): void {
    this.#thresholds = distortions.map((d) => hullThresholds(this.#input.options, d));
  }

  release(): void {
    for (const array of [this.#words, this.#open, this.#opened, this.#closed, this.#classOf, this.#places])
      release(array);
  }

  /** The first of the head's keys that gets option `i` at a lambda rather than a later one. */
  #keyOf(head: number, i: number, lambda: number): number {
    return keyLimit(this.#thresholds[head]![i]!, lambda, this.#least[head]!, this.#keys[head]!);
  }

  /** Classes at lambda, for a head: lower keys get later options. */
  #lookUp(head: number, lambda: number): void {
    const last = this.#thresholds[head]!.length;
    let end = this.#keys[head]!;
    for (let i = 0; i < last; i++) {
      const from = this.#keyOf(head, i, lambda);
      if (from < end) {
        this.#classesOf.fill(PATTERNS[i]!, from, end);
        end = from;
      }
    }
    this.#classesOf.fill(PATTERNS[last]!, 0, end);
  }
  /** Marks classes of which the bracket has several. */
  #markOpen(head: number): void {
    const halves = this.#halvesOf;
    let end = this.#keys[head]!;
    for (let i = 0; i < this.#thresholds[head]!.length; i++) {
      const to = Math.min(this.#keyOf(head, i, this.#high), end);
      const from = Math.min(this.#keyOf(head, i, this.#low), end);
      for (let half = 2 * from; half < 2 * to; half++) halves[half]! |= OPENED;
      end = from;
    }
  }

  narrow(low: number, high: number): void {
    this.#low = Math.max(this.#low, low);
    this.#high = Math.min(this.#high, high);
  }

  countLayer(layer: number, lambda: number): void {
    const { kvHeads, segments } = this.#input.view;
    this.#enter(lambda);
    for (let head = layer * kvHeads; head < (layer + 1) * kvHeads; head++) {
      this.#lookUp(head, lambda);
      this.#markOpen(head);
      for (let s = 0; s < segments.length; s++) {
        this.#count(head, s);
        fillGroups(this.#classes, this.#counts, this.#tierOf.length);
        this.#addRecord(s);
      }
      this.#begun[head] = 1;
    }
    this.byLayer[layer] = this.#bytesOfLayer();
  }
  /** By head, whether its lists are begun. */
  readonly #begun: Uint8Array;
  /** Begins all lists anew where they do not serve a lambda. */
  #enter(lambda: number): void {
    if (lambda >= this.#low && lambda <= this.#high) return;
    this.#low = lambda - WINDOW;
    this.#high = lambda + WINDOW;
    this.#begun.fill(0);
  }
  /** Puts a record's tokens by class and by option into #classes and #counts. */
  #count(head: number, s: number): void {
    if (this.#begun[head]) this.#countOpen(head, s);
    else this.#countAll(head, s);
    const fours = this.#fours;
    const counts = this.#counts;
    for (let i = 0, option = 0; option < MAX_OPTIONS; i += 2, option++)
      counts[option] = Math.imul(fours[i]! + fours[i + 1]!, 0x01010101) >>> 24;
  }

  /** Puts a layer's bytes at lambda into byLayer, as a sample of its tokens tells. */
  #guessLayer(layer: number, lambda: number): void {
    const { kvHeads, segments } = this.#input.view;
    for (let head = layer * kvHeads; head < (layer + 1) * kvHeads; head++) {
      this.#lookUp(head, lambda);
      for (let s = 0; s < segments.length; s++) {
        this.#countSample(head, s);
        this.#addRecord(s);
      }
    }
    this.byLayer[layer] = this.#bytesOfLayer();
  }

  /** Bytes of a layer's records so far, their masses included; by segment, whether those end within the arena's step: each is a multiple of half of it. */
  #bytes = 0;
  readonly #uneven: Uint8Array;
  /** Adds a record whose tokens are #counts. */
  #addRecord(s: number): void {
    this.#bytes += this.#sizes.bytes(this.#input.view.segments[s]!.tokens, this.#counts);
    if (!this.#input.mass) return;
    this.#bytes += massBytes(this.#sizes.cells);
    this.#uneven[s]! ^= (this.#sizes.cells >> 2) & 1;
  }
  #bytesOfLayer(): number {
    const { kvHeads, segments } = this.#input.view;
    let bytes = this.#bytes + segments.length * segmentHeaderBytes(kvHeads);
    for (const odd of this.#uneven) bytes += odd * 8;
    this.#bytes = 0;
    this.#uneven.fill(0);
    return bytes;
  }

  /** Tokens by option, each of a sample for SAMPLE. */
  #countSample(head: number, s: number): void {
    const counts = this.#counts;
    for (let i = 0; i < MAX_OPTIONS; i++) counts[i] = 0;
    const from = head * this.#tokens + this.#starts[s]!;
    const end = from + this.#input.view.segments[s]!.tokens;
    for (let at = from; at < end; at += SAMPLE) counts[this.#classOf[this.#words[at]!]! >> 3]! += SAMPLE;
  }

  /** Counts a head's tokens of a segment by class, and begins its list. */
  #countAll(head: number, s: number): void {
    const classOf = this.#classOf;
    const words = this.#words;
    const places = this.#places;
    const fours = this.#fours;
    const eights = this.#eights;
    const open = this.#open;
    for (let i = 0; i < eights.length; i++) eights[i] = 0;
    const from = head * this.#tokens + this.#starts[s]!;
    const { tokens } = this.#input.view.segments[s]!;
    let end = from;
    for (let t = 0; t < tokens; t++) {
      const found = classOf[words[from + t]!]!;
      places[((t & 1) << 8) | found]!++;
      open[end] = t;
      end += found >> 7;
    }
    const record = head * this.#starts.length + s;
    this.#opened[record] = end - from;
    const closed = this.#closedFours;
    // Four counts at a time: a record's tokens, 128 at most, do not overflow a byte.
    for (let i = 0, to = record * (CLASSES / 4); i < CLASSES / 4; i++, to++) {
      const own = fours[i]! + fours[i + 64]!;
      closed[to] = own;
      fours[i] = own + fours[i + 32]! + fours[i + 96]!;
    }
  }

  /** Counts the listed tokens beside the others, and takes those from the list that are not open any more. */
  #countOpen(head: number, s: number): void {
    const classOf = this.#classOf;
    const words = this.#words;
    const places = this.#places;
    const fours = this.#fours;
    const open = this.#open;
    const closed = this.#closed;
    const closedFours = this.#closedFours;
    const from = head * this.#tokens + this.#starts[s]!;
    const record = head * this.#starts.length + s;
    const base = record * CLASSES;
    for (let i = 0, at = base >> 2; i < CLASSES / 4; i++, at++) fours[i] = closedFours[at]!;
    const end = from + this.#opened[record]!;
    let kept = from;
    for (let at = from; at < end; at++) {
      const t = open[at]!;
      const found = classOf[words[from + t]!]!;
      const own = found & (OPEN - 1);
      places[own]!++;
      open[kept] = t;
      kept += found >> 7;
      closed[base + own]! += 1 - (found >> 7);
    }
    this.#opened[record] = kept - from;
  }

  *guessSteps(budget: number): Generator<void, number> {
    return yield* guessSteps(this.byLayer, budget, (layer, lambda) => this.#guessLayer(layer, lambda));
  }

  emptyPlan(): Plan {
    return { tiers: this.#input.view.segments.map(({ tiers }) => new Uint8Array(tiers.length)) };
  }

  planLayer(layer: number, lambda: number, plan: Plan): void {
    const { kvHeads, segments } = this.#input.view;
    const options = this.#tierOf.length;
    const tierOf = this.#tierOf;
    const classOf = this.#classOf;
    const words = this.#words;
    const lists = this.#lists;
    const { before, last } = lists;
    // Tokens that are held more coarsely than any option stay so.
    const bounded = tierOf[options - 1] !== DROP;
    const moves: Move[] = [];
    this.#enter(lambda);
    for (let head = layer * kvHeads; head < (layer + 1) * kvHeads; head++) {
      this.#lookUp(head, lambda);
      this.#markOpen(head);
      for (let s = 0; s < segments.length; s++) {
        const { tokens, tiers: held } = segments[s]!;
        const out = plan.tiers[s]!;
        const from = head * tokens;
        const start = head * this.#tokens + this.#starts[s]!;
        this.#count(head, s);
        last.fill(0);
        for (let t = 0; t < tokens; t++) {
          const own = classOf[words[start + t]!]! & (OPEN - 1);
          before[t] = last[own]!;
          last[own] = t + 1;
          out[from + t] = tierOf[own >> 3]!;
        }
        moves.length = 0;
        fillGroups(this.#classes, this.#counts, options, moves);
        for (const { to, option, first, count } of moves)
          for (let n = 0; n < count; n++)
            out[from + takeBest(option * MAX_OPTIONS + first, lists, words, start)] = tierOf[to]!;
        if (bounded)
          for (let i = from; i < from + tokens; i++)
            if (held[i] !== FRESH && held[i]! > out[i]!) out[i] = held[i]!;
      }
    }
  }
}

// Functions of their own, called often: an engine compiles a function of several long loops at the first of them, without knowing the others.

/** The least key above 0 and the largest. */
function keyRange(bits: Uint32Array): [least: number, most: number] {
  let least = 2 ** 16;
  let most = 0;
  for (let i = 0; i < bits.length; i++) {
    const key = bits[i]! >>> KEY_BITS;
    if (key > most) most = key;
    if (key < least && key > 0) least = key;
  }
  return [least, most];
}

/** Words of `tokens` tokens from `from` on, at `to`. @param held tiers that they have, from `at` on */
function putWords(
  bits: Uint32Array,
  from: number,
  tokens: number,
  least: number,
  held: Uint8Array,
  at: number,
  first: Uint8Array,
  words: Uint16Array,
  to: number,
): void {
  for (let t = 0; t < tokens; t++) {
    const full = bits[from + t]! >>> KEY_BITS;
    let key = full - least;
    if (key < 1) key = full === 0 ? 0 : 1;
    words[to + t] = (key << 3) | first[held[at + t]!]!;
  }
}

const float = new Float32Array(1);
const word = new Uint32Array(float.buffer);
/** The lowest key whose relevance is not below e^log. */
function keyAt(log: number): number {
  float[0] = Math.exp(Math.min(Math.max(log, -80), 80));
  return (word[0]! + (1 << KEY_BITS) - 1) >>> KEY_BITS;
}
