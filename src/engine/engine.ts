import { KvCache } from '../cache/cache.ts';
import { positionLimit } from '../cache/gaps.ts';
import type { HeadProfile } from '../cache/profile.ts';
import { PropagatingCache } from '../cache/propagating-cache.ts';
import { ONE_SHOT_ONLY } from '../cache/registry.ts';
import { restoreCache } from '../cache/restore.ts';
import { worstCaseBytes } from '../cache/worst-case.ts';
import { EPOCH } from '../core/config.ts';
import { AbortedError, ContextLengthError, InvalidInputError } from '../core/errors.ts';
import type { RecordKernels } from '../kernels/kernels.ts';
import type { PlanInstances } from '../kernels/wasm-plan.ts';
import { type ForwardPass, SLICE_MACS } from '../runtime/forward.ts';
import type { LoadedModel } from '../runtime/model.ts';
import { messageMarks } from './message-marks.ts';
import type { ChatTemplate, Engine, EngineCache, RunOptions, Tokenizer, TopLogits } from './types.ts';
import { Workspace } from './workspace.ts';

export interface EngineParts {
  readonly loaded: Pick<LoadedModel, 'manifest' | 'config' | 'weightBytes' | 'tierScratch'> & {
    readonly kernels: RecordKernels;
  };
  readonly forward: ForwardPass;
  readonly tokenizer: Tokenizer;
  readonly template: ChatTemplate;
  /** The heads' measured sensitivity, if the bundle has it. */
  readonly profile?: HeadProfile | undefined;
  /** The kernels' unless something else computes a part. */
  readonly numerics?: string;
  /** Makes plans faster. */
  readonly plans?: PlanInstances | undefined;
  /** Bytes of onnxruntime's heap: 0 unless a node was left to it. */
  readonly ortHeapBytes?: (() => number) | undefined;
}

/** Rows a chunk has while other turns wait: results do not depend on it (kernels are row-invariant), waiting does. */
export const SHARED_CHUNK = 32;

/**
 * Decoding steps between two yields, at most: a macrotask of workerd's that lets others in takes more than a millisecond (its timers count in them), a tenth of a
 * step. Who waits for the workspace is not kept waiting by it: the next step queues behind them.
 */
const STEPS_BETWEEN_YIELDS = 4;

/** Makes a value when it is first asked for. */
function once<T>(make: () => T): () => T {
  let made: { readonly value: T } | undefined;
  return () => {
    made ??= { value: make() };
    return made.value;
  };
}

/** Where the host injected no yield (a command of its own process). */
const macrotask = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 0));

export interface ModelEngine extends Engine {
  createCache(config: KvCache['config']): KvCache;
  /** Like `feed`, but hands out the logits of every row of the chunk that `wanted` accepts; the view is valid during the call only. */
  feedEach(
    cache: EngineCache,
    ids: readonly number[],
    wanted: (index: number) => boolean,
    sink: (index: number, logits: Float32Array) => void,
    options?: RunOptions & { chunk?: number },
  ): Promise<void>;
}

/** The engine over one loaded model. Turns of different conversations take the workspace chunk by chunk, first come first served. */
export function createEngine(parts: EngineParts): ModelEngine {
  const { loaded, forward, tokenizer, template } = parts;
  const { kernels, config: model, manifest } = loaded;
  const context = {
    kernels,
    model,
    fingerprint: manifest.fingerprint,
    tierScratch: loaded.tierScratch,
    profile: parts.profile,
    plans: parts.plans,
    marks: once(() => messageMarks(template)),
  };
  const limitOf = (config: KvCache['config']): number => positionLimit(model, config);
  const workspace = new Workspace(forward);
  /** Multiply-adds of a decoding step: a weight is half a byte or more. */
  const stepMacs = (position: number): number =>
    2 * loaded.weightBytes + position * model.headDim * 2 * model.heads * model.layers;
  let steps = 0;
  let macs = 0;
  /** After a decoding step: whether as much was computed since others were last let in as a slice of a prefill takes. */
  const sliceIsFull = (position: number): boolean => {
    macs += stepMacs(position);
    if (++steps < STEPS_BETWEEN_YIELDS && macs < SLICE_MACS) return false;
    steps = 0;
    macs = 0;
    return true;
  };

  async function feedEach(
    engineCache: EngineCache,
    ids: readonly number[],
    wanted: (index: number) => boolean,
    sink: (index: number, logits: Float32Array, top?: Uint32Array) => void,
    options: RunOptions & { chunk?: number; top?: number } = {},
  ): Promise<void> {
    const cache = engineCache as KvCache;
    const tokens = cache.position + ids.length;
    const limit = limitOf(cache.config);
    if (tokens > limit)
      throw new ContextLengthError(
        limit > model.contextLength
          ? `${tokens} tokens exceed the ${limit} that a conversation may have`
          : `${tokens} tokens exceed the model's context of ${limit}`,
        { tokens, limit },
      );
    for (const [i, id] of ids.entries())
      if (!Number.isInteger(id) || id < 0 || id >= model.vocab)
        throw new InvalidInputError(
          `ids[${i}] is ${id}: token ids are integers from 0 to ${model.vocab - 1}`,
          `ids[${i}]`,
        );
    const pause = options.yield ?? macrotask;
    if (ids.length === 1 && workspace.together) {
      if (options.signal?.aborted) throw new AbortedError();
      const tell = wanted(0)
        ? (logits: Float32Array, top?: Uint32Array): void => sink(0, logits, top)
        : undefined;
      await workspace.step({ cache, id: ids[0]!, top: options.top, sink: tell }, pause);
      await options.yield?.();
      return;
    }
    for (let at = 0; at < ids.length; ) {
      if (options.signal?.aborted) throw new AbortedError();
      await workspace.exclusive(pause, async (alone) => {
        const most = alone ? EPOCH : SHARED_CHUNK;
        const rows = Math.min(ids.length - at, cache.room, options.chunk ?? most);
        const begin = at;
        const rowsWanted: number[] = [];
        for (let r = 0; r < rows; r++) if (wanted(begin + r)) rowsWanted.push(r);
        const chunk = ids.slice(begin, begin + rows);
        cache.hear(chunk);
        await forward.run(cache, chunk, rowsWanted, (row, logits, top) => sink(begin + row, logits, top), {
          ...{ yield: options.yield, top: options.top },
        });
        at += rows;
      });
      if (ids.length > 1 || sliceIsFull(cache.position)) await options.yield?.();
    }
  }

  return {
    model,
    fingerprint: manifest.fingerprint,
    numerics: parts.numerics ?? kernels.numerics,
    tokenizer,
    template,
    eosIds: manifest.eosIds,
    createCache: (config) =>
      ONE_SHOT_ONLY.has(config.policy) ? new PropagatingCache(context, config) : new KvCache(context, config),
    restoreCache: (reader) => restoreCache(context, reader),
    positionLimit: limitOf,
    worstCaseBytes: (config, tokens) => worstCaseBytes({ model }, config, tokens),
    get availableBytes() {
      return kernels.arena.availableBytes;
    },
    feedEach,
    ...(forward.mostTop !== undefined && {
      mostTop: forward.mostTop,
      async feedTop(cache, ids, count, options) {
        let found: TopLogits | undefined;
        await feedEach(
          cache,
          ids,
          (i) => i === ids.length - 1,
          (_, logits, top) => {
            found = { logits, ids: top! };
          },
          { ...options, top: count },
        );
        return found!;
      },
    }),
    async feed(cache, ids, want, options) {
      const count = want === 'all' ? ids.length : want === 'last' ? 1 : 0;
      const first = ids.length - count;
      const out = options?.out ?? new Float32Array(count * model.vocab);
      await feedEach(
        cache,
        ids,
        (i) => i >= first,
        (i, logits) => out.set(logits, (i - first) * model.vocab),
        options,
      );
      return out;
    },
    ledger: () => ({
      weights: loaded.weightBytes,
      workspace: forward.workspaceBytes,
      kernelStatic: kernels.arena.staticBytes - loaded.weightBytes - forward.workspaceBytes,
      caches: kernels.arena.liveBytes,
      plans: parts.plans?.bytes ?? 0,
      ortHeap: parts.ortHeapBytes?.() ?? 0,
      kernelMemory: kernels.arena.memory.buffer.byteLength,
    }),
  };
}
