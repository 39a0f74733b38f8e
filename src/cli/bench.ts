import { type Command, InvalidArgumentError } from 'commander';
import { measure, WINDOW_TOKENS } from '../bench/speed.ts';
import { InvalidInputError } from '../core/errors.ts';
import { addEngineOptions, cacheConfig, type EngineOptions } from './engine-options.ts';
import { loadCliEngineParts } from './load-engine.ts';

interface BenchOptions extends EngineOptions {
  context: number[];
  json?: boolean;
}

const contexts = (text: string): number[] =>
  text.split(',').map((part) => {
    const n = Number(part);
    if (!Number.isInteger(n) || n < 1)
      throw new InvalidArgumentError('expected token counts, as in 128,512,4096');
    return n;
  });

/** `adkvc bench`: speed of prefill, decoding and restoring at given contexts, one thread, calibrated. */
export function benchCommand(program: Command): void {
  addEngineOptions(program.command('bench'))
    .description('tokens per second, restore times and memory at given context lengths')
    .option('--context <list>', 'tokens in the cache when decoding starts', contexts, [128, 512])
    .option('--json', 'one JSON object on standard output')
    .action(async (options: BenchOptions) => {
      const config = cacheConfig(options);
      const { engine, kernels, host } = await loadCliEngineParts(options);
      const limit = engine.model.contextLength - WINDOW_TOKENS;
      for (const context of options.context)
        if (context > limit)
          throw new InvalidInputError(
            `--context ${context} leaves no room to decode: at most ${limit} on this model`,
            '--context',
          );
      const results = [];
      for (const context of options.context) {
        process.stderr.write(`context ${context} ...\n`);
        const result = await measure(engine, kernels, config, context);
        results.push(result);
        if (!options.json)
          process.stdout.write(
            `${String(context).padStart(6)}  prefill ${result.prefillTokensPerSecond.toFixed(1)}/s  decode ${result.decodeTokensPerSecond.toFixed(1)}/s  ` +
              `cache ${(result.cache.bytes / 1e6).toFixed(2)} MB (${result.cache.ratio.toFixed(2)}x)  ` +
              `restore ${result.restore.ms.toFixed(1)} ms against ${(result.restore.recomputeMs / 1000).toFixed(1)} s  ` +
              `calibrated ${result.calibration.q4GMACs.toFixed(1)} / ${result.calibration.dotGMACs.toFixed(1)} GMAC/s\n`,
          );
      }
      if (options.json)
        process.stdout.write(`${JSON.stringify({ host, calibration: results[0]?.calibration, results })}\n`);
    });
}
