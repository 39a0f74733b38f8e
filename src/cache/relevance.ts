import type { CacheView } from './policy.ts';

/**
 * Calls `each` with every head's tokens of all segments in position order: [tokens], written back to `relevance` afterwards. Yields the number of
 * heads that are done.
 */
export function* headSteps(
  view: CacheView,
  relevance: readonly Float32Array[],
  each: (tokens: Float32Array, head: number) => void,
): Generator<number, void> {
  const total = view.segments.reduce((sum, s) => sum + s.tokens, 0);
  const line = new Float32Array(total);
  for (let head = 0; head < view.layers * view.kvHeads; head++) {
    let at = 0;
    view.segments.forEach(({ tokens }, s) => {
      line.set(relevance[s]!.subarray(head * tokens, (head + 1) * tokens), at);
      at += tokens;
    });
    each(line, head);
    at = 0;
    view.segments.forEach(({ tokens }, s) => {
      relevance[s]!.set(line.subarray(at, at + tokens), head * tokens);
      at += tokens;
    });
    yield head + 1;
  }
}

/** `headSteps` to its end. */
export function byHead(...args: Parameters<typeof headSteps>): void {
  const steps = headSteps(...args);
  while (!steps.next().done);
}

/** Each element becomes the largest of the `width` around it: what stands beside a looked-up token is likely part of the same thing. */
export function maxPool(x: Float32Array, width: number): void {
  const reach = width >> 1;
  const padded = new Float32Array(x.length + 2 * reach);
  padded.set(x, reach);
  for (let i = 0; i < x.length; i++) {
    let most = padded[i]!;
    for (let j = 1; j <= 2 * reach; j++) most = Math.max(most, padded[i + j]!);
    x[i] = most;
  }
}

/** Each element becomes the mean of the `size` elements in a row that it stands among; the last ones are as many as are left. */
export function blockMean(x: Float32Array, size: number): void {
  for (let from = 0; from < x.length; from += size) {
    const block = x.subarray(from, from + size);
    let sum = 0;
    for (const value of block) sum += value;
    block.fill(sum / block.length);
  }
}

/** Each element becomes the mean of the `width` around it, what lies outside counting as 0. */
export function averagePool(x: Float32Array, width: number): void {
  const from = x.slice();
  const reach = width >> 1;
  for (let i = 0; i < x.length; i++) {
    let sum = 0;
    for (let j = Math.max(0, i - reach); j <= Math.min(x.length - 1, i + reach); j++) sum += from[j]!;
    x[i] = sum / width;
  }
}

/** Relevance over the head's mean, plus a floor, scaled to a mean of 1. The floor keeps tokens that nobody has asked for yet. */
export function overMean(x: Float32Array, floor: number): void {
  const mean = Math.max(sumOf(x) / Math.max(x.length, 1), 1e-30);
  for (let from = 0; from < x.length; from += PIECE)
    scaleBy(x, from, Math.min(from + PIECE, x.length), mean, floor);
}
/** Elements that a loop goes over at a time: an engine takes long to compile a long loop while it runs, and a function that is called often just once. */
const PIECE = 128;
function sumOf(x: Float32Array): number {
  let sum = 0;
  for (let from = 0; from < x.length; from += PIECE)
    sum = addUp(x, from, Math.min(from + PIECE, x.length), sum);
  return sum;
}
function addUp(x: Float32Array, from: number, to: number, sum: number): number {
  for (let i = from; i < to; i++) sum += x[i]!;
  return sum;
}
function scaleBy(x: Float32Array, from: number, to: number, mean: number, floor: number): void {
  for (let i = from; i < to; i++) x[i] = (x[i]! / mean + floor) / (1 + floor);
}
