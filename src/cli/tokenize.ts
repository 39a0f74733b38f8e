import type { Command } from 'commander';
import * as v from 'valibot';
import { runJsonLines } from './jsonl.ts';
import { loadTokenizer } from './load-tokenizer.ts';

const lineSchema = v.object({ text: v.string() });

/** `adkvc tokenize`: {"text"} -> {"ids", "text"}; text that looks like a special token is one here. */
export function tokenizeCommand(program: Command): void {
  program
    .command('tokenize')
    .description('token ids of texts and the texts they decode to, one JSON line a line of standard input')
    .action(async () => {
      const { tokenizer } = await loadTokenizer();
      await runJsonLines(lineSchema, ({ text }) => {
        const ids = tokenizer.encode(text, { specials: true });
        return { ids, text: tokenizer.decode(ids) };
      });
    });
}
