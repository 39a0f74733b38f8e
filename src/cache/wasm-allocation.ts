import { align } from '../core/arena.ts';
import {
  DROP,
  halfBlockBytes,
  RECORD_HEADER_BYTES,
  scaleBytes,
  segmentHeaderBytes,
  TIERS,
} from '../kernels/layout.ts';
import type { PlanInstance, PlanInstances } from '../kernels/wasm-plan.ts';
import {
  type Allocating,
  type AllocationInput,
  firstOptions,
  guessSteps,
  keyLimit,
  SAMPLE,
  shownKeys,
} from './allocation.ts';
import { MAX_OPTIONS } from './fill-groups.ts';
import { hullThresholds } from './hull.ts';
import type { Plan } from './policy.ts';

const pad16 = (n: number): number => (n + 15) & ~15;
/** u32 of wasm/simd/plan.ts's Shape. */
const SHAPE_WORDS = 18;
/** What vectors read beyond an array's end. */
const SLACK = 64;

/** As Allocation, in WebAssembly: the same counts and plans, bit for bit. Every lambda counts all tokens, which is faster there than lists of those that may differ. */
export class WasmAllocation implements Allocating {
  readonly tokens: number;
  readonly byLayer: Float64Array;
  readonly #input: Omit<AllocationInput, 'relevance' | 'distortions' | 'budgetBytes'>;
  readonly #instances: PlanInstances;
  readonly #instance: PlanInstance;
  #thresholds: readonly Float64Array[] = [];
  /** By head: the keys that words count from, and how many there are. */
  readonly #least: Int32Array;
  readonly #keys: Int32Array;
  /** Addresses. */
  readonly #shape: number;
  readonly #limits: number;
  readonly #line: number;
  /** [segments][heads][tokens] tiers held, and in the end those that the plan gives. */
  readonly #tiers: number;
  readonly #bytes: Uint8Array;
  readonly #limitsOf: Uint16Array;
  readonly #lineOf: Float32Array;
  #released = false;

  constructor(
    input: Omit<AllocationInput, 'relevance' | 'distortions' | 'budgetBytes'>,
    instances: PlanInstances,
  ) {
    if (input.options.length > MAX_OPTIONS) throw new Error(`more than ${MAX_OPTIONS} options`);
    const { layers, kvHeads, headDim, segments } = input.view;
    const heads = layers * kvHeads;
    this.#input = input;
    this.#instances = instances;
    this.byLayer = new Float64Array(layers);
    this.#least = new Int32Array(heads);
    this.#keys = new Int32Array(heads);
    const spans: number[] = [];
    let [tokens, words, samples] = [0, 0, 0];
    for (const segment of segments) {
      spans.push(segment.tokens, words, samples, heads * tokens, tokens);
      tokens += segment.tokens;
      words += 2 * pad16(segment.tokens);
      samples += 2 * Math.ceil(segment.tokens / SAMPLE);
    }
    this.tokens = tokens;

    const { exports, memory } = (this.#instance = instances.take());
    let end = align(exports.heapBase());
    const place = (bytes: number): number => {
      end += align(bytes + SLACK);
      return end - align(bytes + SLACK);
    };
    this.#shape = place(4 * SHAPE_WORDS);
    this.#limits = place(16 * kvHeads);
    const spansAt = place(4 * spans.length);
    const options = place(4 * 3 * MAX_OPTIONS + 32);
    const [codes, plain, first, tierOf] = [options + 32, options + 64, options + 96, options + 112];
    this.#line = place(4 * tokens);
    const wordsAt = place(heads * words);
    const samplesAt = place(heads * samples);
    this.#tiers = place(heads * tokens);
    memory.ensure(end);

    const { buffer } = memory;
    const u32 = (at: number, values: readonly number[]): void =>
      new Uint32Array(buffer, at, values.length).set(values);
    const tiers = input.options.map(({ tier }) => tier);
    const both = (of: (bits: 'kBits' | 'vBits', id: number) => number) =>
      tiers.map((id) => (id === DROP ? 0 : of('kBits', id) + of('vBits', id)));
    u32(this.#shape, [
      ...[tiers.length, segments.length, kvHeads, Number(input.mass), words, samples],
      ...[headDim, RECORD_HEADER_BYTES, segmentHeaderBytes(kvHeads)],
      ...[spansAt, wordsAt, samplesAt, this.#tiers, options, codes, plain, first, tierOf],
    ]);
    u32(spansAt, spans);
    u32(
      options,
      both((bits, id) => scaleBytes(TIERS[id]!, TIERS[id]![bits], headDim)),
    );
    u32(
      codes,
      both((bits, id) => halfBlockBytes(TIERS[id]![bits], headDim)),
    );
    u32(
      plain,
      tiers.map((id) => Number(id !== DROP && TIERS[id]!.plain)),
    );
    this.#bytes = new Uint8Array(buffer);
    this.#bytes.set(firstOptions(tiers).subarray(0, 16), first);
    this.#bytes.fill(0, tierOf, tierOf + 16);
    this.#bytes.set(tiers, tierOf);
    this.#limitsOf = new Uint16Array(buffer, this.#limits, MAX_OPTIONS * kvHeads);
    this.#lineOf = new Float32Array(buffer, this.#line, tokens);
    let at = this.#tiers;
    for (const segment of segments) {
      this.#bytes.set(segment.tiers, at);
      at += segment.tiers.length;
    }
  }

  addHead(head: number, line: Float32Array): void {
    const { exports } = this.#instance;
    this.#lineOf.set(line);
    const range = exports.planRange(this.#line, line.length);
    const { least, keys } = shownKeys(range >>> 16, range & 0xffff);
    this.#least[head] = least;
    this.#keys[head] = keys;
    exports.planWords(this.#shape, head, this.#line, least);
  }

  weigh(distortions: readonly ArrayLike<number>[]): void {
    this.#thresholds = distortions.map((d) => hullThresholds(this.#input.options, d));
  }

  narrow(): void {}

  countLayer(layer: number, lambda: number): void {
    this.#count(layer, lambda, false);
  }
  *guessSteps(budget: number): Generator<void, number> {
    return yield* guessSteps(this.byLayer, budget, (layer, lambda) => this.#count(layer, lambda, true));
  }
  #count(layer: number, lambda: number, sampled: boolean): void {
    const head = this.#limit(layer, lambda);
    this.byLayer[layer] = this.#instance.exports.planBytes(this.#shape, head, this.#limits, sampled) >>> 0;
  }

  /** Puts the words up to which heads of a layer get later options at their place. @returns the first head */
  #limit(layer: number, lambda: number): number {
    const { kvHeads } = this.#input.view;
    const limits = this.#limitsOf.fill(0);
    for (let h = 0; h < kvHeads; h++) {
      const head = layer * kvHeads + h;
      const thresholds = this.#thresholds[head]!;
      let end = this.#keys[head]!;
      for (let i = 0; i < thresholds.length; i++) {
        end = Math.min(end, keyLimit(thresholds[i]!, lambda, this.#least[head]!, this.#keys[head]!));
        limits[h * MAX_OPTIONS + i] = end * MAX_OPTIONS - 1;
      }
    }
    return layer * kvHeads;
  }

  emptyPlan(): Plan {
    return { tiers: this.#input.view.segments.map(({ tiers }) => new Uint8Array(tiers.length)) };
  }

  planLayer(layer: number, lambda: number, plan: Plan): void {
    const { layers, kvHeads, segments } = this.#input.view;
    const head = this.#limit(layer, lambda);
    this.#instance.exports.planTiers(this.#shape, head, this.#limits);
    let at = this.#tiers;
    for (const [s, { tokens }] of segments.entries()) {
      const from = head * tokens;
      plan.tiers[s]!.set(this.#bytes.subarray(at + from, at + from + kvHeads * tokens), from);
      at += layers * kvHeads * tokens;
    }
  }

  release(): void {
    if (this.#released) return;
    this.#released = true;
    this.#instances.give(this.#instance);
  }
}
