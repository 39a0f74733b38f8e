import type { ModelEngine } from '../engine/engine.ts';
import type { ChatMessage } from '../engine/types.ts';
import { decode } from './decode.ts';
import { Meter } from './meter.ts';
import { distribution, lossOf } from './metrics/divergence.ts';
import { mean } from './metrics/interval.ts';
import { stepsPerSecond } from './prompt-task.ts';
import type { Method, MetricSpec, Outcome, Skipped } from './task.ts';

export interface Dialogue {
  /** What stands before the first question: the text, and that it was read. */
  readonly opening: readonly ChatMessage[];
  readonly turns: readonly { readonly question: string; readonly answer: string }[];
  /** Most tokens of a decoded answer. */
  readonly maxTokens: number;
  readonly detail: Readonly<Record<string, unknown>>;
}

export const LOSS_METRICS: readonly MetricSpec[] = [
  { name: 'answerLoss', label: 'perplexity of the true answers', unit: '', better: 'lower', kind: 'exp' },
  {
    name: 'answerLossLate',
    label: 'perplexity of the true answers, later half of the turns',
    unit: '',
    better: 'lower',
    kind: 'exp',
  },
];

/**
 * Questions one after the other over one cache. Each is answered (and scored), then taken back; the true answer goes into the conversation
 * instead, so that every method sees the same words: later turns read what was compressed in earlier ones.
 */
export async function runDialogue(
  engine: ModelEngine,
  method: Method,
  dialogue: Dialogue,
  score: (prediction: string, truth: string) => number,
): Promise<Outcome | Skipped> {
  const whole = engine.template.encode([...dialogue.opening, ...dialogue.turns.flatMap(asMessages)]).ids
    .length;
  const needed = whole + dialogue.maxTokens;
  if (needed > engine.model.contextLength)
    return {
      skipped: `${needed} tokens with all turns, the model's context is ${engine.model.contextLength}`,
    };
  const meter = new Meter(engine, method.config);
  try {
    const messages: ChatMessage[] = [...dialogue.opening];
    const turns: { score: number; loss: number; prediction: string; position: number }[] = [];
    let prefillMs = 0;
    let ttftMs = 0;
    let restoreMs = 0;
    let steps = 0;
    let decodeMs = 0;
    let fed = 0;
    for (const turn of dialogue.turns) {
      messages.push({ role: 'user', content: turn.question });
      const prompt = rest(engine, meter, messages, true);
      const logits = await meter.last(prompt);
      const ms = meter.takeMs();
      if (fed === 0) ttftMs = ms;
      prefillMs += ms;
      fed += prompt.length;
      const position = meter.cache.position;
      const saved = await meter.save();
      const decoded = await decode(meter, logits, { maxTokens: dialogue.maxTokens });
      if (stepsPerSecond(decoded) > 0) {
        steps += decoded.ids.length - 1;
        decodeMs += decoded.ms;
      }
      restoreMs += meter.restore(saved);
      messages.push({ role: 'assistant', content: turn.answer });
      const answer = rest(engine, meter, messages, false);
      const truth = engine.tokenizer.encode(turn.answer).length;
      const losses = [lossOf(distribution(logits), answer[0]!)];
      await meter.feed(
        answer,
        (i) => i + 1 < Math.min(truth, answer.length),
        (i, l) => losses.push(lossOf(distribution(l), answer[i + 1]!)),
      );
      meter.takeMs();
      turns.push({
        score: score(decoded.text, turn.answer),
        loss: mean(losses),
        prediction: decoded.text,
        position,
      });
    }
    const late = turns.slice(Math.floor(turns.length / 2));
    return {
      scores: {
        score: mean(turns.map((t) => t.score)),
        answerLoss: mean(turns.map((t) => t.loss)),
        answerLossLate: mean(late.map((t) => t.loss)),
      },
      detail: { ...dialogue.detail, turns, answers: dialogue.turns.map((t) => t.answer) },
      tokens: meter.cache.position,
      cache: meter.figures(),
      speed: {
        prefillTokensPerSecond: (fed * 1000) / prefillMs,
        decodeTokensPerSecond: decodeMs > 0 ? (steps * 1000) / decodeMs : 0,
        ttftMs,
        restoreMs: restoreMs / dialogue.turns.length,
      },
    };
  } finally {
    meter.dispose();
  }
}

const asMessages = (turn: Dialogue['turns'][number]): ChatMessage[] => [
  { role: 'user', content: turn.question },
  { role: 'assistant', content: turn.answer },
];

/** Ids of the conversation that the cache does not hold yet. */
function rest(
  engine: ModelEngine,
  meter: Meter,
  messages: readonly ChatMessage[],
  addGenerationPrompt: boolean,
): number[] {
  return engine.template.encode(messages, { addGenerationPrompt }).ids.slice(meter.cache.position);
}
