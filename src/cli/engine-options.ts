import { type Command, InvalidArgumentError, Option } from 'commander';
import { type CacheConfig, DEFAULT_CACHE } from '../cache/policy.ts';
import { STREAMING_POLICIES } from '../cache/registry.ts';
import { InvalidInputError } from '../core/errors.ts';

/** What `score`, `generate`, `bench` and `chat` take alike. */
export interface EngineOptions {
  backend: 'wasm' | 'reference' | 'webgpu';
  policy: string;
  ratio?: number;
  bytes?: number;
  window: number;
  sinks: number;
  seed: number;
  quotas?: string;
  exact?: boolean;
  arithmetic?: Arithmetic;
  /** false: --no-profile. */
  profile?: boolean;
}

const number =
  (what: string, check: (n: number) => boolean) =>
  (text: string): number => {
    const value = Number(text);
    if (text.trim() === '' || !check(value)) throw new InvalidArgumentError(`expected ${what}`);
    return value;
  };
export const positive = number('a positive number', (n) => Number.isFinite(n) && n > 0);
export const count = number('a positive integer', (n) => Number.isInteger(n) && n > 0);
export const natural = number('a whole number', (n) => Number.isInteger(n) && n >= 0);

/** As options name them. */
export type Arithmetic = 'int' | 'float';
export const ARITHMETICS: readonly Arithmetic[] = ['int', 'float'];
export const arithmeticOption = (): Option =>
  new Option(
    '--arithmetic <kind>',
    'attention over packed cells by integer dots, or by float32 over the same codes (default: float with --exact)',
  ).choices(ARITHMETICS);
export const arithmeticOf = ({
  arithmetic,
  exact,
}: Pick<EngineOptions, 'arithmetic' | 'exact'>): CacheConfig['arithmetic'] =>
  (arithmetic ?? (exact ? 'float' : 'int')) === 'float' ? 'float' : 'integer';

export function addEngineOptions(command: Command, policy = DEFAULT_CACHE.policy): Command {
  return command
    .addOption(
      new Option('--backend <name>', 'kernels').choices(['wasm', 'reference', 'webgpu']).default('wasm'),
    )
    .addOption(
      new Option('--policy <name>', 'how the cache is compressed')
        .choices(STREAMING_POLICIES)
        .default(policy),
    )
    .option('--ratio <r>', 'fp16 bytes over bytes held that the policy aims at', positive)
    .option('--bytes <n>', 'bytes the cache may hold (instead of --ratio)', count)
    .option('--window <n>', 'newest tokens kept exact', natural, DEFAULT_CACHE.window)
    .option('--sinks <n>', 'first tokens kept exact', natural, DEFAULT_CACHE.sinks)
    .option('--quotas <list>', 'what messages keep, as in "system=4,4 documents=25%:2,1 turns=2,1"')
    .option('--seed <n>', 'seed of every random choice', natural, 0)
    .option('--no-profile', "plan without the model's measured head profile")
    .option('--exact', 'weights as stored, float32 arithmetic; with --policy full a float32 cache')
    .addOption(arithmeticOption());
}

export function cacheConfig(o: EngineOptions): CacheConfig {
  if (o.ratio !== undefined && o.bytes !== undefined)
    throw new InvalidInputError('--ratio and --bytes exclude each other: give one', '--ratio');
  return {
    policy: o.policy,
    ...(o.ratio === undefined ? {} : { ratio: o.ratio }),
    ...(o.bytes === undefined ? {} : { bytes: o.bytes }),
    ...(o.quotas === undefined ? {} : { quotas: o.quotas }),
    window: o.window,
    sinks: o.sinks,
    seed: o.seed,
    exactBits: o.exact && o.policy === 'full' ? 32 : 16,
    arithmetic: arithmeticOf(o),
    ...(o.profile === false ? { useProfile: false } : {}),
  };
}
