import { hash32 } from '../../core/random.ts';
import { GREEDY } from '../../engine/sampler.ts';
import { decode } from '../decode.ts';
import { Meter } from '../meter.ts';
import { passAtK } from '../metrics/pass-at-k.ts';
import { stepsPerSecond } from '../prompt-task.ts';
import { passes } from '../sandbox.ts';
import type { MetricSpec, Task } from '../task.ts';
import { CODE_PROBLEMS } from './code-problems.ts';

const SAMPLES = 5;
const MAX_TOKENS = 120;
const TEMPERATURE = 0.4;
/** The function's closing brace stands at the line's beginning. */
const END = '\n}';

const METRICS: readonly MetricSpec[] = [1, SAMPLES].map((k) => ({
  name: `pass${k}`,
  label: `pass@${k}`,
  unit: '%',
  better: 'higher',
  kind: 'percent',
  chance: 0,
}));

/** The file so far: all functions in an order of the sample's own, then the head of the one to write again. */
function codePrompt(sample: number, seed: number): string {
  const order = CODE_PROBLEMS.map((p, i) => ({ p, at: hash32(seed, sample, i) })).sort((a, b) => a.at - b.at);
  const file = order.map(({ p }) => `${p.head}\n${p.body}\n}\n`).join('\n');
  const asked = CODE_PROBLEMS[sample % CODE_PROBLEMS.length]!;
  return `${file}\n// ${asked.name} once more, unchanged:\n${asked.head}\n`;
}

export const code: Task = {
  name: 'code',
  description: `${CODE_PROBLEMS.length} self-made functions: write one of a file's functions again; executed against a test, ${SAMPLES} samples at temperature ${TEMPERATURE}`,
  version: 1,
  metrics: METRICS,
  files: [],
  lengths: [0],
  count: async () => CODE_PROBLEMS.length,
  async run({ engine, sample, seed }, methods, emit) {
    const problem = CODE_PROBLEMS[sample]!;
    const ids = engine.tokenizer.encode(codePrompt(sample, seed));
    if (ids.length + MAX_TOKENS > engine.model.contextLength) {
      for (const method of methods) emit(method, { skipped: `the file has ${ids.length} tokens` });
      return;
    }
    for (const method of methods) {
      const meter = new Meter(engine, method.config);
      try {
        const logits = await meter.last(ids);
        const prefillMs = meter.takeMs();
        const cache = meter.figures();
        const saved = await meter.save();
        const predictions: string[] = [];
        let passed = 0;
        let restoreMs = 0;
        let best = 0;
        for (let i = 0; i < SAMPLES; i++) {
          restoreMs += meter.restore(saved) / SAMPLES;
          const sampling = { ...GREEDY, temperature: TEMPERATURE, topP: 0.95, seed: hash32(seed, sample, i) };
          const decoded = await decode(meter, logits, { maxTokens: MAX_TOKENS, stop: END, sampling });
          best = Math.max(best, stepsPerSecond(decoded));
          predictions.push(decoded.text);
          if (await passes(`${problem.head}\n${decoded.text}${END}`, problem.test)) passed++;
        }
        emit(method, {
          scores: Object.fromEntries([1, SAMPLES].map((k) => [`pass${k}`, passAtK(SAMPLES, passed, k)])),
          detail: { problem: problem.name, passed, samples: SAMPLES, predictions },
          tokens: ids.length,
          cache,
          speed: {
            prefillTokensPerSecond: (ids.length * 1000) / prefillMs,
            decodeTokensPerSecond: best,
            ttftMs: prefillMs,
            restoreMs,
          },
        });
      } finally {
        meter.dispose();
      }
    }
  },
};
