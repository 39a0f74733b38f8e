import { EPOCH } from '../core/config.ts';
import { AbortedError, ContextLengthError, InvalidInputError } from '../core/errors.ts';
import type { Constraint } from './constraint.ts';
import { candidatesOf, type Sampled, sample, sampleTop } from './sampler.ts';
import { StopFilter } from './stop.ts';
import type { Engine, EngineCache, GenerateEvent, RunOptions, SamplingOptions } from './types.ts';

export interface GenerateOptions extends RunOptions {
  readonly sampling: SamplingOptions;
  readonly stop: readonly string[];
  readonly maxTokens: number;
  /** What the answer may be; it has accepted what `ids` hold of the answer already. */
  readonly constraint?: Constraint;
  /** The cache as it is now: between two events the caller may replace it by an equal one. */
  readonly current?: () => EngineCache;
}

/**
 * One answer. `ids` is the whole prompt; what the cache holds already (cache.position tokens of it) is not fed again. The
 * cache is whole between any two events. The last sampled token is not fed: the next turn does it.
 * When `signal` fires, the answer ends with AbortedError at the next token; the events before stand.
 */
export async function* generate(
  engine: Engine,
  cache: EngineCache,
  ids: readonly number[],
  options: GenerateOptions,
): AsyncGenerator<GenerateEvent> {
  const { current = () => cache } = options;
  const { sampling, signal, constraint } = options;
  const mask = constraint && ((logits: Float32Array) => constraint.mask(logits));
  if (ids.length <= cache.position)
    throw new InvalidInputError(
      `${ids.length} prompt tokens, ${cache.position} of them fed: nothing is left to answer`,
    );
  const limit = engine.positionLimit(cache.header.config);
  if (ids.length >= limit)
    throw new ContextLengthError(
      `the conversation has ${ids.length} tokens, under its cache policy it may have ${limit} with the answer: shorten it to at most ${limit - 1}`,
      { tokens: ids.length, limit },
    );
  const generated: number[] = [];
  const history = sampling.repetitionPenalty === 1 ? [] : [...ids];
  const few = candidatesOf(sampling, mask !== undefined);
  const feedTop = few !== undefined && few <= (engine.mostTop ?? 0) ? engine.feedTop : undefined;
  // One row for the whole answer: 200 kB of garbage with each token would count against an isolate's memory.
  const out = new Float32Array(feedTop ? 0 : engine.model.vocab);
  /** Feeds the last ids of what is known. @returns what draws the next token */
  const feedLast = async (chunk: readonly number[]): Promise<() => Sampled> => {
    const at = ids.length + generated.length;
    if (feedTop) {
      const top = await feedTop(current(), chunk, few!, options);
      return () => sampleTop(top, sampling, at);
    }
    const logits = await engine.feed(current(), chunk, 'last', { ...options, out });
    return () => sample(logits, sampling, at, history, generated, mask);
  };
  let draw: (() => Sampled) | undefined;
  for (let { position } = cache; position < ids.length; ) {
    if (signal?.aborted) throw new AbortedError();
    const step = Math.min(ids.length - position, EPOCH - (position % EPOCH));
    const chunk = ids.slice(position, position + step);
    if (position + step === ids.length) draw = await feedLast(chunk);
    else await engine.feed(current(), chunk, 'none', options);
    position += step;
    yield { type: 'prefill', position, total: ids.length };
  }

  const text = engine.tokenizer.stream();
  const stop = new StopFilter(options.stop);
  const eos = new Set(engine.eosIds);
  let reason: 'stop' | 'length' = 'length';
  while (true) {
    if (signal?.aborted) throw new AbortedError();
    const next = draw!();
    constraint?.accept(next.id);
    generated.push(next.id);
    history.push(next.id);
    const ends = eos.has(next.id);
    const piece = ends ? '' : stop.push(text.push(next.id));
    yield {
      type: 'token',
      id: next.id,
      text: piece,
      // The end marker is no token of the answer.
      ...(next.top && !ends ? { logprob: next.logprob!, top: next.top } : {}),
    };
    if (ends || stop.stopped || constraint?.complete) {
      reason = 'stop';
      break;
    }
    if (generated.length >= options.maxTokens || ids.length + generated.length >= limit) break;
    draw = await feedLast([next.id]);
  }
  const rest = stop.stopped ? '' : stop.push(text.end()) + stop.end();
  yield { type: 'finish', reason: stop.stopped ? 'stop' : reason, text: rest };
}
