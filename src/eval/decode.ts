import { GREEDY, sample } from '../engine/sampler.ts';
import type { SamplingOptions } from '../engine/types.ts';
import type { Meter } from './meter.ts';

export interface DecodeOptions {
  readonly maxTokens: number;
  /** A line end finishes the answer, but cannot be its first token (LongBench's rule for samsum). */
  readonly stopAtNewline?: boolean;
  /** Text that finishes the answer, not part of it. */
  readonly stop?: string;
  readonly sampling?: SamplingOptions;
}

export interface Decoded {
  readonly text: string;
  readonly ids: readonly number[];
  readonly ms: number;
}

/** Continues a prompt whose last logits are given; greedy unless told otherwise. The last token drawn is not fed. */
export async function decode(
  meter: Meter,
  promptLogits: Float32Array,
  options: DecodeOptions,
): Promise<Decoded> {
  const { engine } = meter;
  const sampling = options.sampling ?? GREEDY;
  const ends = new Set(engine.eosIds);
  if (options.stopAtNewline) ends.add(engine.tokenizer.encode('\n').at(-1)!);
  const ids: number[] = [];
  let logits = promptLogits;
  meter.takeMs();
  while (ids.length < options.maxTokens) {
    if (options.stopAtNewline && ids.length === 0) {
      logits = logits.slice();
      for (const id of ends) logits[id] = Number.NEGATIVE_INFINITY;
    }
    const { id } = sample(logits, sampling, meter.cache.position, [], ids);
    if (ends.has(id)) break;
    ids.push(id);
    if (options.stop !== undefined && engine.tokenizer.decode(ids).includes(options.stop)) break;
    if (ids.length === options.maxTokens || meter.cache.position >= engine.model.contextLength) break;
    logits = await meter.last([id]);
  }
  const text = engine.tokenizer.decode(ids, { skipSpecials: true });
  const end = options.stop === undefined ? -1 : text.indexOf(options.stop);
  return { text: end < 0 ? text : text.slice(0, end), ids, ms: meter.takeMs() };
}
