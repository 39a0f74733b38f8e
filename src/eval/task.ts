import type { CacheConfig } from '../cache/policy.ts';
import type { ModelEngine } from '../engine/engine.ts';
import type { Aside } from './aside.ts';
import type { DataFolder } from './data.ts';
import type { CacheFigures, Saved } from './meter.ts';

/** How samples' values become a task's figure. */
export interface MetricSpec {
  /** Key in Outcome.scores. */
  readonly name: string;
  readonly label: string;
  readonly unit: '%' | 'nats' | '';
  readonly better: 'higher' | 'lower';
  /**
   * rate: 0 or 1 a sample, shown in percent, Wilson's interval. percent: 0 to 1 a sample, shown in percent. mean: as it is. exp: e to the mean.
   * exp-percent: 100 (e to the mean - 1), the relative change of a perplexity when the values are differences of mean losses.
   */
  readonly kind: 'rate' | 'percent' | 'mean' | 'exp' | 'exp-percent';
  /** The sample value that guessing reaches, where that is known. */
  readonly chance?: number;
  /** Scores an answer anew: guessing then is what the full cache's answers reach against other questions' truths. */
  readonly rescore?: (prediction: string, answers: readonly string[]) => number;
}

/** One way to hold the cache. `full` is the reference that everything is measured against. */
export interface Method {
  readonly policy: string;
  /** As asked for; undefined: the policy's own. */
  readonly ratio?: number;
  readonly config: CacheConfig;
  /** streaming unless it is said. */
  readonly protocol?: Protocol;
}

/**
 * streaming: compressed at every epoch while the text comes in, before any question is known. one-shot: once, when the whole prompt is read, the question with it;
 * until then the cache is full.
 */
export type Protocol = 'streaming' | 'one-shot';

export interface Speed {
  readonly prefillTokensPerSecond: number;
  /** 0 where the sample decodes nothing. */
  readonly decodeTokensPerSecond: number;
  readonly ttftMs: number;
  /** A stored state becomes a resident cache again; 0 where it was not tried. */
  readonly restoreMs: number;
}

export interface Outcome {
  /** By metric name. */
  readonly scores: Readonly<Record<string, number>>;
  /** What a reader may want to see: depth, prediction, answers, turns. */
  readonly detail?: Readonly<Record<string, unknown>>;
  /** Tokens fed as prompt or text. */
  readonly tokens: number;
  readonly cache: CacheFigures;
  readonly speed: Speed;
}

/** A sample that this task cannot put to this model (too long for its context): counted, never scored. */
export interface Skipped {
  readonly skipped: string;
}

/** What decides a sample. */
export interface Sample {
  readonly engine: ModelEngine;
  readonly data: DataFolder;
  /** Tokens of the text or prompt, for tasks of any length. */
  readonly length: number;
  /** Sample number from 0. */
  readonly sample: number;
  readonly seed: number;
}

export interface SampleContext extends Sample {
  /** The full cache that methods are measured against, whether its own row is still to be made or not. */
  readonly reference: Method;
  /** True once the run is to end: a task that `pauses` puts aside what it has and returns. */
  readonly stopping: () => boolean;
  readonly aside: Aside;
  readonly prefix: Prefix;
}

/** What the worker read last of a text that samples of a group share: the next one of the same configuration goes on from there. */
export interface Prefix {
  last?: { readonly config: string; readonly ids: readonly number[]; readonly saved: Saved };
}

/** To add a task: one file in tasks/, one line in registry.ts. */
export interface Task {
  readonly name: string;
  readonly description: string;
  /** Raised when results would change: part of each row's key. */
  readonly version: number;
  /** The first is the task's score. */
  readonly metrics: readonly MetricSpec[];
  /** Data files it reads, relative to the data folder. */
  readonly files: readonly string[];
  /** Lengths in tokens unless the caller says otherwise; one 0 where samples have a length of their own. */
  readonly lengths: readonly number[];
  /** Samples there are; Infinity where they are made. */
  count(data: DataFolder): Promise<number>;
  /** All methods of a sample advance together and share work. They are divided among workers only when these would have nothing to do. */
  readonly together?: boolean;
  /** Looks at `stopping` itself and puts its work aside; other tasks lose a sample that is under way when the run ends. */
  readonly pauses?: boolean;
  /** So many samples in a row share what their texts begin with: one worker takes them one after the other, by rising `order`. */
  readonly group?: { readonly size: number; readonly order: (sample: number) => number };
  /** It has a prompt after which methods can compress once. */
  readonly oneShot?: boolean;
  /** An analysis: it looks into one cache of its own instead of comparing methods. */
  readonly analysis?: boolean;
  /**
   * One sample under each of the methods. `emit` gives one method's outcome as soon as it is there.
   * Pure in everything but speed: the same context and method give the same scores.
   */
  run(
    context: SampleContext,
    methods: readonly Method[],
    emit: (method: Method, outcome: Outcome | Skipped) => void,
  ): Promise<void>;
}
