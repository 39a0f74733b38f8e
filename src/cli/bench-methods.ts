import { readFileSync } from 'node:fs';
import { measureTokenBytes, noiseIds, type TokenBytes, tokenBytesTable } from '../bench/token-bytes.ts';
import { measureTrackers, trackerTable } from '../bench/trackers.ts';
import { InvalidInputError } from '../core/errors.ts';
import { cacheConfig, type EngineOptions } from './engine-options.ts';
import { loadCliEngineParts } from './load-engine.ts';

interface MethodOptions extends EngineOptions {
  json?: boolean;
  text?: string;
}

/** `adkvc bench --trackers`: what keeping attention history costs, tracker by tracker. */
export async function benchTrackers(options: MethodOptions, context: number): Promise<void> {
  const { engine, kernels } = await loadCliEngineParts(options);
  const result = await measureTrackers(engine, kernels, options.ratio ?? 4, context);
  process.stdout.write(`${options.json ? JSON.stringify(result) : trackerTable(result)}\n`);
}

/** `adkvc bench --token-bytes 2,4,8`: where the bytes of a token-head go at each ratio. */
export async function benchTokenBytes(
  options: MethodOptions,
  ratios: readonly number[],
  context: number,
): Promise<void> {
  const { engine } = await loadCliEngineParts(options);
  const ids =
    options.text === undefined
      ? noiseIds(engine.model.vocab, context)
      : engine.tokenizer.encode(readFileSync(options.text, 'utf8')).slice(0, context);
  if (ids.length < context)
    throw new InvalidInputError(`${options.text} has ${ids.length} tokens, not ${context}`, '--text');
  const rows: TokenBytes[] = [];
  for (const ratio of ratios)
    rows.push(await measureTokenBytes(engine, { ...cacheConfig({ ...options, ratio }), ratio }, ids));
  process.stdout.write(`${options.json ? JSON.stringify(rows) : tokenBytesTable(rows)}\n`);
}
