import { KvCache } from '../../src/cache/cache.ts';
import type { MessageMark } from '../../src/cache/messages.ts';
import type { CacheStateReader } from '../../src/cache/persist.ts';
import type { CacheConfig } from '../../src/cache/policy.ts';
import { DEFAULT_CACHE } from '../../src/cache/policy.ts';
import type { HeadProfile } from '../../src/cache/profile.ts';
import { restoreCache } from '../../src/cache/restore.ts';
import type { ModelConfig } from '../../src/core/config.ts';
import { uniform01 } from '../../src/core/random.ts';
import type { Kernels } from '../../src/kernels/kernels.ts';
import { referenceKernels, wasmKernels } from './kernels.ts';

export const SHAPE: ModelConfig = {
  name: 'shape',
  architecture: 'llama',
  layers: 2,
  hidden: 32,
  heads: 4,
  kvHeads: 2,
  headDim: 16,
  ffn: 32,
  vocab: 8,
  contextLength: 4096,
  ropeTheta: 10_000,
  rmsEps: 1e-5,
  attentionScale: 0.25,
};

/** Gaussian noise as a pure function of what it is for. */
const noise = (...indices: number[]): number =>
  Math.sqrt(-2 * Math.log(1 - uniform01(...indices))) * Math.cos(2 * Math.PI * uniform01(...indices, 9));

interface TokenRow {
  readonly k: Float32Array;
  readonly v: Float32Array;
  readonly q: Float32Array;
}
/** Tests feed the same positions again and again: each is made once. */
const rows = new Map<string, TokenRow>();
function tokenAt(model: ModelConfig, position: number, layer: number): TokenRow {
  const { heads, kvHeads, headDim } = model;
  const key = `${heads} ${kvHeads} ${headDim} ${position} ${layer}`;
  let row = rows.get(key);
  if (!row) {
    // Every 7th key is one that queries look for, so that mass is uneven.
    const beacon = position % 7 === 0 ? 1.5 : 0;
    const make = (n: number, what: number, shift: number): Float32Array =>
      Float32Array.from({ length: n }, (_, i) => noise(position, layer, i, what) + shift);
    row = {
      k: make(kvHeads * headDim, 1, beacon),
      v: make(kvHeads * headDim, 2, 0),
      q: make(heads * headDim, 3, 0.5),
    };
    rows.set(key, row);
  }
  return row;
}

/**
 * Drives a cache with keys, values and queries that are a pure function of the position, as a model would: what attention answers
 * can be compared, and the state must not depend on the chunks.
 */
export function cacheDriver(
  overrides: Partial<CacheConfig> = {},
  {
    reference = false,
    profile,
    model = SHAPE,
    ids,
    marks,
  }: {
    reference?: boolean;
    profile?: HeadProfile;
    model?: ModelConfig;
    ids?: readonly number[];
    marks?: readonly MessageMark[];
  } = {},
) {
  const kernels: Kernels = reference ? referenceKernels(64e6) : wasmKernels('plain', 64e6);
  const { arena } = kernels;
  const width = model.kvHeads * model.headDim;
  const ldQ = model.heads * model.headDim;
  const scratch = arena.allocStatic(4 * 128 * (2 * width + 2 * ldQ));
  const tierScratch = arena.allocStatic(model.kvHeads * 128);
  const table = arena.allocStatic(4 * 64);
  const workspaceBytes = 1_000_000;
  const workspace = arena.allocStatic(workspaceBytes);
  const context = {
    kernels,
    model,
    fingerprint: 'f',
    tierScratch,
    profile,
    ...(marks ? { marks: () => marks } : {}),
  };
  const config: CacheConfig = { ...DEFAULT_CACHE, ...overrides };

  /** Feeds `rows` positions; returns the attention outputs, row by row, layers side by side. */
  function feed(cache: KvCache, rows: number): number[][] {
    cache.reserve(rows);
    if (ids) cache.hear(ids.slice(cache.position, cache.position + rows));
    const [k, v] = [scratch, scratch + 4 * 128 * width];
    const q = v + 4 * 128 * width;
    const out = q + 4 * 128 * ldQ;
    const outputs: number[][] = Array.from({ length: rows }, () => []);
    for (let layer = 0; layer < model.layers; layer++) {
      const f32 = (at: number, n: number): Float32Array => new Float32Array(arena.memory.buffer, at, n);
      for (let r = 0; r < rows; r++) {
        const row = tokenAt(model, cache.position + r, layer);
        f32(k, 128 * width).set(row.k, r * width);
        f32(v, 128 * width).set(row.v, r * width);
        f32(q, 128 * ldQ).set(row.q, r * ldQ);
      }
      for (const run of cache.runs(layer, rows)) {
        const slot = cache.begin(layer, run);
        const exact = cache.exactRef(layer);
        kernels.appendExact(exact, slot, run.rows, k + run.from * width * 4, v + run.from * width * 4, width);
        const segments = cache.segmentPtrs(layer);
        new Uint32Array(arena.memory.buffer, table, segments.length).set(segments);
        kernels.attend({
          q: q + run.from * ldQ * 4,
          ldQ,
          rows: run.rows,
          heads: model.heads,
          headDim: model.headDim,
          scale: model.attentionScale,
          segments: table,
          segmentCount: segments.length,
          exact,
          visible: slot + 1,
          out: out + run.from * ldQ * 4,
          ldOut: ldQ,
          ...cache.massOf(run),
          position: cache.position + run.from,
          arithmetic: config.arithmetic,
          workspace,
          workspaceBytes,
        });
      }
      for (let r = 0; r < rows; r++) outputs[r]!.push(...f32(out + r * ldQ * 4, ldQ));
    }
    cache.advance(rows);
    return outputs;
  }

  return {
    context,
    config,
    create: () => new KvCache(context, config),
    feed,
    /** Feeds up to `position` in chunks of at most `chunk`. */
    feedTo(cache: KvCache, position: number, chunk = 128): number[][] {
      const outputs: number[][] = [];
      while (cache.position < position)
        outputs.push(...feed(cache, Math.min(chunk, cache.room, position - cache.position)));
      return outputs;
    },
  };
}

/** Everything that a session would store, as one comparable value. */
export function stateOf(cache: KvCache): { header: unknown; bytes: Uint8Array[] } {
  const bytes: Uint8Array[] = [];
  for (let layer = 0; layer < cache.layers; layer++) {
    bytes.push(cache.hot(layer));
    for (let s = 0; s < cache.segmentsOf(layer); s++) bytes.push(cache.block(layer, s));
  }
  return { header: cache.header, bytes };
}

/** What a session would store: blocks as they were at `old`, if given, with the plans since as a journal; hot parts as they are now. */
export function readerOf(
  now: KvCache,
  old?: { cache: KvCache; journal: KvCache['journal'] },
): CacheStateReader {
  const pending = now.completePlan();
  const source = (layer: number, segment: number): KvCache =>
    old && segment < old.cache.segmentsOf(layer) ? old.cache : now;
  const journal = old?.journal ?? (pending ? [pending] : []);
  return {
    header: JSON.parse(JSON.stringify(now.header)),
    hot: (layer) => now.hot(layer),
    block(layer, segment) {
      const from = source(layer, segment);
      return { version: from.blockVersion(layer, segment), bytes: from.block(layer, segment) };
    },
    journal,
  };
}

/** Bytes once everything outside the window is compressed and every plan applied; `cache` itself goes on. */
export function finishedBytes(driver: ReturnType<typeof cacheDriver>, cache: KvCache): number {
  const copy = restoreCache(driver.context, readerOf(cache));
  copy.finish();
  const { bytes } = copy;
  copy.dispose();
  return bytes;
}
