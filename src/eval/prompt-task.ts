import type { ModelEngine } from '../engine/engine.ts';
import { type Decoded, type DecodeOptions, decode } from './decode.ts';
import { Meter } from './meter.ts';
import type { Method, Outcome, SampleContext, Skipped, Task } from './task.ts';

/** A prompt and what is known of its answer. */
export interface Prompt extends Pick<DecodeOptions, 'maxTokens' | 'stopAtNewline' | 'stop'> {
  readonly ids: readonly number[];
  readonly answers: readonly string[];
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

type Fixed = Pick<Task, 'name' | 'description' | 'version' | 'metrics' | 'files' | 'lengths' | 'count'>;

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
    async run(context, methods, emit) {
      const prompt = await build(context);
      for (const method of methods) emit(method, await answer(context, method, prompt, score));
    },
  };
}

async function answer(
  { engine }: SampleContext,
  method: Method,
  prompt: Prompt,
  score: (prediction: string, prompt: Prompt) => Readonly<Record<string, number>>,
): Promise<Outcome | Skipped> {
  const needed = prompt.ids.length + prompt.maxTokens;
  if (needed > engine.model.contextLength)
    return {
      skipped: `${needed} tokens with the answer, the model's context is ${engine.model.contextLength}`,
    };
  const meter = new Meter(engine, method.config);
  try {
    const logits = await meter.last(prompt.ids);
    const prefillMs = meter.takeMs();
    const cache = meter.figures();
    const restoreMs = meter.restore(meter.save());
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

/** The first token comes with the prompt's logits; each further one is a step. */
export const stepsPerSecond = ({ ids, ms }: Pick<Decoded, 'ids' | 'ms'>): number =>
  ids.length > 1 && ms > 0 ? ((ids.length - 1) * 1000) / ms : 0;
