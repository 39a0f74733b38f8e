import type { Command } from 'commander';
import * as v from 'valibot';
import { fetchAndFinish } from '../cache/fetched.ts';
import type { CacheReport } from '../cache/policy.ts';
import { logSumExp, topK } from '../engine/sampler.ts';
import { addEngineOptions, cacheConfig, count, type EngineOptions } from './engine-options.ts';
import { idsSchema, runJsonLines } from './jsonl.ts';
import { loadCliEngine } from './load-engine.ts';

const lineSchema = v.object({ ids: idsSchema });

interface ScoreOptions extends EngineOptions {
  top: number;
  chunk: number;
}

/** What a line of JSON says of the cache. */
export const cacheFields = (
  r: CacheReport,
): Pick<CacheReport, 'tokens' | 'bytes' | 'fp16Bytes' | 'ratio' | 'peakBytes' | 'parts'> => ({
  tokens: r.tokens,
  bytes: r.bytes,
  fp16Bytes: r.fp16Bytes,
  ratio: r.ratio,
  peakBytes: r.peakBytes,
  ...(r.parts && { parts: r.parts }),
});

/** `adkvc score`: {"ids": [...]} -> {"nll": [...], "top": [[id, logit], ...], "cache": {...}}. */
export function scoreCommand(program: Command): void {
  addEngineOptions(program.command('score'))
    .description('negative log-likelihood of token ids, one JSON line a line of standard input')
    .option('--top <k>', 'best logits at the last position', count, 20)
    .option('--chunk <n>', 'tokens fed at once (1 to 128): no result depends on it', count, 128)
    .action(async (options: ScoreOptions) => {
      const config = cacheConfig(options);
      const engine = await loadCliEngine(options);
      await runJsonLines(lineSchema, async ({ ids }, progress) => {
        const cache = engine.createCache(config);
        try {
          const nll: number[] = [];
          let top: [number, number][] = [];
          await engine.feedEach(
            cache,
            ids,
            () => true,
            (i, logits) => {
              if (i + 1 < ids.length) nll.push(logSumExp(logits) - logits[ids[i + 1]!]!);
              else top = topK(logits, options.top).map((t) => [t.id, t.logit]);
            },
            { chunk: options.chunk, yield: async () => progress(cache.position, ids.length) },
          );
          // What the text takes once everything outside the window is compressed.
          await fetchAndFinish(cache);
          return { nll, top, cache: cacheFields(cache.report()) };
        } finally {
          cache.dispose();
        }
      });
    });
}
