import { readFileSync } from 'node:fs';
import type { KvCache } from '../../src/cache/cache.ts';
import { type CacheConfig, DEFAULT_CACHE } from '../../src/cache/policy.ts';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { logSumExp } from '../../src/engine/sampler.ts';
import { sharedPath } from './shared.ts';

/** A golden JSON file; only called inside describeShared. */
export const golden = (file: string): any => JSON.parse(readFileSync(sharedPath('golden', file)!, 'utf8'));

/** numpy format 1.0, '<f4', C order. */
export function readNpy(file: string): Float32Array {
  const bytes = readFileSync(sharedPath('golden', file)!);
  const header = bytes.readUInt16LE(8);
  return new Float32Array(
    bytes.buffer.slice(bytes.byteOffset + 10 + header, bytes.byteOffset + bytes.length),
  );
}

/** Weights as stored, float32 arithmetic, a float32 cache: what the goldens compute. */
export const EXACT_FULL: CacheConfig = {
  ...DEFAULT_CACHE,
  policy: 'full',
  exactBits: 32,
  arithmetic: 'float',
};

export interface Scored {
  readonly nll: number[];
  readonly top1: number[];
  /** Logits at the positions asked for. */
  readonly logits: Map<number, Float32Array>;
  readonly report: ReturnType<KvCache['report']>;
}

/** Scores ids on an empty cache. */
export async function score(
  engine: ModelEngine,
  config: CacheConfig,
  ids: readonly number[],
  keep: readonly number[] = [],
  chunk = 128,
): Promise<Scored> {
  const cache = engine.createCache(config);
  const nll: number[] = [];
  const top1: number[] = [];
  const logits = new Map<number, Float32Array>();
  try {
    await engine.feedEach(
      cache,
      ids,
      () => true,
      (i, row) => {
        if (i + 1 < ids.length) nll.push(logSumExp(row) - row[ids[i + 1]!]!);
        let best = 0;
        for (let id = 1; id < row.length; id++) if (row[id]! > row[best]!) best = id;
        top1.push(best);
        if (keep.includes(i)) logits.set(i, row.slice());
      },
      { chunk },
    );
    return { nll, top1, logits, report: cache.report() };
  } finally {
    cache.dispose();
  }
}

export const mean = (xs: readonly number[]): number => xs.reduce((a, b) => a + b, 0) / xs.length;
export const maxDifference = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let most = 0;
  for (let i = 0; i < b.length; i++) most = Math.max(most, Math.abs(a[i]! - b[i]!));
  return most;
};
