import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join, resolve } from 'node:path';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { DEFAULT_CACHE } from '../cache/policy.ts';
import { ONE_SHOT_ONLY, POLICIES } from '../cache/registry.ts';
import { AdkvcError, InvalidInputError } from '../core/errors.ts';
import { MAX_TIMER_MS } from '../core/timer.ts';
import { TASKS } from '../eval/registry.ts';
import { writeReport } from '../eval/report.ts';
import { isCurrent, type Row, readRows } from '../eval/rows.ts';
import { type MethodSpec, type Progress, runEvaluation, type SampleRange } from '../eval/run.ts';
import { isKnown } from '../eval/summary.ts';
import { bundleFolder, PROJECT_ROOT } from './bundle-folder.ts';
import {
  ARITHMETICS,
  type Arithmetic,
  arithmeticOf,
  arithmeticOption,
  natural,
  positive,
} from './engine-options.ts';
import { CLI_KERNEL_BYTES } from './load-engine.ts';

interface EvaluateOptions {
  tasks: string[];
  policies: string[];
  ratios: number[];
  lengths: number[];
  samples: SampleRange;
  seeds: number[];
  window: number;
  sinks: number;
  exact?: boolean;
  arithmetic?: Arithmetic;
  profile: boolean;
  backend: 'wasm' | 'reference' | 'webgpu';
  bundle?: string;
  data: string;
  out: string;
  report?: string;
  reportOnly?: boolean;
  workers?: number;
  minutes?: number;
  memory: number;
  list?: boolean;
}

const parts = (text: string, between: string | RegExp, example: string): string[] => {
  const all = text.split(between).filter((part) => part !== '');
  if (all.length === 0) throw new InvalidArgumentError(`expected names, as in ${example}`);
  return all;
};
const list = (text: string): string[] => parts(text, ',', 'pg19,needle-essay');
/** A comma within tiers (8,8) stands between two digits. */
const policyList = (text: string): string[] => parts(text, /,(?!\d)/, 'adkvc,h2o@4');
const range = (text: string): SampleRange => {
  const [, first, last] = /^(\d+)(?:-(\d+))?$/.exec(text) ?? [];
  const samples =
    last === undefined ? { from: 0, to: Number(first) } : { from: Number(first), to: Number(last) + 1 };
  if (!(samples.from < samples.to))
    throw new InvalidArgumentError('expected a number of samples, or the first and the last, as in 16-19');
  return samples;
};
const numbers =
  (what: string, right: (n: number) => boolean) =>
  (text: string): number[] =>
    text.split(',').map((part) => {
      const n = Number(part);
      if (part.trim() === '' || !right(n)) throw new InvalidArgumentError(`expected ${what}`);
      return n;
    });
const ratioList = numbers('ratios, as in 2,4,8', (n) => n > 0 && Number.isFinite(n));
const lengthList = numbers(
  'whole numbers of tokens from 2, as in 2048,4096',
  (n) => Number.isInteger(n) && n >= 2,
);
const seedList = numbers('whole numbers, as in 0,1,2', (n) => Number.isInteger(n) && n >= 0);

/** `adkvc evaluate`: tasks x methods x ratios x seeds over the cores; JSON lines, resumable, and a report. */
export function evaluateCommand(program: Command): void {
  program
    .command('evaluate')
    .description('measures every way of holding the cache against the full one, and reports it')
    .option('--tasks <names>', 'tasks (--list shows them), comma-separated', list, ['pg19', 'needle-essay'])
    .option(
      '--policies <names>',
      'policies, each at all ratios or, as in h2o@4, at one of its own, with fields of its configuration as in adkvc+floor=1+window=32, or +one-shot; full always runs',
      policyList,
      Object.keys(POLICIES),
    )
    .option('--ratios <list>', 'fp16 bytes over bytes held', ratioList, [4])
    .option('--lengths <list>', "tokens of text or prompt (default: each task's own)", lengthList, [])
    .option('--samples <n>', 'samples a task and length: 5, or 16-19 for those numbers', range, {
      from: 0,
      to: 5,
    })
    .option('--seeds <list>', 'seeds of samples and random choices', seedList, [0])
    .option('--window <n>', 'newest tokens kept exact', natural, DEFAULT_CACHE.window)
    .option('--sinks <n>', 'first tokens kept exact', natural, DEFAULT_CACHE.sinks)
    .option('--exact', 'weights as stored, float arithmetic')
    .addOption(arithmeticOption())
    .option('--no-profile', "plan without the model's measured head profile")
    .addOption(
      new Option('--backend <name>', 'kernels').choices(['wasm', 'reference', 'webgpu']).default('wasm'),
    )
    .option('--bundle <dir>', 'a prepared model (default: the embedded one)')
    .option('--data <dir>', "the evaluation's texts", join(PROJECT_ROOT, '../shared/evaldata'))
    .option('--out <file>', 'results as JSON lines; finished ones are not made again', 'evaluation.jsonl')
    .option('--report <dir>', 'writes report.md and report.html over all rows of --out')
    .option('--report-only', 'runs nothing, only writes the report')
    .option(
      '--workers <n>',
      'threads to use (default: one a core), with webgpu processes that share the GPU (default 1); 0: none beside this one',
      natural,
    )
    .option(
      '--minutes <n>',
      'begins nothing new after so long, puts aside what is under way, and says what is left',
      positive,
    )
    .option('--memory <GB>', 'most kernel memory of a worker', positive, CLI_KERNEL_BYTES / 1e9)
    .option('--list', 'prints the tasks and ends')
    .action(async (options: EvaluateOptions) => {
      if (options.list) {
        for (const task of Object.values(TASKS))
          process.stdout.write(`${task.name.padEnd(32)} ${task.description}\n`);
        return;
      }
      if (options.reportOnly && options.report === undefined)
        throw new InvalidInputError('--report-only needs --report', '--report');
      const out = resolve(options.out);
      const folder = options.report === undefined ? undefined : reportFolder(options.report);
      if (options.reportOnly && !existsSync(out))
        throw new InvalidInputError(`${out} is not there: nothing to report`, '--out');
      const failed = options.reportOnly ? [] : await evaluate(options, out);
      if (folder !== undefined) {
        const all = [...readRows(out).rows.values()];
        const rows = all.filter((row) => isKnown(row) && isCurrent(row));
        if (rows.length < all.length)
          process.stderr.write(
            `${all.length - rows.length} rows of other versions of their policy or task are not in the report\n`,
          );
        await writeReport(rows, folder);
        process.stderr.write(`${join(folder, 'report.md')} and report.html\n`);
      }
      if (failed.length > 0)
        throw new AdkvcError(
          'evaluation_failed',
          `${failed.length} rows failed, for what is said above; the same command tries them again`,
        );
    });
}

/** Made before anything runs: hours later would be late to hear that it cannot be. */
function reportFolder(path: string): string {
  const folder = resolve(path);
  try {
    mkdirSync(folder, { recursive: true });
  } catch (error) {
    throw new InvalidInputError(
      `${folder} cannot be a folder (${(error as Error).message}): name another with --report`,
      '--report',
    );
  }
  return folder;
}

/** @returns rows that failed */
async function evaluate(options: EvaluateOptions, out: string): Promise<Row[]> {
  const named = options.policies.flatMap((text) => methodsNamed(text, options.ratios));
  const methods = [...new Map(named.map((m) => [JSON.stringify(m), m])).values()];
  const bundle = options.bundle ?? (await bundleFolder(options.exact ? 'exact' : 'compact'));
  const ending = new AbortController();
  const minutes = options.minutes ?? Number.POSITIVE_INFINITY;
  const ms = minutes * 60_000;
  const deadline = ms <= MAX_TIMER_MS ? setTimeout(() => ending.abort(), ms) : undefined;
  const onSignal = (signal: NodeJS.Signals): void => {
    process.stderr.write(
      `${signal}: ending; what is finished is in ${out}, the same command goes on from it\n`,
    );
    ending.abort();
  };
  process.once('SIGINT', onSignal).once('SIGTERM', onSignal);
  const { rows, left, leftByTask } = await runEvaluation({
    bundle: resolve(bundle),
    data: resolve(options.data),
    backend: options.backend,
    maxBytes: options.memory * 1e9,
    out,
    tasks: options.tasks,
    methods,
    lengths: options.lengths,
    samples: options.samples,
    seeds: options.seeds,
    window: options.window,
    sinks: options.sinks,
    exact: options.exact ?? false,
    arithmetic: arithmeticOf(options),
    useProfile: options.profile,
    workers: options.workers ?? (options.backend === 'webgpu' ? 1 : availableParallelism()),
    commit: commit(),
    onProgress: progressLine(),
    onNote: (note) => process.stderr.write(`${note}\n`),
    signal: ending.signal,
  }).finally(() => {
    clearTimeout(deadline);
    process.off('SIGINT', onSignal).off('SIGTERM', onSignal);
  });
  const failed = rows.filter((row) => row.error !== undefined);
  const skipped = rows.filter((row) => row.skipped !== undefined).length;
  for (const row of failed)
    process.stderr.write(`${row.task} ${row.policy}@${row.ratio} sample ${row.sample}: ${row.error}\n`);
  process.stdout.write(
    `${JSON.stringify({ out, rows: rows.length, failed: failed.length, skipped, left, leftByTask })}\n`,
  );
  return failed;
}

const NUMBERS = ['window', 'sinks', 'decay', 'lastQueries', 'pool', 'block', 'floor', 'high', 'mid'] as const;
const TEXTS = ['tracker', 'tiers', 'quotas'] as const;
const FLAGS = ['useProfile', 'estimate'] as const;

/** `adkvc` runs at every ratio of --ratios, `adkvc@8` at its own alone, `adkvc@8+floor=1+tiers=8,8 4,4 drop` changed in these fields,
 * `snapkv@4+one-shot` once after the prompt. */
function methodsNamed(text: string, ratios: readonly number[]): MethodSpec[] {
  const [named, ...changes] = text.split('+') as [string, ...string[]];
  const [policy, own, ...rest] = named.split('@') as [string, string?, ...string[]];
  if (!POLICIES[policy])
    throw new InvalidInputError(
      `unknown policy "${policy}": use ${Object.keys(POLICIES).join(', ')}`,
      '--policies',
    );
  const ratio = Number(own);
  if (rest.length > 0 || (own !== undefined && !(ratio > 0)))
    throw new InvalidInputError(`"${text}" names no ratio: write ${policy}@4`, '--policies');
  if (policy === 'full') return [];
  const once = changes.includes('one-shot') || ONE_SHOT_ONLY.has(policy);
  const config = Object.fromEntries(
    changes
      .filter((c) => c !== 'one-shot')
      .map((change) => {
        const [field, value = ''] = change.split('=') as [string, string?];
        if ((FLAGS as readonly string[]).includes(field) && /^(true|false)$/.test(value))
          return [field, value === 'true'];
        if (field === 'arithmetic' && (ARITHMETICS as readonly string[]).includes(value))
          return [field, arithmeticOf({ arithmetic: value as Arithmetic })];
        const number = (NUMBERS as readonly string[]).includes(field);
        if (
          value === '' ||
          !(number ? Number.isFinite(Number(value)) : (TEXTS as readonly string[]).includes(field))
        )
          throw new InvalidInputError(
            `"${change}" of "${text}" is no change: write one of ${[...NUMBERS, ...TEXTS, ...FLAGS, 'arithmetic'].join(', ')}, as in floor=0.3`,
            '--policies',
          );
        return [field, number ? Number(value) : value];
      }),
  );
  return (own === undefined ? ratios : [ratio]).map((r) => ({
    policy,
    ratio: r,
    config,
    protocol: once ? 'one-shot' : 'streaming',
  }));
}

/** The sources' commit, "+" behind it where they were changed since; outside of a checkout what was packed along, or "unknown". */
function commit(): string {
  const packed = join(PROJECT_ROOT, 'commit');
  if (existsSync(packed)) return readFileSync(packed, 'utf8').trim();
  const git = (...args: string[]): string =>
    execFileSync('git', args, {
      cwd: PROJECT_ROOT,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim();
  try {
    return (
      git('rev-parse', '--short=12', 'HEAD') +
      (git('status', '--porcelain', '--', 'src', 'wasm', 'shaders') === '' ? '' : '+')
    );
  } catch {
    return 'unknown';
  }
}

const duration = (ms: number): string => {
  if (Number.isNaN(ms)) return '?';
  const s = Math.round(ms / 1000);
  return s < 60
    ? `${s} s`
    : s < 3600
      ? `${Math.floor(s / 60)} min ${s % 60} s`
      : `${(s / 3600).toFixed(1)} h`;
};

/** How far it is and how long it takes still: one line rewritten on a terminal, a line every ten seconds elsewhere. */
function progressLine(): (progress: Progress) => void {
  const terminal = process.stderr.isTTY;
  let at = Number.NEGATIVE_INFINITY;
  return (p) => {
    const finished = p.rows === p.totalRows;
    const now = performance.now();
    if (!finished && now - at < (terminal ? 200 : 10_000)) return;
    at = now;
    const last = p.last
      ? `, last ${p.last.task} ${p.last.policy}${p.last.ratio === null ? '' : `@${p.last.ratio}`}`
      : '';
    const reused = p.reused > 0 ? ` (${p.reused} from before)` : '';
    const text = `${p.rows} of ${p.totalRows} rows${reused}, ${duration(p.elapsedMs)} gone, ${finished ? 'done' : `about ${duration(p.remainingMs)} left`}${last}`;
    process.stderr.write(terminal ? `\r\x1b[K${text}${finished ? '\n' : ''}` : `${text}\n`);
  };
}
