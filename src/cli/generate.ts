import type { Command } from 'commander';
import * as v from 'valibot';
import { ContextLengthError, InvalidInputError } from '../core/errors.ts';
import { generate } from '../engine/generate.ts';
import { GREEDY } from '../engine/sampler.ts';
import { addEngineOptions, cacheConfig, type EngineOptions } from './engine-options.ts';
import { idsSchema, messagesSchema, runJsonLines } from './jsonl.ts';
import { loadCliEngine } from './load-engine.ts';
import { cacheFields } from './score.ts';

const lineSchema = v.object({
  ids: v.optional(idsSchema),
  messages: v.optional(messagesSchema),
  max_tokens: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1)), 128),
});

interface GenerateCliOptions extends EngineOptions {
  temperature: number;
  topP: number;
}

const fraction = (text: string): number => {
  const value = Number(text);
  if (!(value >= 0 && value <= 2)) throw new InvalidInputError(`${text} must lie between 0 and 2`);
  return value;
};

/** `adkvc generate`: {"messages"|"ids", "max_tokens"} -> {"ids", "text", "finish_reason", "cache", "timing"}. */
export function generateCommand(program: Command): void {
  addEngineOptions(program.command('generate'))
    .description(
      'continues conversations or token ids, one JSON line a line of standard input; greedy by default',
    )
    .option('--temperature <t>', '0 is greedy', fraction, 0)
    .option('--top-p <p>', 'nucleus', fraction, 1)
    .action(async (options: GenerateCliOptions) => {
      const config = cacheConfig(options);
      const engine = await loadCliEngine(options);
      await runJsonLines(lineSchema, async (line, progress) => {
        if ((line.ids === undefined) === (line.messages === undefined))
          throw new InvalidInputError('give either "ids" or "messages"', 'messages');
        // Special-token text in messages is parsed, as `render` does.
        const prompt =
          line.ids ??
          engine.tokenizer.encode(engine.template.render(line.messages!, { addGenerationPrompt: true }), {
            specials: true,
          });
        const limit = engine.positionLimit(config);
        if (prompt.length >= limit)
          throw new ContextLengthError(
            `${prompt.length} prompt tokens; under policy ${config.policy} a conversation may have ${limit}`,
            { tokens: prompt.length, limit },
            line.ids ? 'ids' : 'messages',
          );
        const cache = engine.createCache(config);
        try {
          const ids: number[] = [];
          let finish_reason = 'length';
          const start = performance.now();
          let prefilled = start;
          let first = start;
          for await (const event of generate(engine, cache, prompt, {
            sampling: { ...GREEDY, temperature: options.temperature, topP: options.topP, seed: options.seed },
            stop: [],
            maxTokens: line.max_tokens,
          })) {
            if (event.type === 'prefill') {
              progress(event.position, event.total);
              prefilled = performance.now();
            } else if (event.type === 'token') {
              if (ids.length === 0) first = performance.now();
              ids.push(event.id);
            } else finish_reason = event.reason;
          }
          const end = performance.now();
          return {
            ids,
            text: engine.tokenizer.decode(ids, { skipSpecials: true }),
            finish_reason,
            cache: cacheFields(cache.report()),
            timing: {
              prefillTokensPerSecond: (prompt.length * 1000) / (prefilled - start),
              // The first token comes with the prefill; the others are decoding steps.
              decodeTokensPerSecond: ids.length > 1 ? ((ids.length - 1) * 1000) / (end - first) : 0,
              ttftMs: first - start,
            },
          };
        } finally {
          cache.dispose();
        }
      });
    });
}
