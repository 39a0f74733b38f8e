import type { Command } from 'commander';
import * as v from 'valibot';
import { messagesSchema, runJsonLines } from './jsonl.ts';
import { loadTokenizer } from './load-tokenizer.ts';

const lineSchema = v.object({
  messages: messagesSchema,
  add_generation_prompt: v.optional(v.boolean(), false),
});

/** `adkvc render`: {"messages", "add_generation_prompt"} -> {"text", "ids"}; special-token text in a message is parsed here. */
export function renderCommand(program: Command): void {
  program
    .command('render')
    .description('conversations through the chat template, one JSON line a line of standard input')
    .action(async () => {
      const { tokenizer, template } = await loadTokenizer();
      await runJsonLines(lineSchema, (line) => {
        const text = template.render(line.messages, { addGenerationPrompt: line.add_generation_prompt });
        return { text, ids: tokenizer.encode(text, { specials: true }) };
      });
    });
}
