import { uniform01 } from '../core/random.ts';
import type { SamplingOptions, TokenLogprob, TopLogits } from './types.ts';

export const GREEDY: SamplingOptions = {
  temperature: 0,
  topP: 1,
  topK: 0,
  minP: 0,
  frequencyPenalty: 0,
  presencePenalty: 0,
  repetitionPenalty: 1,
  seed: 0,
};

export interface Sampled {
  readonly id: number;
  /** ln p of the model's own distribution (before temperature and penalties), if asked for. */
  readonly logprob?: number;
  readonly top?: readonly TokenLogprob[];
}

/** ln of the sum of exponentials, in float64. */
export function logSumExp(logits: Float32Array): number {
  let max = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < logits.length; i++) if (logits[i]! > max) max = logits[i]!;
  let sum = 0;
  for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i]! - max);
  return max + Math.log(sum);
}

/** Index of the largest logit; the smallest index wins a tie. */
export function argmax(logits: Float32Array): number {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i]! > logits[best]!) best = i;
  return best;
}

/** The `count` largest logits, best first; ties by index. */
export function topK(logits: Float32Array, count: number): { id: number; logit: number }[] {
  const top: { id: number; logit: number }[] = [];
  if (count === 0) return top;
  for (let id = 0; id < logits.length; id++) {
    const logit = logits[id]!;
    if (top.length === count && logit <= top[count - 1]!.logit) continue;
    let at = top.length;
    while (at > 0 && top[at - 1]!.logit < logit) at--;
    top.splice(at, 0, { id, logit });
    if (top.length > count) top.pop();
  }
  return top;
}

const MAX_LOGIT = 1e30;
/** Below this temperature only the largest logit has any weight, and its reciprocal is finite. */
const COLD = 1e-9;

function penalise(
  logits: Float32Array,
  history: Iterable<number>,
  generated: Iterable<number>,
  o: SamplingOptions,
): void {
  if (o.repetitionPenalty !== 1)
    for (const id of new Set(history)) {
      const logit = logits[id]!;
      // A penalty of nearly 0 would make it infinite, and differences of infinite logits are none.
      logits[id] = logit > 0 ? Math.min(MAX_LOGIT, logit / o.repetitionPenalty) : logit * o.repetitionPenalty;
    }
  if (o.frequencyPenalty !== 0 || o.presencePenalty !== 0) {
    const counts = new Map<number, number>();
    for (const id of generated) counts.set(id, (counts.get(id) ?? 0) + 1);
    for (const [id, n] of counts) logits[id] = logits[id]! - n * o.frequencyPenalty - o.presencePenalty;
  }
}

/**
 * Draws the next token. The draw is a pure function of the logits, the options and `position`: no state is kept.
 * Order: mask, penalties, temperature, top-k, top-p, min-p, draw. Logits are changed in place.
 * @param mask gives -Infinity to what must not be drawn; log-probabilities are those before it
 * @param history ids in the context (for repetition_penalty); `generated`: ids of this answer (for the OpenAI penalties)
 */
export function sample(
  logits: Float32Array,
  options: SamplingOptions,
  position: number,
  history: readonly number[],
  generated: readonly number[],
  mask?: (logits: Float32Array) => void,
): Sampled {
  let report: ((id: number) => Pick<Sampled, 'logprob' | 'top'>) | undefined;
  if (options.topLogprobs !== undefined) {
    const norm = logSumExp(logits);
    const top = topK(logits, options.topLogprobs).map((t) => ({ id: t.id, logprob: t.logit - norm }));
    const raw = logits.slice();
    report = (id) => ({ logprob: raw[id]! - norm, top });
  }
  mask?.(logits);
  penalise(logits, history, generated, options);
  const id = options.temperature < COLD ? argmax(logits) : draw(logits, options, position);
  return { id, ...report?.(id) };
}

/**
 * How many of the largest logits `sampleTop` needs to draw what `sample` would; undefined: all of them are needed, as log-probabilities, penalties, masks
 * and draws from a whole vocabulary do.
 */
export function candidatesOf(o: SamplingOptions, masked: boolean): number | undefined {
  const whole =
    masked ||
    o.topLogprobs !== undefined ||
    o.repetitionPenalty !== 1 ||
    o.frequencyPenalty !== 0 ||
    o.presencePenalty !== 0;
  if (whole) return undefined;
  if (o.temperature < COLD) return 1;
  return o.topK > 0 ? o.topK : undefined;
}

/** As `sample`, from the `candidatesOf` largest logits, best first: the same token. */
export function sampleTop({ logits, ids }: TopLogits, options: SamplingOptions, position: number): Sampled {
  return { id: ids[options.temperature < COLD ? 0 : draw(logits, options, position)]! };
}

/** Steps of ln p, in units of 1/16, that sort candidates roughly; beyond 40 a token has no weight in float64 sums of 50k terms. */
const STEP = 16;
const DEPTH = 40;
const EXP = Float64Array.from({ length: DEPTH * STEP + 1 }, (_, bin) => Math.exp(-bin / STEP));
/** Ids that share a sum, so that a draw walks over a few of them. */
const SPAN = 1024;

/** exp(-below) within 1e-8 of itself, below from 0 to DEPTH: a third of Math.exp's time, which a vocabulary pays at every token. */
function expOf(below: number): number {
  const bin = Math.floor(below * STEP);
  const r = below - bin / STEP;
  return EXP[bin]! * (1 - r * (1 - (r / 2) * (1 - (r / 3) * (1 - r / 4))));
}

function draw(logits: Float32Array, o: SamplingOptions, position: number): number {
  const max = logits[argmax(logits)]!;
  const scale = 1 / o.temperature;
  const floor = max - DEPTH * o.temperature;
  const cut = o.topK > 0 || o.topP < 1 || o.minP > 0;
  if (!cut) {
    const sums = new Float64Array(Math.ceil(logits.length / SPAN));
    let total = 0;
    for (let span = 0; span < sums.length; span++) {
      const end = Math.min(logits.length, (span + 1) * SPAN);
      let sum = 0;
      for (let id = span * SPAN; id < end; id++) {
        const logit = logits[id]!;
        if (logit >= floor) sum += expOf((max - logit) * scale);
      }
      sums[span] = sum;
      total += sum;
    }
    let left = uniform01(o.seed, position) * total;
    let span = 0;
    while (span < sums.length - 1 && left >= sums[span]!) left -= sums[span++]!;
    for (let id = span * SPAN; id < logits.length; id++)
      if (logits[id]! >= floor && (left -= expOf((max - logits[id]!) * scale)) < 0) return id;
    return argmax(logits);
  }
  // A vocabulary of 49,152 is not sorted for one draw: a histogram over ln p finds how far down the cuts reach.
  const counts = new Uint32Array(DEPTH * STEP + 1);
  const mass = new Float64Array(DEPTH * STEP + 1);
  let total = 0;
  for (let id = 0; id < logits.length; id++) {
    const logit = logits[id]!;
    if (!(logit >= floor)) continue;
    const below = (max - logit) * scale;
    const p = expOf(below);
    const bin = Math.floor(below * STEP);
    counts[bin]!++;
    mass[bin]! += p;
    total += p;
  }
  let last = counts.length - 1;
  if (o.minP > 0) last = Math.min(last, Math.ceil(-Math.log(o.minP) * STEP));
  for (let bin = 0, count = 0, sum = 0; bin <= last; bin++) {
    count += counts[bin]!;
    sum += mass[bin]!;
    // Without top-k the nucleus is of all tokens; after it, of the k best: then the k best must be there.
    if (o.topK > 0 ? count >= o.topK : o.topP < 1 && sum >= o.topP * total) last = bin;
  }
  let kept: { id: number; p: number }[] = [];
  const lowest = max - ((last + 1) / STEP) * o.temperature;
  for (let id = 0; id < logits.length; id++)
    if (logits[id]! >= lowest && logits[id]! >= floor)
      kept.push({ id, p: expOf((max - logits[id]!) * scale) });
  kept.sort((a, b) => b.p - a.p || a.id - b.id);
  if (o.topK > 0) kept = kept.slice(0, o.topK);
  if (o.topP < 1) {
    const all = o.topK > 0 ? kept.reduce((sum, t) => sum + t.p, 0) : total;
    let sum = 0;
    const end = kept.findIndex((t) => (sum += t.p) >= o.topP * all);
    if (end >= 0) kept = kept.slice(0, end + 1);
  }
  if (o.minP > 0) kept = kept.filter((t) => t.p >= o.minP);
  let left = uniform01(o.seed, position) * kept.reduce((sum, t) => sum + t.p, 0);
  for (const t of kept) if ((left -= t.p) < 0) return t.id;
  return kept.at(-1)!.id;
}
