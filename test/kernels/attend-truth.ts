import type { Arena } from '../../src/core/arena.ts';
import { fromF16 } from '../../src/kernels/cache-math.ts';
import type { AttendArgs } from '../../src/kernels/kernels.ts';
import { DROP, exactKAt, exactVAt, recordTiers } from '../../src/kernels/layout.ts';
import type { CacheKernels } from '../../src/kernels/reference-cache.ts';
import { type BuiltCache, type CacheCase, f32At, u8At } from './cache-cases.ts';

/** Units of mass: 78 queries cannot saturate a cell. */
export const MASS_UNIT = 512;

/** Runs `attend` over a built cache in fresh memory; rows [from, from + rows) of the case. */
export function runAttend(
  kernels: CacheKernels,
  arena: Arena,
  c: CacheCase,
  built: BuiltCache,
  options: {
    arithmetic: 'integer' | 'float';
    mass?: boolean;
    massMode?: 'sum' | 'max';
    segmentQueries?: number;
    sinkQueries?: number;
    sinks?: number;
    position?: number;
    from?: number;
    rows?: number;
    workspaceBytes?: number;
  },
): Float32Array {
  const { from = 0, rows = c.rows } = options;
  const width = c.heads * c.headDim;
  const workspaceBytes =
    options.workspaceBytes ??
    kernels.attendWorkspaceBytes({
      rows,
      heads: c.heads,
      kvHeads: c.kvHeads,
      headDim: c.headDim,
      cells: built.cells,
    });
  const [work, out] = [arena.alloc(workspaceBytes), arena.alloc(rows * width * 4)];
  u8At(arena, arena.ptr(work), workspaceBytes).fill(0xff);
  const args: AttendArgs = {
    q: built.q + from * width * 4,
    ldQ: width,
    rows,
    heads: c.heads,
    headDim: c.headDim,
    scale: 1 / Math.sqrt(c.headDim),
    segments: built.segments,
    segmentCount: built.segmentCount,
    exact: built.exact,
    visible: c.visible + from,
    out: arena.ptr(out),
    ldOut: width,
    mass: options.mass ? MASS_UNIT : 0,
    massMode: options.massMode ?? 'sum',
    position: (options.position ?? 1000) + from,
    segmentQueries: options.segmentQueries ?? 0,
    sinkQueries: options.sinkQueries ?? 0,
    sinks: options.sinks ?? 0,
    arithmetic: options.arithmetic,
    workspace: arena.ptr(work),
    workspaceBytes,
  };
  kernels.attend(args);
  const result = f32At(arena, arena.ptr(out), rows * width).slice();
  arena.free(out);
  arena.free(work);
  return result;
}

export interface Truth {
  readonly out: Float64Array;
  /** Expected mass [kvHead][cell of softmax order, padding included as 0] of all rows. */
  readonly mass: Float64Array[];
}

/** Attention in float64 over what `decodeRecord` says and the exact part's values: softmax of every visible cell, no blocks, no tiles. */
export function attendTruth(
  kernels: CacheKernels,
  arena: Arena,
  c: CacheCase,
  built: BuiltCache,
  segmentQueries: readonly number[] = [],
): Truth {
  const { headDim, heads, kvHeads, rows } = c;
  const group = heads / kvHeads;
  const out = new Float64Array(rows * heads * headDim);
  const massOf: Float64Array[] = [];
  for (let h = 0; h < kvHeads; h++) {
    const keys: number[][] = [];
    const values: number[][] = [];
    const queries: number[] = [];
    c.segments.forEach((s, i) => {
      const { record } = built.records[i]![h]!;
      if (!record) return;
      const [k, v] = [arena.alloc(s.tokens * headDim * 4), arena.alloc(s.tokens * headDim * 4)];
      kernels.decodeRecord(record, s.tokens, headDim, arena.ptr(k), arena.ptr(v));
      const tiers = new Uint8Array(s.tokens);
      recordTiers(u8At(arena, 0, arena.memory.buffer.byteLength), record, s.tokens, headDim, tiers);
      const before = keys.length;
      for (let id = 0; id < DROP; id++) {
        let n = 0;
        for (let t = 0; t < s.tokens; t++) {
          if (tiers[t] !== id) continue;
          keys.push([...f32At(arena, arena.ptr(k) + t * headDim * 4, headDim)]);
          values.push([...f32At(arena, arena.ptr(v) + t * headDim * 4, headDim)]);
          n++;
        }
        for (; n % 4; n++) {
          keys.push([]);
          values.push([]);
        }
      }
      for (let cell = before; cell < keys.length; cell++) queries.push(segmentQueries[i] ?? built.q);
      arena.free(v);
      arena.free(k);
    });
    const e = built.exact;
    const before = keys.length;
    const slots = c.visible + rows - 1;
    const read = (at: number): number[] =>
      e.bits === 32
        ? [...f32At(arena, at, headDim)]
        : Array.from(new Uint16Array(arena.memory.buffer, at, headDim), fromF16);
    for (let s = 0; s < slots; s++) {
      keys.push(read(e.ptr + exactKAt(e, h) + (s * headDim * e.bits) / 8));
      values.push(read(e.ptr + exactVAt(e, h) + (s * headDim * e.bits) / 8));
    }
    const mass = new Float64Array(keys.length);
    for (let r = 0; r < rows; r++) {
      for (let head = h * group; head < (h + 1) * group; head++) {
        const qAt = (r * heads + head) * headDim * 4;
        const cells = before + c.visible + r;
        const scores = keys.slice(0, cells).map((k, cell) => {
          if (k.length === 0) return Number.NEGATIVE_INFINITY;
          const q = f32At(arena, (queries[cell] ?? built.q) + qAt, headDim);
          return k.reduce((sum, x, i) => sum + x * q[i]!, 0) / Math.sqrt(headDim);
        });
        const max = Math.max(...scores);
        const p = scores.map((s) => Math.exp(s - max));
        const total = p.reduce((a, b) => a + b, 0);
        p.forEach((w, i) => {
          if (w === 0) return;
          mass[i]! += (w / total) * MASS_UNIT;
          for (let ch = 0; ch < headDim; ch++)
            out[(r * heads + head) * headDim + ch]! += (w / total) * values[i]![ch]!;
        });
      }
    }
    massOf.push(mass);
  }
  return { out, mass: massOf };
}

/** The masses a run left, in the order of `Truth.mass`. */
export function massesOf(
  arena: Arena,
  c: CacheCase,
  built: BuiltCache,
  massAt: (h: number) => number,
): Uint16Array[] {
  return Array.from({ length: c.kvHeads }, (_, h) => {
    const all: number[] = [];
    for (const of of built.records)
      all.push(...new Uint16Array(arena.memory.buffer, of[h]!.mass, of[h]!.cells));
    all.push(...new Uint16Array(arena.memory.buffer, built.exact.ptr + massAt(h), c.visible + c.rows - 1));
    return Uint16Array.from(all);
  });
}

export const largest = (values: ArrayLike<number>): number => {
  let m = 0;
  for (let i = 0; i < values.length; i++) m = Math.max(m, Math.abs(values[i]!));
  return m;
};
export const largestDifference = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  if (a.length !== b.length) return Number.POSITIVE_INFINITY;
  let m = 0;
  for (let i = 0; i < a.length; i++) {
    const d = Math.abs(a[i]! - b[i]!);
    if (!(d <= m)) m = d;
  }
  return m;
};
