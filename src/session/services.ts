import type { Constraint } from '../engine/constraint.ts';
import type { Engine, EngineCache, GenerateEvent, SamplingOptions } from '../engine/types.ts';
import type { Directories } from './directory.ts';
import type { Scheduler } from './scheduler.ts';

/** engine/generate.ts */
export type Generate = (
  engine: Engine,
  cache: EngineCache,
  ids: readonly number[],
  options: {
    sampling: SamplingOptions;
    stop: readonly string[];
    maxTokens: number;
    constraint?: Constraint;
    current?: () => EngineCache;
    signal?: AbortSignal;
    yield?: () => Promise<void>;
  },
) => AsyncGenerator<GenerateEvent>;

/** What all sessions of an isolate share. */
export interface SessionServices {
  readonly loadEngine: () => Promise<Engine>;
  readonly generate: Generate;
  readonly scheduler: Scheduler;
  /** Where sessions are listed; undefined: nowhere. */
  readonly directories?: Directories;
  /** Bytes that a conversation's cache gets where the request names neither ratio nor bytes. */
  readonly cacheBytes?: number;
  readonly now?: () => number;
}
