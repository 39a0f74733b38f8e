import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { KvCache } from '../cache/cache.ts';
import type { ModelConfig } from '../core/config.ts';
import { hash32 } from '../core/random.ts';
import type { ModelEngine } from '../engine/engine.ts';
import type { Kernels } from '../kernels/kernels.ts';
import { LAYOUT_VERSION } from '../kernels/layout.ts';
import { commit } from '../session/commit.ts';
import type { Head } from '../session/head.ts';
import { EMPTY_LOG } from '../session/log.ts';
import { restore } from '../session/recover.ts';
import { spill, spillable } from '../session/spill.ts';
import { type StateRecord, StateRows } from '../session/state.ts';
import { Checkpointer } from '../session/store/checkpointer.ts';
import { NodeSqliteStore } from '../session/store/node-sqlite.ts';
import { median } from './steps.ts';

/** What compression costs while it runs. */
export interface DecodeCosts {
  /** Multiply-adds a second, 1e9, of attention in the fastest window of decoding steps, counted over the cells that are held. */
  readonly attentionGMACs: number;
  /** Share of that window that attention takes. */
  readonly attentionShare: number;
  /** What adding attention up as history adds to a step, as a share of it; 0 where the policy keeps no history. */
  readonly trackingShare: number;
}

export interface Written {
  readonly ms: number;
  readonly rows: number;
  readonly bytes: number;
}

/** What storing a state costs, over SQLite in a file. */
export interface CommitCosts {
  /** The first commit, which writes the whole state. */
  readonly whole: Written;
  /** The commit after `tokens` more, which were decoded one by one, and what was spilled while they were. */
  readonly turn: Written & { readonly tokens: number; readonly spills: Written & { readonly count: number } };
  /** Stored rows -> resident cache. */
  readonly restoreMs: number;
}

const TURN_TOKENS = 100;
const TURNS = 3;
/** One pair differs by a tenth of a step from another on a shared core: so many leave half a percent. */
const PAIRS = 192;
/** Tokens that the measurements feed. */
export const COMMIT_TOKENS = TURNS * TURN_TOKENS;
export const COST_TOKENS = 2 * PAIRS;

/** Replaces a method while `work` runs. */
export async function wrapped<T extends object, R>(
  target: T,
  name: keyof T,
  make: (method: (...args: unknown[]) => unknown) => (...args: unknown[]) => unknown,
  work: () => Promise<R>,
): Promise<R> {
  const own = Object.hasOwn(target, name);
  const original = target[name] as (...args: unknown[]) => unknown;
  target[name] = make(original.bind(target)) as T[keyof T];
  try {
    return await work();
  } finally {
    if (own) target[name] = original as T[keyof T];
    else delete target[name];
  }
}

/** Milliseconds that calls of a method took while `work` ran. */
export async function timeOf<T extends object>(
  target: T,
  names: readonly (keyof T)[],
  work: () => Promise<unknown>,
): Promise<number> {
  let ms = 0;
  const clocked =
    (method: (...args: unknown[]) => unknown) =>
    (...args: unknown[]): unknown => {
      const start = performance.now();
      try {
        return method(...args);
      } finally {
        ms += performance.now() - start;
      }
    };
  const nest = (at: number): Promise<unknown> =>
    at === names.length ? work() : wrapped(target, names[at]!, clocked, () => nest(at + 1));
  await nest(0);
  return ms;
}

/** DecodeCosts.trackingShare at the cache's position. The cache is not the conversation's any more afterwards: some steps left no history. */
export async function measureTracking(
  engine: ModelEngine,
  kernels: Kernels,
  cache: KvCache,
): Promise<number> {
  const { vocab } = engine.model;
  const out = new Float32Array(vocab);
  let fed = 0;
  const step = async (): Promise<number> => {
    const start = performance.now();
    await engine.feed(cache, [hash32(fed++, 77) % vocab], 'last', { out });
    return performance.now() - start;
  };
  const without = (): Promise<number> =>
    wrapped(kernels, 'attend', (attend) => (run) => attend({ ...(run as object), mass: 0 }), step);
  if (!cache.tracksMass) return 0;
  const whole: number[] = [];
  const more: number[] = [];
  // Pairs, each way round in turn: what disturbs a shared core lasts for longer than one.
  for (let i = 0; i < PAIRS; i++) {
    const first = i % 2 === 0 ? undefined : await without();
    const ms = await step();
    whole.push(ms);
    more.push(ms - (first ?? (await without())));
  }
  return Math.max(0, median(more) / median(whole));
}

/** Multiply-adds of a decoding step's attention over the cells that are held: each is met as a key and as a value by every query head of its group. */
export function attentionProducts({ heads, kvHeads, headDim }: ModelConfig, cache: KvCache): number {
  const held = Object.entries(cache.report().tiers).reduce(
    (sum, [name, n]) => sum + (name === 'drop' ? 0 : n),
    0,
  );
  return held * 2 * headDim * (heads / kvHeads);
}

/** Stores the cache, feeds TURN_TOKENS, stores it again, restores it. */
export async function measureCommit(engine: ModelEngine, cache: KvCache): Promise<CommitCosts> {
  const folder = mkdtempSync(join(tmpdir(), 'adkvc-bench-'));
  const store = new NodeSqliteStore(join(folder, 'session.sqlite'), new Checkpointer());
  try {
    let head: Head = {
      id: 'bench',
      createdAt: 0,
      lastUsedAt: 0,
      ttlSeconds: null,
      implicit: false,
      cacheConfig: cache.config,
      report: null,
      engine: {
        model: 'bench',
        fingerprint: engine.fingerprint,
        numerics: engine.numerics,
        layoutVersion: LAYOUT_VERSION,
      },
      log: EMPTY_LOG,
      states: [],
    };
    let stored: StateRecord | undefined;
    const known = new StateRows();
    const timed = <T extends { rows: number; bytes: number }>(work: () => T): T & Written => {
      const start = performance.now();
      const result = work();
      return { ...result, ms: performance.now() - start };
    };
    const once = async (spilled = 0): Promise<Written> => {
      const result = timed(() => commit(store, head, cache, stored, [], known, spilled));
      ({ head, stored } = result);
      // As a turn does; other conversations run meanwhile.
      await store.sync();
      return result;
    };
    const whole = await once();
    const turns: Omit<CommitCosts['turn'], 'tokens'>[] = [];
    for (let i = 0; i < TURNS; i++) {
      const spills = { count: 0, ms: 0, rows: 0, bytes: 0 };
      for (let j = 0; j < TURN_TOKENS; j++) {
        await engine.feed(cache, [hash32(i, j) % engine.model.vocab], 'none');
        const what = spillable(cache, stored);
        if (!what) continue;
        const result = timed(() => spill(store, head.states, cache, stored!, what, [], known));
        stored = result.stored;
        spills.count++;
        for (const key of ['ms', 'rows', 'bytes'] as const) spills[key] += result[key];
      }
      turns.push({ ...(await once(spills.rows)), spills });
    }
    const turn = turns.sort((a, b) => a.ms - b.ms)[TURNS >> 1]!;
    const start = performance.now();
    restore(store, engine, stored!).dispose();
    return { whole, turn: { ...turn, tokens: TURN_TOKENS }, restoreMs: performance.now() - start };
  } finally {
    store.close();
    await store.settled();
    rmSync(folder, { recursive: true, force: true });
  }
}
