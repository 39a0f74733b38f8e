import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Command, InvalidArgumentError } from 'commander';
import type { Written } from '../bench/costs.ts';
import { benchKernels } from '../bench/kernels.ts';
import { type Ratios, ratios } from '../bench/ratios.ts';
import { measureShares } from '../bench/shares.ts';
import { MEASURED_TOKENS, measure, type SpeedResult } from '../bench/speed.ts';
import { measureSteps } from '../bench/steps.ts';
import { benchWebGpuAttention } from '../bench/webgpu-attention.ts';
import { SWEEP } from '../bench/webgpu-attention-variants.ts';
import { compareGoldens, type LogitGolden } from '../bench/webgpu-golden.ts';
import { measureHost } from '../bench/webgpu-host.ts';
import { measureWebGpu } from '../bench/webgpu-model.ts';
import { InvalidInputError } from '../core/errors.ts';
import type { Kernels } from '../kernels/kernels.ts';
import type { WasmKernels } from '../kernels/wasm.ts';
import { shadersFrom } from '../kernels/webgpu-files.ts';
import { openWebGpuInNode } from '../kernels/webgpu-node.ts';
import { folderSource } from '../prepare/folder-source.ts';
import { benchTokenBytes, benchTrackers } from './bench-methods.ts';
import { bundleFolder, PROJECT_ROOT } from './bundle-folder.ts';
import { addEngineOptions, cacheConfig, count, type EngineOptions } from './engine-options.ts';
import {
  loadCliEngineParts,
  loadWasmKernels,
  loadWebGpuCliEngine,
  wasmFolder,
  wasmPlans,
} from './load-engine.ts';

interface BenchOptions extends EngineOptions {
  context?: number[];
  json?: boolean;
  shares?: boolean;
  steps?: number;
  kernels?: boolean;
  trackers?: boolean;
  tokenBytes?: number[];
  text?: string;
  webgpuAttention?: boolean;
  conversations?: number[];
  variant?: string[];
  golden?: string;
  host?: boolean;
  unclamped?: boolean;
}

const contexts = (text: string): number[] =>
  text.split(',').map((part) => {
    const n = Number(part);
    if (!Number.isInteger(n) || n < 1)
      throw new InvalidArgumentError('expected positive numbers, as in 128,512,4096');
    return n;
  });

const ratioList = (text: string): number[] =>
  text.split(',').map((part) => {
    const n = Number(part);
    if (!(n >= 1) || part.trim() === '') throw new InvalidArgumentError('expected ratios, as in 2,4,8');
    return n;
  });

/** Decoding steps of which --json tells the slowest. */
const JSON_STEPS = 1024;

const percent = (share: number): string => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const costOf = ({ ms, rows, bytes }: Written): string =>
  `${ms.toFixed(1)} ms, ${rows} rows, ${(bytes / 1e6).toFixed(1)} MB`;
const describe = (r: Ratios): string =>
  `${String(r.context).padStart(6)}  of the calibrated bounds: decode ${percent(r.decodeOfBound)}, prefill ${percent(r.prefillOfBound)}, attention ${percent(r.attentionOfDot)}; ` +
  `decode ${percent(r.decodeOfFirst)} of the first context's; of a step: attention ${percent(r.attentionOfStep)}, tracking ${percent(r.trackingOfStep)}; ` +
  `planning ${percent(r.planningOfPrefill)} of prefill; commit of 100 tokens ${costOf(r.commit)}, ` +
  `after ${r.commit.spills.count} spills while they were decoded, ${costOf(r.commit.spills)}; ` +
  `restore ${r.recomputeOverRestore.toFixed(0)} times as fast as recomputing`;

/** The calibration kernels belong to the WASM module; beside the reference they get a memory of the weights' size of their own. */
async function calibratorFor(kernels: Kernels): Promise<WasmKernels> {
  if (kernels.name === 'wasm') return kernels as WasmKernels;
  const own = await loadWasmKernels();
  own.arena.memory.ensure(80e6);
  return own;
}

/** SmolLM2-135M's heads, at 8k tokens where no context is given. */
async function benchAttention(options: BenchOptions): Promise<void> {
  const { context, conversations: counts, json, variant = ['float@4'], unclamped = false } = options;
  const conversations = counts?.at(-1) ?? 64;
  const alive = setInterval(() => {}, 1000);
  try {
    const device = await openWebGpuInNode({ unclamped });
    const percentOf = (x: number): string => `${(100 * x).toFixed(0)} %`;
    const result = await benchWebGpuAttention({
      device,
      shaders: shadersFrom(join(PROJECT_ROOT, 'shaders')),
      shape: { heads: 9, kvHeads: 3, headDim: 64 },
      conversations,
      context: context?.at(-1) ?? 8192,
      variants: variant.includes('sweep') ? SWEEP : variant,
      onResult: (one) => {
        if (json) {
          process.stdout.write(`${JSON.stringify(one)}\n`);
          return;
        }
        for (const name of ['f16', 'packed'] as const) {
          const { milliseconds, gigabytesPerSecond, shareOfCopy, ratio, largestDifference } = one[name];
          process.stdout.write(
            `${one.variant.padEnd(34)} ${name.padEnd(6)} ${milliseconds.toFixed(3)} ms  ${gigabytesPerSecond.toFixed(0)} GB/s (${percentOf(shareOfCopy)} of the copy)  ratio ${ratio.toFixed(2)}` +
              `  off by ${largestDifference.toExponential(1)}\n`,
          );
        }
        process.stdout.write(
          `${one.variant.padEnd(34)} packed is ${one.speedup.toFixed(2)} times as fast as f16\n`,
        );
      },
    });
    device.destroy();
    const { results: _, ...summary } = result;
    process.stdout.write(
      json
        ? `${JSON.stringify(summary)}\n`
        : `${result.device}, subgroups ${result.subgroups}: ${conversations} conversations of ${result.context} tokens, one layer, one dispatch; copy ${result.copyGigabytesPerSecond.toFixed(0)} GB/s; clock in steps of ${result.clockStep} ns\n${result.skipped.map((why) => `not measured: ${why}\n`).join('')}`,
    );
  } finally {
    clearInterval(alive);
  }
}

/** `adkvc bench`: speed of prefill, decoding and restoring at given contexts, one thread, calibrated. */
export function benchCommand(program: Command): void {
  addEngineOptions(program.command('bench'))
    .description('tokens per second, restore times and memory at given context lengths')
    .option('--context <list>', 'tokens in the cache when decoding starts (default 128,512)', contexts)
    .option('--json', 'JSON on standard output')
    .option('--shares', 'where the time goes instead: the share of each kernel in prefill and decoding')
    .option('--kernels', 'GMAC/s and GB/s of every product, relaxed and plain SIMD, beside the calibration')
    .option(
      '--steps <n>',
      'how evenly that many decoding steps come: the slowest beside the median; on a GPU, steps of a window',
      count,
    )
    .option('--trackers', 'what keeping attention history costs, tracker by tracker (context 1024)')
    .option(
      '--token-bytes <ratios>',
      'where the bytes of a token-head go at these ratios (context 4096)',
      ratioList,
    )
    .option('--text <file>', 'with --token-bytes: what is read; seeded noise without')
    .option(
      '--webgpu-attention',
      'attention alone on a GPU, many conversations in one dispatch: packed against f16 and a copy kernel',
    )
    .option(
      '--variant <name...>',
      'with --webgpu-attention: what attends, as float@4, stream-4-8, or sweep for all that are worth knowing',
    )
    .option(
      '--unclamped',
      'with --webgpu-attention: shaders that index without bounds, to learn what Dawn’s bounds cost',
    )
    .option(
      '--host',
      'with --backend webgpu: what the processor does for a GPU, beside one that does nothing; needs none',
    )
    .option(
      '--golden <folder>',
      'with --backend webgpu: greedy continuations and logits beside those of greedy.json and logits.json there',
    )
    .option(
      '--conversations <list>',
      'with --webgpu-attention: conversations in one dispatch (64); with --backend webgpu: decode so many at once, as in 1,8,32',
      contexts,
    )
    .action(async (options: BenchOptions) => {
      if (options.webgpuAttention) return benchAttention(options);
      if (options.trackers) return benchTrackers(options, options.context?.at(-1) ?? 1024);
      if (options.tokenBytes)
        return benchTokenBytes(options, options.tokenBytes, options.context?.at(-1) ?? 4096);
      if (options.kernels) {
        const folder = await wasmFolder();
        for (const variant of ['relaxed', 'plain'] as const)
          benchKernels(variant, folder, (line) => process.stdout.write(`${line}\n`));
        return;
      }
      const config = cacheConfig(options);
      if (options.backend === 'webgpu' && options.host) {
        const source = folderSource(await bundleFolder('compact'));
        const shaders = shadersFrom(join(PROJECT_ROOT, 'shaders'));
        const plans = await wasmPlans();
        for (const context of options.context ?? [1024]) {
          const conversations = options.conversations ?? [1];
          const result = await measureHost({ source, shaders, plans, config, context, conversations });
          process.stdout.write(`${JSON.stringify(result)}\n`);
        }
        return;
      }
      if (options.backend === 'webgpu') {
        const engine = await loadWebGpuCliEngine(options);
        const { conversations = [1], steps, golden } = options;
        if (golden !== undefined) {
          const read = (file: string) => JSON.parse(readFileSync(join(golden, file), 'utf8')).prompts;
          const short = (read('logits.json') as LogitGolden[]).filter(({ ids }) => ids.length <= 2048);
          const result = await compareGoldens(engine, config, read('greedy.json'), short);
          process.stdout.write(`${JSON.stringify(result)}\n`);
          engine.forward.device.destroy();
          return;
        }
        for (const context of options.context ?? [128, 512]) {
          const result = await measureWebGpu(engine, {
            ...{ config, context, conversations },
            ...(steps && { steps }),
          });
          process.stdout.write(`${JSON.stringify(result)}\n`);
        }
        engine.forward.device.destroy();
        return;
      }
      const { engine, kernels, host } = await loadCliEngineParts(options);
      const calibrator = await calibratorFor(kernels);
      const limit = engine.model.contextLength - (options.steps ?? MEASURED_TOKENS);
      const list = options.context ?? [128, 512];
      for (const context of list)
        if (context > limit)
          throw new InvalidInputError(
            `--context ${context} leaves no room to decode: at most ${limit} on this model`,
            '--context',
          );
      if (options.shares) {
        for (const context of list)
          for (const result of await measureShares(engine, kernels, config, context)) {
            if (options.json) process.stdout.write(`${JSON.stringify(result)}\n`);
            else
              process.stdout.write(
                `${result.what.padEnd(14)} ${Object.entries(result.shares)
                  .filter(([, share]) => share >= 0.01)
                  .map(([name, share]) => `${name} ${(share * 100).toFixed(0)} %`)
                  .join(', ')}\n`,
              );
          }
        return;
      }
      if (options.steps !== undefined) {
        for (const context of list) {
          const times = await measureSteps(engine, config, context, options.steps);
          if (options.json) process.stdout.write(`${JSON.stringify(times)}\n`);
          else
            process.stdout.write(
              `${String(context).padStart(6)}  ${times.steps} steps: median ${times.medianMs.toFixed(1)} ms, 99th percentile ${times.p99Ms.toFixed(1)} ms, ` +
                `slowest ${times.slowestOverMedian.toFixed(1)} medians; ends of epochs ${times.epochEndOverMedian.toFixed(1)} medians; ` +
                `slowest positions ${times.slowest.map(({ position, ms }) => `${position} (${ms.toFixed(1)} ms)`).join(', ')}\n`,
            );
        }
        return;
      }
      const results: SpeedResult[] = [];
      for (const context of list) {
        process.stderr.write(`context ${context} ...\n`);
        const result = await measure(engine, kernels, calibrator, config, context);
        results.push(result);
        if (!options.json)
          process.stdout.write(
            `${String(context).padStart(6)}  prefill ${result.prefillTokensPerSecond.toFixed(1)}/s  decode ${result.decodeTokensPerSecond.toFixed(1)}/s  ` +
              `cache ${(result.cache.bytes / 1e6).toFixed(2)} MB (${result.cache.ratio.toFixed(2)}x)  ` +
              `restore ${result.restore.ms.toFixed(1)} ms against ${(result.restore.recomputeMs / 1000).toFixed(1)} s  ` +
              `calibrated ${result.calibration.q4GMACs.toFixed(1)} / ${result.calibration.dotGMACs.toFixed(1)} GMAC/s\n`,
          );
      }
      const shares = results.map((result) => ratios(engine.model, result, results[0]!));
      if (!options.json) {
        for (const share of shares) process.stdout.write(`${describe(share)}\n`);
        return;
      }
      const steps = await measureSteps(engine, config, list[0]!, JSON_STEPS);
      process.stdout.write(
        `${JSON.stringify({ host, calibration: results[0]?.calibration, ratios: shares, steps, results })}\n`,
      );
    });
}
