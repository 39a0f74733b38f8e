import type { Arena, Ptr } from '../../src/core/arena.ts';
import type { ExactRef } from '../../src/kernels/kernels.ts';
import {
  DROP,
  exactBytes,
  exactMassAt,
  massBytes,
  recordBytes,
  recordCells,
  SEGMENT_HEADER_BYTES,
  segmentHeaderBytes,
  TIER_IDS,
  TIERS,
  tierNamed,
} from '../../src/kernels/layout.ts';
import type { CacheKernels } from '../../src/kernels/reference-cache.ts';

/** One list of caches for the tests and the benchmark of the cache kernels. */
export interface CacheCase {
  readonly name: string;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly segments: readonly SegmentCase[];
  /** Exact slots that row 0 sees, its own included. */
  readonly visible: number;
  readonly rows: number;
  readonly bits: 16 | 32;
}
export interface SegmentCase {
  readonly tokens: number;
  /** Tier of token t for a kvHead. */
  readonly tier: (kvHead: number, t: number) => number;
}

const all = (name: string) => (): number => tierNamed(name);
/** Every tier from `first` on, and drops, mixed irregularly. */
const mixed =
  (first: number) =>
  (kvHead: number, t: number): number => {
    const ids = [...TIERS.filter((x) => x.id >= first && !x.plain).map((x) => x.id), DROP];
    return ids[(t * 7 + ((t * t) >> 3) + kvHead * 5) % ids.length]!;
  };
/** Plain tiers and drops. */
const mixedPlain = (kvHead: number, t: number): number =>
  [tierNamed('q8_0'), tierNamed('q4_0'), DROP][(t * 5 + (t >> 3) + kvHead) % 3]!;
const smol = { heads: 9, kvHeads: 3, headDim: 64 } as const;

export const TIER_NAMES = TIERS.map((t) => t.name);

export const ATTEND_CASES: readonly CacheCase[] = [
  { name: 'exact part only', ...smol, segments: [], visible: 5, rows: 3, bits: 16 },
  { name: 'f32 exact part only', ...smol, segments: [], visible: 130, rows: 9, bits: 32 },
  ...TIER_NAMES.map((name) => ({
    name: `tier ${name}`,
    ...smol,
    segments: [
      { tokens: 60, tier: all(name) },
      { tokens: 128, tier: all(name) },
    ],
    visible: 69,
    rows: 3,
    bits: (name === 'f32' ? 32 : 16) as 16 | 32,
  })),
  {
    name: 'mixed tiers, odd segments',
    ...smol,
    segments: [60, 1, 127, 128].map((tokens) => ({ tokens, tier: mixed(1) })),
    visible: 4,
    rows: 26,
    bits: 16,
  },
  {
    // Beyond the segments whose masses' places the WASM kernel keeps at hand.
    name: 'more than 1,024 segments',
    heads: 2,
    kvHeads: 2,
    headDim: 8,
    segments: Array.from({ length: 1030 }, (_, s) => ({
      tokens: 1 + (s % 2),
      tier: (h: number, t: number) => ((s + h) % 3 === 0 ? DROP : mixed(2)(h, t + s)),
    })),
    visible: 3,
    rows: 2,
    bits: 16,
  },
  {
    name: 'all dropped beside kept',
    ...smol,
    segments: [
      { tokens: 128, tier: (h, t) => (h === 0 ? DROP : mixed(2)(h, t)) },
      { tokens: 128, tier: all('4,4') },
    ],
    visible: 68,
    rows: 2,
    bits: 16,
  },
  {
    name: 'plain tiers mixed, head dimension 80',
    heads: 4,
    kvHeads: 2,
    headDim: 80,
    segments: [37, 128].map((tokens) => ({ tokens, tier: mixedPlain })),
    visible: 5,
    rows: 4,
    bits: 16,
  },
  {
    name: 'head dimension 8, group of 1',
    heads: 2,
    kvHeads: 2,
    headDim: 8,
    segments: [33, 128].map((tokens) => ({ tokens, tier: mixed(1) })),
    visible: 7,
    rows: 5,
    bits: 16,
  },
  {
    name: 'head dimension 16, group of 4, f32',
    heads: 8,
    kvHeads: 2,
    headDim: 16,
    segments: [2, 128].map((tokens) => ({ tokens, tier: mixed(0) })),
    visible: 3,
    rows: 17,
    bits: 32,
  },
  {
    name: 'head dimension 12 (blocks of 4), group of 5',
    heads: 5,
    kvHeads: 1,
    headDim: 12,
    segments: [50, 99].map((tokens) => ({ tokens, tier: mixed(1) })),
    visible: 140,
    rows: 2,
    bits: 16,
  },
];

/** Whether a case's records hold plain tiers, which none shares with others. */
export const isPlain = (c: CacheCase): boolean =>
  c.segments.some(({ tokens, tier }) =>
    Array.from({ length: tokens }, (_, t) => tier(0, t)).some((id) => TIERS[id]?.plain),
  );

/**
 * Records of a cache of 7,168 tokens at a ratio of 8: sixteen that have the mean tokens by tier, tiers a record and empty records of the 5,040 that
 * `adkvc bench --policy adkvc --ratio 8 --context 7168` leaves. What a record does not keep is dropped.
 */
const DEEP_TIERS = ['8,8', '8,4', '4,4', '4,2', '3,2', '2,2', '2,1'].map(tierNamed);
const DEEP_RECORDS: readonly (readonly number[])[] = [
  [0, 0, 0, 0, 4],
  [0, 0, 0, 0, 16],
  [0, 0, 0, 0, 84, 44],
  [0, 12, 28, 16, 72],
  [],
  [],
  [0, 4, 124],
  [4, 0, 8, 0, 116],
  [0, 0, 0, 0, 108, 20],
  [0, 0, 0, 0, 128],
  [],
  [0, 4, 20, 20, 84],
  [],
  [0, 0, 0, 0, 0, 4, 60],
  [0, 0, 0, 0, 0, 128],
  [0, 0, 8, 0, 8, 36, 76],
];
const DEEP_SEGMENTS: readonly SegmentCase[] = Array.from({ length: 56 }, (_, segment) => {
  const tiers = Array.from({ length: smol.kvHeads }, (_, kvHead) => {
    const counts = DEEP_RECORDS[((segment * smol.kvHeads + kvHead) * 5) % DEEP_RECORDS.length]!;
    return counts.flatMap((n, i) => Array.from({ length: n }, () => DEEP_TIERS[i]!));
  });
  return { tokens: 128, tier: (kvHead, t) => tiers[kvHead]![t] ?? DROP };
});

/**
 * What a token, a short message and a prefill chunk attend to: depth 4,096 in one tier beside a window of 64 and four sinks, and 7,168 tokens as
 * they really lie.
 */
export const BENCH_CASES: readonly CacheCase[] = [
  ...[1, 128].flatMap((rows) =>
    [...TIER_NAMES.filter((name) => name !== 'f32'), 'mixed'].map((name) => ({
      name,
      ...smol,
      segments: Array.from({ length: 32 }, () => ({
        tokens: 128,
        tier: name === 'mixed' ? mixed(2) : all(name),
      })),
      visible: 69,
      rows,
      bits: 16 as const,
    })),
  ),
  ...[1, 15, 128].map((rows) => ({
    name: 'deep',
    ...smol,
    segments: DEEP_SEGMENTS,
    visible: 132,
    rows,
    bits: 16 as const,
  })),
];

/** mulberry32: uniform in [0, 1). */
export function seeded(seed: number): () => number {
  let s = seed >>> 0;
  return () => {
    s = (s + 0x6d2b79f5) >>> 0;
    let t = Math.imul(s ^ (s >>> 15), s | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
/** Standard normal values. */
export function normals(count: number, seed: number, scale = 1): Float32Array {
  const next = seeded(seed);
  return Float32Array.from(
    { length: count },
    () => scale * Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next()),
  );
}

/** What `attend` needs of a cache, in memory; keys and values of every position as they were before encoding. */
export interface BuiltCache {
  readonly exact: ExactRef;
  readonly segments: Ptr;
  readonly segmentCount: number;
  readonly blocks: readonly Ptr[];
  readonly blockBytes: readonly number[];
  /** Addresses of records and of their mass, [segment][kvHead]. */
  readonly records: readonly (readonly { record: Ptr; mass: Ptr; cells: number }[])[];
  readonly q: Ptr;
  /** Padded cells of a kvHead's records, the largest, plus the exact capacity. */
  readonly cells: number;
}

export const f32At = (arena: Arena, at: Ptr, count: number): Float32Array =>
  new Float32Array(arena.memory.buffer, at, count);
export const u8At = (arena: Arena, at: Ptr, count: number): Uint8Array =>
  new Uint8Array(arena.memory.buffer, at, count);
export const u16At = (arena: Arena, at: Ptr, count: number): Uint16Array =>
  new Uint16Array(arena.memory.buffer, at, count);
export const u32At = (arena: Arena, at: Ptr, count: number): Uint32Array =>
  new Uint32Array(arena.memory.buffer, at, count);

export const put = (arena: Arena, values: Float32Array | Uint8Array | Uint16Array | Uint32Array): Ptr => {
  const at = arena.ptr(arena.alloc(values.byteLength));
  u8At(arena, at, values.byteLength).set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
  return at;
};

/** Fills an exact part segment by segment, encodes each, then fills it with the case's visible slots and the rows' own. */
export function buildCache(
  kernels: CacheKernels,
  arena: Arena,
  c: CacheCase,
  mass: boolean,
  seed = 1,
): BuiltCache {
  const { kvHeads, headDim } = c;
  const width = kvHeads * headDim;
  const capacity = Math.max(128, c.visible + c.rows + 3);
  const shape = { kvHeads, headDim, capacity, bits: c.bits, mass };
  // Not zeroed: unwritten slots must never matter.
  const exactAt = arena.ptr(arena.alloc(exactBytes(shape)));
  u8At(arena, exactAt, exactBytes(shape)).fill(0xff);
  const exact: ExactRef = { ptr: exactAt, ...shape };

  let draw = seed * 1000;
  const offset = normals(width, draw++, 1.5);
  const append = (tokens: number): void => {
    const k = normals(tokens * width, draw++).map((x, i) => x + offset[i % width]!);
    const v = normals(tokens * width, draw++);
    const [kAt, vAt] = [arena.alloc(k.byteLength), arena.alloc(v.byteLength)];
    f32At(arena, arena.ptr(kAt), k.length).set(k);
    f32At(arena, arena.ptr(vAt), v.length).set(v);
    kernels.appendExact(exact, 0, tokens, arena.ptr(kAt), arena.ptr(vAt), width);
    arena.free(vAt);
    arena.free(kAt);
  };

  const blocks: Ptr[] = [];
  const blockBytes: number[] = [];
  const records: { record: Ptr; mass: Ptr; cells: number }[][] = [];
  let start = 0;
  for (const s of c.segments) {
    append(s.tokens);
    const tiers = Array.from({ length: kvHeads }, (_, h) =>
      Uint8Array.from({ length: s.tokens }, (_, t) => s.tier(h, t)),
    );
    const counts = tiers.map((of) => {
      const n = new Uint8Array(TIER_IDS);
      for (const id of of) if (id !== DROP) n[id]!++;
      return n;
    });
    const header = segmentHeaderBytes(kvHeads);
    const sizes = counts.map((n) => recordBytes(s.tokens, n, headDim));
    const storedBytes = header + sizes.reduce((a, b) => a + b, 0);
    const cells = counts.map((n) => recordCells(n));
    const bytes = storedBytes + (mass ? cells.reduce((sum, n) => sum + massBytes(n), 0) : 0);
    const block = arena.ptr(arena.alloc(bytes));
    u8At(arena, block, header).fill(0);
    u32At(arena, block, 3).set([start, s.tokens, storedBytes]);
    let at = block + header;
    let massAt = block + storedBytes;
    const of: { record: Ptr; mass: Ptr; cells: number }[] = [];
    for (let h = 0; h < kvHeads; h++) {
      u32At(arena, block + SEGMENT_HEADER_BYTES, kvHeads)[h] = sizes[h] ? at - block : 0;
      const tiersAt = put(arena, tiers[h]!);
      if (mass) u16At(arena, exactAt + exactMassAt(shape, h), capacity).fill(0, 0, s.tokens);
      const size = kernels.encodeRecord(exact, h, 0, s.tokens, tiersAt, at, mass ? massAt : 0);
      if (size !== sizes[h]) throw new Error(`a record of ${size} bytes, not ${sizes[h]}`);
      of.push({ record: size ? at : 0, mass: mass ? massAt : 0, cells: cells[h]! });
      at += size;
      if (mass) massAt += massBytes(cells[h]!);
    }
    start += s.tokens;
    blocks.push(block);
    blockBytes.push(bytes);
    records.push(of);
  }

  // The final slots; the rest of the capacity holds NaN again.
  u8At(arena, exactAt, exactBytes(shape)).fill(0xff);
  append(c.visible + c.rows - 1);
  if (mass) for (let h = 0; h < kvHeads; h++) u16At(arena, exactAt + exactMassAt(shape, h), capacity).fill(0);

  const most = Array.from({ length: kvHeads }, (_, h) => records.reduce((n, of) => n + of[h]!.cells, 0));
  return {
    exact,
    segments: put(arena, Uint32Array.from(blocks.length ? blocks : [0])),
    segmentCount: blocks.length,
    blocks,
    blockBytes,
    records,
    q: put(arena, normals(c.rows * c.heads * headDim, draw++, 1.2)),
    cells: Math.max(...most) + capacity,
  };
}
