import { align } from '../core/arena.ts';
import { countTiers, massBytes, recordBytes, recordCells, segmentHeaderBytes } from '../kernels/layout.ts';
import type { PlanInstances } from '../kernels/wasm-plan.ts';
import { type Allocating, Allocation, type AllocationInput, BRACKET, LIMIT } from './allocation.ts';
import type { CacheView, Plan } from './policy.ts';
import { WasmAllocation } from './wasm-allocation.ts';

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

/** Runs a generator to its end. */
export function lastOf<T>(steps: Generator<unknown, T>): T {
  for (;;) {
    const step = steps.next();
    if (step.done) return step.value;
  }
}

/** All steps of `allocateSteps` at once. */
export const allocate = (input: AllocationInput, instances?: PlanInstances): Plan =>
  lastOf(allocateSteps(input, instances));

/** Work in passes over all tokens, as measured: what comes before the search, a probe of the guess, and making the plan. */
const KEYS_WORK = 1.5;
const PROBE_WORK = 0.5;
const PLAN_WORK = 2.5;
/** Probes of the guess, and passes of the search that are usual. */
const PROBES = 12;
const PASSES = 7;
const WORK = KEYS_WORK + PROBES * PROBE_WORK + PASSES + PLAN_WORK;

/**
 * Minimises the sum of relevance x distortion under a byte budget with one Lagrange multiplier over all layers and heads: the plan of
 * the smallest lambda, to half a percent, whose exact bytes fit; as many of the first layers as fit beside it take the next smaller one, since many
 * tokens may lie at the same threshold. Never promotes. When even the largest lambda does not fit, that plan is returned.
 * Yields the share of its work that is done, 0 to 1, in steps of a few hundredths.
 * @param instances where WebAssembly counts: the plan is the same
 */
export function* allocateSteps(input: AllocationInput, instances?: PlanInstances): Generator<number, Plan> {
  const allocation = instances ? new WasmAllocation(input, instances) : new Allocation(input);
  try {
    return yield* search(input, allocation);
  } finally {
    // Made, or not wanted any more.
    allocation.release();
  }
}

function* search(input: AllocationInput, allocation: Allocating): Generator<number, Plan> {
  const { layers, kvHeads } = input.view;
  const heads = layers * kvHeads;
  let done = 0;
  const work = (passes: number): number => {
    // How many passes there are is not known before: those beyond the usual number leave the plan's share.
    done = Math.min(done + passes, Math.max(done, WORK - PLAN_WORK));
    return done / WORK;
  };
  const line = new Float32Array(allocation.tokens);
  for (let head = 0; head < heads; head++) {
    input.relevance(line, head);
    allocation.addHead(head, line);
    yield work(KEYS_WORK / heads);
  }
  allocation.weigh(input.distortions());
  // By layer, at the last lambda that fitted and at the last that did not: in the end at `high` and at `low`.
  const fitting = new Float64Array(layers);
  const above = new Float64Array(layers);
  function* fits(lambda: number): Generator<number, boolean> {
    for (let layer = 0; layer < layers; layer++) {
      allocation.countLayer(layer, lambda);
      yield work(1 / layers);
    }
    const right = sum(allocation.byLayer) <= input.budgetBytes;
    (right ? fitting : above).set(allocation.byLayer);
    if (right) allocation.narrow(Number.NEGATIVE_INFINITY, lambda);
    else allocation.narrow(lambda, Number.POSITIVE_INFINITY);
    return right;
  }
  function* plan(lambda: number, lower: number): Generator<number, Plan> {
    done = Math.max(done, WORK - PLAN_WORK);
    const made = allocation.emptyPlan();
    for (let layer = 0; layer < layers; layer++) {
      allocation.planLayer(layer, layer < lower ? lambda - 1 : lambda, made);
      done += PLAN_WORK / layers;
      yield Math.min(done / WORK, 1);
    }
    return made;
  }
  const guess = allocation.guessSteps(input.budgetBytes);
  let probe = guess.next();
  for (; !probe.done; probe = guess.next()) yield work(PROBE_WORK);
  let low: number;
  let high: number;
  if (yield* fits(probe.value)) {
    high = probe.value;
    low = high - BRACKET;
    for (let width = BRACKET; low > -LIMIT && (yield* fits(low)); width *= 2) {
      high = low;
      low -= width;
    }
    if (low <= -LIMIT && (yield* fits(-LIMIT))) return yield* plan(-LIMIT, 0);
  } else {
    low = probe.value;
    high = low + BRACKET;
    for (let width = BRACKET; high < LIMIT && !(yield* fits(high)); width *= 2) {
      low = high;
      high += width;
    }
    if (high >= LIMIT) return yield* plan(LIMIT, 0);
  }
  while (high - low > 1) {
    const middle = Math.round((low + high) / 2);
    if (yield* fits(middle)) high = middle;
    else low = middle;
  }
  let left = input.budgetBytes - sum(fitting);
  let lower = 0;
  for (; lower < layers; lower++) {
    left -= above[lower]! - fitting[lower]!;
    if (left < 0) break;
  }
  return yield* plan(high, lower);
}

function sum(list: Float64Array): number {
  let all = 0;
  for (const x of list) all += x;
  return all;
}
