import { cpus } from 'node:os';
import type { CacheConfig } from '../cache/policy.ts';
import { createPolicy } from '../cache/registry.ts';
import { InvalidInputError } from '../core/errors.ts';
import { folderSource } from '../prepare/folder-source.ts';
import { readManifest } from '../runtime/model.ts';
import { DataFolder } from './data.ts';
import type { Job, JobResult, LoadOptions } from './job.ts';
import { createPool, type Pool, type Unit } from './pool.ts';
import { TASKS } from './registry.ts';
import { type Origin, ResultLog, type Row, type RowSpec, rowKey } from './rows.ts';
import type { Method, Protocol, Task } from './task.ts';

/** A policy at a ratio, and in which fields its configuration differs from the run's. */
export interface MethodSpec {
  readonly policy: string;
  readonly ratio?: number;
  readonly config?: Partial<CacheConfig>;
  readonly protocol?: Protocol;
}

/** Of every task and length: numbers from (included) and to (not). */
export interface SampleRange {
  readonly from: number;
  readonly to: number;
}

export interface RunOptions extends Omit<LoadOptions, 'stop' | 'aside'> {
  /** JSON lines; rows already there are not made again. */
  readonly out: string;
  readonly tasks: readonly string[];
  /** Besides full, which always runs. */
  readonly methods: readonly MethodSpec[];
  /** Tokens; empty: each task's own. */
  readonly lengths: readonly number[];
  readonly samples: SampleRange;
  readonly seeds: readonly number[];
  readonly window: number;
  readonly sinks: number;
  /** A float32 full cache. */
  readonly exact: boolean;
  /** How packed cells are attended to, unless a method says otherwise. */
  readonly arithmetic: CacheConfig['arithmetic'];
  /** false: policies plan as for a model that was never calibrated. */
  readonly useProfile: boolean;
  readonly workers: number;
  readonly commit: string;
  readonly onProgress: (progress: Progress) => void;
  /** What a reader should know at once: a worker that died, methods that run again. */
  readonly onNote: (note: string) => void;
  /** Ends the run early: nothing new is begun, and what is under way is put aside or given up. */
  readonly signal?: AbortSignal;
}

export interface RunResult {
  /** Of exactly these configurations, old and new. */
  readonly rows: readonly Row[];
  /** Rows that the next run has still to make. */
  readonly left: number;
  /** The same by task, for a reader. */
  readonly leftByTask: Readonly<Record<string, number>>;
}

export interface Progress {
  readonly rows: number;
  readonly totalRows: number;
  /** Rows that an earlier run had finished. */
  readonly reused: number;
  readonly elapsedMs: number;
  /** NaN until something is finished. */
  readonly remainingMs: number;
  readonly last?: Row;
}

/** The cache that analyses look into: attention mass is tracked and hardly anything is compressed. */
const ANALYSED = { policy: 'adkvc', ratio: 1 };
/** What a sample of its own length counts as, to foretell the time that is left. */
const TYPICAL_TOKENS = 4096;

/**
 * Runs tasks x lengths x samples x seeds x methods, as far as the log lacks them, and appends each row as soon as it is known.
 * Work that the signal interrupts lies aside in a folder beside the log until a later run takes it up.
 */
export async function runEvaluation(options: RunOptions): Promise<RunResult> {
  const data = new DataFolder(options.data);
  const tasks = options.tasks.map((name) => {
    const task = TASKS[name];
    if (!task)
      throw new InvalidInputError(
        `unknown task "${name}": use one of ${Object.keys(TASKS).join(', ')}`,
        '--tasks',
      );
    data.require(task.files);
    return task;
  });
  await checkMethods(options);
  for (const { name, oneShot, analysis } of tasks)
    if (!oneShot && !analysis && options.methods.some((m) => m.protocol === 'one-shot'))
      options.onNote(`${name} has no prompt: it runs without the one-shot methods`);
  const hashes: Record<string, string> = {};
  for (const file of new Set(tasks.flatMap((t) => t.files))) hashes[file] = await data.sha256(file);
  const places = await Promise.all(tasks.map((task) => placesOf(task, options, data)));

  const log = new ResultLog(options.out);
  try {
    const pool = await createPool({ ...options, aside: `${options.out}.aside` }, options.workers);
    options.signal?.addEventListener('abort', pool.stop);
    if (options.signal?.aborted) pool.stop();
    try {
      return await runOn(pool, log, places.flat(), hashes, options);
    } finally {
      await pool.close();
    }
  } finally {
    log.close();
  }
}

/** Samples of a task at one length and seed. */
interface Place {
  readonly task: Task;
  readonly length: number;
  readonly seed: number;
  readonly range: SampleRange;
  /** Of the task in all. */
  readonly samples: number;
}

async function placesOf(task: Task, options: RunOptions, data: DataFolder): Promise<Place[]> {
  const there = await task.count(data);
  const { from } = options.samples;
  if (from >= there)
    throw new InvalidInputError(
      `${task.name} has no sample ${from}: its samples are 0 to ${there - 1}`,
      '--samples',
    );
  const range = { from, to: Math.min(options.samples.to, there) };
  const lengths = task.lengths[0] === 0 || options.lengths.length === 0 ? task.lengths : options.lengths;
  return lengths.flatMap((length) =>
    options.seeds.map((seed) => ({
      ...{ task, length, seed, range },
      samples: (range.to - range.from) * lengths.length * options.seeds.length,
    })),
  );
}

/** What no policy takes is told before hours are spent. @throws InvalidInputError naming method, field and what would be right */
async function checkMethods(options: RunOptions): Promise<void> {
  const { model } = await readManifest(folderSource(options.bundle));
  for (const seed of options.seeds)
    for (const spec of [FULL, ...options.methods]) {
      const { config } = methodOf(spec, options, seed);
      try {
        createPolicy(spec.protocol === 'one-shot' ? { ...config, oneShot: 1 } : config, model);
      } catch (error) {
        if (!(error instanceof InvalidInputError)) throw error;
        const at = spec.ratio === undefined ? '' : ` at ${spec.ratio}x`;
        throw new InvalidInputError(`${spec.policy}${at}: ${error.message}`, error.param);
      }
    }
}

async function runOn(
  pool: Pool,
  log: ResultLog,
  places: readonly Place[],
  hashes: Readonly<Record<string, string>>,
  options: RunOptions,
): Promise<RunResult> {
  const specOf = (task: Task, job: Omit<Job, 'methods' | 'task' | 'reference'>, method: Method): RowSpec => ({
    task: task.name,
    taskVersion: task.version,
    length: job.length,
    sample: job.sample,
    seed: job.seed,
    config: method.config,
    protocol: method.protocol ?? 'streaming',
    ...pool.identity,
    data: Object.fromEntries(task.files.map((f) => [f, hashes[f]!])),
  });
  const wanted = new Map<string, string>();
  const units: Unit[] = [];
  for (const { task, length, seed, range, samples: inAll } of places) {
    const methods = methodsOf(task, options, seed);
    const reference = methodOf(FULL, options, seed);
    const parts = task.together
      ? inParts(methods, Math.ceil(options.workers / inAll))
      : methods.map((m) => [m]);
    for (const samples of grouped(range, task.group))
      for (const part of parts) {
        const jobs = samples.map((sample): Job => {
          const place = { length, sample, seed };
          const methods = part.filter((m) => {
            const key = rowKey(specOf(task, place, m));
            // Named twice, as adkvc and adkvc+window=16: one row.
            const again = wanted.has(key);
            wanted.set(key, task.name);
            return !again && !log.finished(key);
          });
          return { task: task.name, ...place, methods, reference };
        });
        const open = jobs.filter((job) => job.methods.length > 0);
        if (open.length > 0) units.push(open);
      }
  }
  const host = `${cpus()[0]?.model.trim() ?? 'unknown processor'}, ${process.platform} ${process.arch}, ${Math.max(1, options.workers)} of ${cpus().length} cores`;
  const origin = (): Origin => ({
    commit: options.commit,
    node: process.versions.node,
    host,
    at: new Date().toISOString(),
  });
  const rowOf = (job: Job, { method: index, outcome, error, processPeakBytes }: JobResult): Row => {
    const method = job.methods[index]!;
    const spec = specOf(TASKS[job.task]!, job, method);
    return {
      key: rowKey(spec),
      ...spec,
      policy: method.policy,
      ratio: method.ratio ?? null,
      ...(error === undefined ? {} : { error }),
      ...(outcome && 'skipped' in outcome ? { skipped: outcome.skipped } : {}),
      ...(outcome && 'scores' in outcome
        ? {
            scores: outcome.scores,
            detail: outcome.detail,
            tokens: outcome.tokens,
            cache: outcome.cache,
            measured: { ...outcome.speed, processPeakBytes },
          }
        : {}),
      origin: origin(),
    };
  };
  const clock = new Clock(wanted.size, units.flat(), options.onProgress);
  let broken: unknown;
  await pool.run(units, {
    onResult: (job, result) => {
      if (broken !== undefined) return;
      const row = rowOf(job, result);
      try {
        log.append(row);
      } catch (error) {
        broken = error;
        pool.stop();
        return;
      }
      clock.row(row);
    },
    onTokens: (job, tokens) => clock.tokens(job, tokens),
    onDone: (job) => clock.done(job),
    onDeath: (job, reason) => {
      clock.died(job);
      options.onNote(`a worker died in ${job.task}, sample ${job.sample}: ${reason}`);
    },
    onNote: options.onNote,
  });
  if (broken !== undefined) throw broken;
  const leftByTask: Record<string, number> = {};
  let left = 0;
  for (const [key, task] of wanted)
    if (!log.rows.has(key)) {
      leftByTask[task] = (leftByTask[task] ?? 0) + 1;
      left++;
    }
  return { rows: [...wanted.keys()].flatMap((key) => log.rows.get(key) ?? []), left, leftByTask };
}

const FULL: MethodSpec = { policy: 'full' };

function methodOf(
  { policy, ratio, config: own, protocol }: MethodSpec,
  options: RunOptions,
  seed: number,
): Method {
  const config: CacheConfig = {
    policy,
    ...(ratio === undefined ? {} : { ratio }),
    window: options.window,
    sinks: options.sinks,
    seed,
    exactBits: options.exact && policy === 'full' ? 32 : 16,
    arithmetic: options.arithmetic,
    ...(options.useProfile || policy === 'full' ? {} : { useProfile: false }),
    ...own,
  };
  return {
    policy,
    ...(ratio === undefined ? {} : { ratio }),
    config,
    ...(protocol === 'one-shot' ? { protocol } : {}),
  };
}

function methodsOf(task: Task, options: RunOptions, seed: number): Method[] {
  const method = (spec: MethodSpec): Method => methodOf(spec, options, seed);
  if (task.analysis) return [method(ANALYSED)];
  const own = options.methods.filter(
    (m) => m.policy !== 'full' && (m.protocol !== 'one-shot' || task.oneShot),
  );
  return [FULL, ...own].map(method);
}

/** Deals the methods out, the same way each time, so that what lies aside is found again. */
function inParts(methods: readonly Method[], count: number): Method[][] {
  const parts: Method[][] = Array.from({ length: Math.max(1, Math.min(count, methods.length)) }, () => []);
  for (const [i, method] of methods.entries()) parts[i % parts.length]!.push(method);
  return parts;
}

/** Those of a group together, by its order. */
function grouped({ from, to }: SampleRange, group: Task['group']): number[][] {
  const groups: number[][] = [];
  for (let sample = from; sample < to; sample++) {
    if (sample === from || sample % (group?.size ?? 1) === 0) groups.push([]);
    groups.at(-1)!.push(sample);
  }
  return group ? groups.map((g) => g.sort((a, b) => group.order(a) - group.order(b))) : groups;
}

/** Tokens times methods: what a job costs, roughly. */
const costOf = (job: Job): number => (job.length || TYPICAL_TOKENS) * job.methods.length;

/** Tells how far a run is, and foretells the rest by tokens. */
export class Clock {
  readonly #start = performance.now();
  readonly #totalRows: number;
  readonly #reused: number;
  readonly #cost: number;
  readonly #report: (progress: Progress) => void;
  #rows: number;
  /** Of the jobs that are done, and those under way: tokens. */
  #spent = 0;
  readonly #running = new Map<Job, number>();
  #last: Row | undefined;

  constructor(totalRows: number, jobs: readonly Job[], report: (progress: Progress) => void) {
    this.#totalRows = totalRows;
    this.#reused = totalRows - jobs.reduce((sum, job) => sum + job.methods.length, 0);
    this.#rows = this.#reused;
    this.#cost = jobs.reduce((sum, job) => sum + costOf(job), 0);
    this.#report = report;
    this.#tell();
  }
  row(row: Row): void {
    this.#rows++;
    this.#last = row;
    this.#tell();
  }
  tokens(job: Job, tokens: number): void {
    this.#running.set(job, Math.min(tokens, costOf(job)));
    this.#tell();
  }
  /** What it had not finished comes again, as other jobs. */
  died(job: Job): void {
    this.#running.delete(job);
    this.#tell();
  }
  done(job: Job): void {
    this.#running.delete(job);
    this.#spent += costOf(job);
    this.#tell();
  }
  #tell(): void {
    const elapsedMs = performance.now() - this.#start;
    const spent = [...this.#running.values()].reduce((sum, tokens) => sum + tokens, this.#spent);
    this.#report({
      rows: this.#rows,
      totalRows: this.#totalRows,
      reused: this.#reused,
      elapsedMs,
      remainingMs: spent === 0 ? Number.NaN : (elapsedMs / spent) * (this.#cost - spent),
      last: this.#last,
    });
  }
}
