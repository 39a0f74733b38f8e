import { loadOnCpu, loadWebGpuInNode } from '../cli/load-engine.ts';
import { AdkvcError, InvalidInputError, UnsupportedModelError } from '../core/errors.ts';
import type { ModelEngine } from '../engine/engine.ts';
import { LAYOUT_VERSION } from '../kernels/layout.ts';
import { folderSource } from '../prepare/folder-source.ts';
import { readManifest } from '../runtime/model.ts';
import { Aside } from './aside.ts';
import { DataFolder } from './data.ts';
import { TASKS } from './registry.ts';
import type { Method, Outcome, Prefix, SampleContext, Skipped } from './task.ts';

export interface LoadOptions {
  /** Folder of a prepared model. */
  readonly bundle: string;
  readonly data: string;
  readonly backend: 'wasm' | 'reference' | 'webgpu';
  /** Most bytes of one worker's kernel memory. */
  readonly maxBytes: number;
  /** Folder for work that is put aside. */
  readonly aside: string;
  /** [1], shared: anything but 0 once nothing new may begin. */
  readonly stop: Int32Array;
}

export interface Identity {
  readonly model: string;
  readonly weightForm: string;
  readonly fingerprint: string;
  readonly numerics: string;
  /** sha256 of the heads' measured sensitivity in the bundle; 'none' where the model was not calibrated. */
  readonly profile: string;
}

/** One sample under the methods that still lack it. */
export interface Job {
  readonly task: string;
  readonly length: number;
  readonly sample: number;
  readonly seed: number;
  readonly methods: readonly Method[];
  /** The full cache that they are measured against. */
  readonly reference: Method;
}

/** What became of one method of a job. */
export interface JobResult {
  /** Index in Job.methods. */
  readonly method: number;
  readonly outcome?: Outcome | Skipped;
  readonly error?: string;
  /** Peak memory of the whole process so far. */
  readonly processPeakBytes: number;
}

export interface Loaded {
  readonly identity: Identity;
  run(job: Job, listener: JobEvents): Promise<void>;
}

export interface JobEvents {
  readonly emit: (result: JobResult) => void;
  /** How many tokens the job has fed so far, about once a second. */
  readonly onTokens: (tokens: number) => void;
  /** What a reader should know at once. */
  readonly onNote: (note: string) => void;
}

/** Loads the model once; jobs follow one another on it. */
export async function loadJobs(options: LoadOptions): Promise<Loaded> {
  const { bundle, backend, maxBytes } = options;
  const source = folderSource(bundle);
  const manifest = await readManifest(source);
  const engine =
    backend === 'webgpu'
      ? await loadWebGpuInNode(source, maxBytes)
      : await loadOnCpu(source, backend, maxBytes);
  const data = new DataFolder(options.data);
  const stopping = (): boolean => Atomics.load(options.stop, 0) !== 0;
  const { fingerprint, numerics } = engine;
  const profile = manifest.profile?.sha256 ?? 'none';
  const aside = new Aside(options.aside, { fingerprint, numerics, profile, layout: LAYOUT_VERSION });
  const prefix: Prefix = {};
  return {
    identity: {
      model: engine.model.name,
      weightForm: manifest.weightForm,
      fingerprint,
      numerics,
      profile,
    },
    run: (job, events) => {
      const context = { ...job, engine: counting(engine, events.onTokens), data, stopping, aside, prefix };
      return runJob(context, job, events, (error) => beyondModel(error, manifest.chatTemplate !== null));
    },
  };
}

/** The run ends before this job did: its missing rows are the next run's. */
class Stopped extends AdkvcError {
  constructor() {
    super('stopped', 'the run ended before this sample did');
  }
}

const TELL_MS = 1000;

/** The same engine, which tells how many tokens it was fed. */
function counting(engine: ModelEngine, onTokens: (tokens: number) => void): ModelEngine {
  let tokens = 0;
  let told = performance.now();
  const feedEach: ModelEngine['feedEach'] = async (cache, ids, ...rest) => {
    await engine.feedEach(cache, ids, ...rest);
    tokens += ids.length;
    if (performance.now() - told < TELL_MS) return;
    told = performance.now();
    onTokens(tokens);
    // Without workers, this thread also hears of signals and the deadline.
    await new Promise((resolve) => setImmediate(resolve));
  };
  return Object.create(engine, { feedEach: { value: feedEach } }) as ModelEngine;
}

/**
 * A method that fails does not take the others with it: they run again one by one. What the model cannot do at all (chat without a template, say)
 * fails no row: it is skipped, with the reason.
 */
async function runJob(
  context: SampleContext,
  job: Job,
  { emit, onNote }: JobEvents,
  beyond: (error: unknown) => boolean,
): Promise<void> {
  const task = TASKS[job.task];
  if (!task) throw new Error(`no task ${job.task}`);
  const done = new Set<Method>();
  const { engine } = context;
  // A task that cannot pause is left between two feeds.
  const own = task.pauses ? context : { ...context, engine: stoppable(engine, context.stopping) };
  const run = (methods: readonly Method[]): Promise<void> =>
    task.run(own, methods, (method, outcome) => {
      if ('scores' in outcome)
        // JSON has no such numbers: they would be lost in silence.
        for (const [name, value] of Object.entries(outcome.scores))
          if (!Number.isFinite(value)) throw new Error(`the score ${name} of ${method.policy} is ${value}`);
      done.add(method);
      emit({ method: job.methods.indexOf(method), outcome, processPeakBytes: peak() });
    });
  const open = (): Method[] => job.methods.filter((m) => !done.has(m));
  try {
    await run(job.methods);
  } catch (cause) {
    if (cause instanceof Stopped) return;
    if (open().length > 1 && !beyond(cause))
      onNote(
        `${job.task}, sample ${job.sample}: ${textOf(cause)}: ${open().length} methods run again, one by one`,
      );
    for (const method of open())
      try {
        await run([method]);
      } catch (error) {
        if (error instanceof Stopped) return;
        const text = textOf(error);
        const what = beyond(error) ? { outcome: { skipped: text } } : { error: text };
        emit({ method: job.methods.indexOf(method), ...what, processPeakBytes: peak() });
        done.add(method);
      }
  }
  if (context.stopping()) return;
  for (const method of open())
    emit({
      method: job.methods.indexOf(method),
      error: `task ${job.task} gave no outcome`,
      processPeakBytes: peak(),
    });
}

const textOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
/** Not a fault of the sample: this model, or this backend with it, can do no such thing. */
const beyondModel = (error: unknown, chat: boolean): boolean =>
  error instanceof UnsupportedModelError ||
  (!chat && error instanceof InvalidInputError && error.param === 'messages');

/** The same engine, which feeds nothing any more once the run is to end. */
function stoppable(engine: ModelEngine, stopping: () => boolean): ModelEngine {
  const feedEach: ModelEngine['feedEach'] = async (...args) => {
    if (stopping()) throw new Stopped();
    await engine.feedEach(...args);
  };
  return Object.create(engine, { feedEach: { value: feedEach } }) as ModelEngine;
}

const peak = (): number => process.resourceUsage().maxRSS * 1024;
