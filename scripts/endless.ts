import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { createGunzip } from 'node:zlib';
import { Command } from 'commander';
import {
  addEngineOptions,
  cacheConfig,
  count,
  type EngineOptions,
  natural,
} from '../src/cli/engine-options.ts';
import { loadCliEngine } from '../src/cli/load-engine.ts';
import { logSumExp } from '../src/engine/sampler.ts';

/**
 * Perplexity of one long text, as long as you like, by pieces of 2,048 tokens: how a bounded cache reads past the trained length (docs/endless.md).
 * One JSON line. The text is a PG-19 test book from character 20,000 on, as the evaluation takes it.
 */
interface Options extends EngineOptions {
  books: string;
  book: number;
  tokens: number;
  gaps: boolean;
}
const PIECE = 2048;
const FRONT_MATTER = 20_000;

async function textOf(path: string, book: number): Promise<string> {
  let index = 0;
  for await (const line of createInterface({ input: createReadStream(path).pipe(createGunzip()) }))
    if (index++ === book) return (JSON.parse(line) as { text: string }).text.slice(FRONT_MATTER);
  throw new Error(`${path} has no book ${book}`);
}

const program = new Command();
addEngineOptions(program)
  .requiredOption('--books <file>', 'pg19_test.jsonl.gz')
  .option('--book <n>', 'which', natural, 0)
  .option('--tokens <n>', 'how many of it', count, 24_576)
  .option('--no-gaps', 'positions run on past the trained length: what happens where no gap is closed')
  .action(async (options: Options) => {
    const engine = await loadCliEngine(options);
    if (!options.gaps) Object.assign(engine.model, { contextLength: 2 ** 17 });
    const text = await textOf(options.books, options.book);
    const ids = engine.tokenizer.encode(text.slice(0, options.tokens * 8)).slice(0, options.tokens);
    if (ids.length < options.tokens) throw new Error(`book ${options.book} has ${ids.length} tokens`);
    const cache = engine.createCache(cacheConfig(options));
    const sums: number[] = [];
    const counts: number[] = [];
    const start = performance.now();
    let said = 0;
    await engine.feedEach(
      cache,
      ids,
      (i) => i + 1 < ids.length,
      (i, logits) => {
        const piece = Math.floor((i + 1) / PIECE);
        sums[piece] = (sums[piece] ?? 0) + logSumExp(logits) - logits[ids[i + 1]!]!;
        counts[piece] = (counts[piece] ?? 0) + 1;
      },
      {
        yield: async () => {
          if (cache.position < said + PIECE) return;
          said = cache.position;
          const now = Math.exp(sums.at(-1)! / counts.at(-1)!).toFixed(2);
          process.stderr.write(`${said} tokens, ${cache.bytes} bytes, ${now}\n`);
        },
      },
    );
    const perplexity = sums.map((sum, i) => Number(Math.exp(sum / counts[i]!).toFixed(3)));
    const seconds = Math.round((performance.now() - start) / 1000);
    const { policy, ratio, bytes } = cache.config;
    const closed = cache.gaps.tokens;
    cache.finish();
    console.log(
      JSON.stringify({
        policy,
        ratio,
        bytes,
        gaps: options.gaps,
        perplexity,
        held: cache.bytes,
        closed,
        seconds,
      }),
    );
  });
await program.parseAsync();
