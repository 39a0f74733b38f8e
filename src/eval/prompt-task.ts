import { EPOCH } from '../core/config.ts';
import type { ModelEngine } from '../engine/engine.ts';
import { type Decoded, type DecodeOptions, decode } from './decode.ts';
import { Meter } from './meter.ts';
import type { Method, Outcome, SampleContext, Skipped, Task } from './task.ts';

/** A prompt and what is known of its answer. */
export interface Prompt extends Pick<DecodeOptions, 'maxTokens' | 'stopAtNewline' | 'stop'> {
  readonly ids: readonly number[];
  readonly answers: readonly string[];
  /** Leading ids that later samples of the task's group begin with as well; 0 by default. */
  readonly shared?: number;
  readonly detail?: Readonly<Record<string, unknown>>;
}

/** Ids of one user message, with the beginning of the answer already written in the assistant's turn. */
export function chatIds(engine: ModelEngine, content: string, answerPrefix = ''): number[] {
  const { ids } = engine.template.encode([{ role: 'user', content }], { addGenerationPrompt: true });
  return answerPrefix === '' ? ids : [...ids, ...engine.tokenizer.encode(answerPrefix)];
}

/** LongBench's truncation: of text with more tokens than `most`, the first and the last half of that many, decoded. */
export function cutMiddle(engine: ModelEngine, text: string, most: number): string {
  const ids = engine.tokenizer.encode(text);
  if (ids.length <= most) return text;
  const half = Math.floor(most / 2);
  return engine.tokenizer.decode(ids.slice(0, half)) + engine.tokenizer.decode(ids.slice(-half));
}

type Fixed = Pick<
  Task,
  'name' | 'description' | 'version' | 'metrics' | 'files' | 'lengths' | 'count' | 'group'
>;

/** A task of one shape: a prompt is read into a fresh cache, an answer is decoded greedily and scored. */
export function promptTask(
  options: Fixed & {
    build(context: SampleContext): Promise<Prompt>;
    score(prediction: string, prompt: Prompt): Readonly<Record<string, number>>;
  },
): Task {
  const { build, score, ...fixed } = options;
  return {
    ...fixed,
    oneShot: true,
    async run(context, methods, emit) {
      const prompt = await build(context);
      for (const method of methods) emit(method, await answer(context, method, prompt, score));
    },
  };
}

async function answer(
  context: SampleContext,
  method: Method,
  prompt: Prompt,
  score: (prediction: string, prompt: Prompt) => Readonly<Record<string, number>>,
): Promise<Outcome | Skipped> {
  const { engine } = context;
  const needed = prompt.ids.length + prompt.maxTokens;
  if (needed > engine.model.contextLength)
    return {
      skipped: `${needed} tokens with the answer, the model's context is ${engine.model.contextLength}`,
    };
  const once = method.protocol === 'one-shot';
  const meter = new Meter(engine, once ? { ...method.config, oneShot: prompt.ids.length } : method.config);
  try {
    const logits = await prefill(context, meter, once ? { ...prompt, shared: 0 } : prompt);
    if (once) await meter.finish();
    const prefillMs = meter.takeMs();
    const cache = meter.figures();
    // A cache that was compressed off the clock cannot be stored.
    const restoreMs = once ? 0 : meter.restore(await meter.save());
    const decoded = await decode(meter, logits, prompt);
    return {
      scores: score(decoded.text, prompt),
      detail: { ...prompt.detail, prediction: decoded.text, answers: prompt.answers },
      tokens: prompt.ids.length,
      cache,
      speed: {
        prefillTokensPerSecond: (prompt.ids.length * 1000) / prefillMs,
        decodeTokensPerSecond: stepsPerSecond(decoded),
        ttftMs: prefillMs,
        restoreMs,
      },
    };
  } finally {
    meter.dispose();
  }
}

/**
 * Reads the prompt, from the end of what an earlier sample of the group has read already: a cache is a function of its tokens alone, so that its state there is the
 * same as if it had read them itself. The meter's readings go along, so that rows tell what the whole prompt takes.
 */
async function prefill(
  { prefix }: SampleContext,
  meter: Meter,
  { ids, shared = 0 }: Prompt,
): Promise<Float32Array> {
  const config = JSON.stringify(meter.cache.config);
  const known = prefix.last;
  if (known?.config === config && known.ids.length < ids.length && known.ids.every((id, i) => id === ids[i]))
    meter.resume(known.saved);
  const end = Math.floor(shared / EPOCH) * EPOCH;
  if (end > meter.cache.position) {
    await meter.feed(ids.slice(meter.cache.position, end));
    prefix.last = { config, ids: ids.slice(0, end), saved: await meter.save() };
  }
  return meter.last(ids.slice(meter.cache.position));
}

/** The first token comes with the prompt's logits; each further one is a step. */
export const stepsPerSecond = ({ ids, ms }: Pick<Decoded, 'ids' | 'ms'>): number =>
  ids.length > 1 && ms > 0 ? ((ids.length - 1) * 1000) / ms : 0;
