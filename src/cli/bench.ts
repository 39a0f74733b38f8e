import { type Command, InvalidArgumentError } from 'commander';
import { measure, WINDOW_TOKENS } from '../bench/speed.ts';
import { InvalidInputError } from '../core/errors.ts';
import type { Kernels } from '../kernels/kernels.ts';
import type { WasmKernels } from '../kernels/wasm.ts';
import { addEngineOptions, cacheConfig, type EngineOptions } from './engine-options.ts';
import { loadCliEngineParts, loadWasmKernels } from './load-engine.ts';

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

/** The calibration kernels belong to the WASM module; beside the reference they get a memory of the weights' size of their own. */
async function calibratorFor(kernels: Kernels): Promise<WasmKernels> {
  if (kernels.name === 'wasm') return kernels as WasmKernels;
  const own = await loadWasmKernels();
  own.arena.memory.ensure(80e6);
  return own;
}

/** `adkvc bench`: speed of prefill, decoding and restoring at given contexts, one thread, calibrated. */
export function benchCommand(program: Command): void {
  addEngineOptions(program.command('bench'))
    .description('tokens per second, restore times and memory at given context lengths')
    .option('--context <list>', 'tokens in the cache when decoding starts', contexts, [128, 512])
    .option('--json', 'one JSON object on standard output')
    .action(async (options: BenchOptions) => {
      const config = cacheConfig(options);
      const { engine, kernels, host } = await loadCliEngineParts(options);
      const calibrator = await calibratorFor(kernels);
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
        const result = await measure(engine, calibrator, config, context);
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
