/**
 * Speed of the cache kernels at SmolLM2-135M's shapes: `node test/kernels/cache-bench.ts [relaxed|plain] [integer|float] [TIER/TIER...] [none]`; `none` keeps no mass,
 * `deep` is no tier but the records of 7,168 tokens at a ratio of 8.
 * GMAC/s count kept cells x headDim x 2 (scores and values) x heads; packing is per token over 30 layers x 3 kvHeads.
 * Times are CPU times, the best of several windows: wall time means little on a shared machine.
 */

import { DROP, exactBytes, tierNamed } from '../../src/kernels/layout.ts';
import type { WasmVariant } from '../../src/kernels/wasm.ts';
import { wasmKernels } from '../helpers/kernels.ts';
import { BENCH_CASES, buildCache, normals, put, TIER_NAMES } from './cache-cases.ts';

const WINDOW_MS = 20;
const WINDOWS = 9;

/** Milliseconds of CPU a call takes. */
function time(run: () => void): number {
  run();
  let calls = 1;
  let best = Number.POSITIVE_INFINITY;
  for (let window = 0; window < WINDOWS; ) {
    const start = process.cpuUsage().user;
    for (let i = 0; i < calls; i++) run();
    const ms = (process.cpuUsage().user - start) / 1000;
    if (ms < WINDOW_MS) calls *= 2;
    else {
      best = Math.min(best, ms / calls);
      window++;
    }
  }
  return best;
}

const variant = (process.argv[2] ?? 'relaxed') as WasmVariant;
const arithmetic = (process.argv[3] ?? 'integer') as 'integer' | 'float';

console.log(`attend, ${variant} SIMD, ${arithmetic}, depth 4096; deep: 7168\nrows\ttier\tGMAC/s\tms a layer`);
for (const c of BENCH_CASES) {
  if (process.argv[4] && !process.argv[4].split('/').includes(c.name)) continue;
  const kernels = wasmKernels(variant);
  const { arena } = kernels;
  const built = buildCache(kernels, arena, c, true);
  const { rows, heads, kvHeads, headDim } = c;
  const width = heads * headDim;
  const workspaceBytes = kernels.attendWorkspaceBytes({ rows, heads, kvHeads, headDim, cells: built.cells });
  const args = {
    q: built.q,
    ldQ: width,
    rows,
    heads,
    headDim,
    scale: 1 / Math.sqrt(headDim),
    segments: built.segments,
    segmentCount: built.segmentCount,
    exact: built.exact,
    visible: c.visible,
    out: arena.ptr(arena.alloc(rows * width * 4)),
    ldOut: width,
    mass: process.argv[5] === 'none' ? 0 : 2048,
    position: 4096,
    arithmetic,
    workspace: arena.ptr(arena.alloc(workspaceBytes)),
    workspaceBytes,
  };
  const ms = time(() => kernels.attend(args));
  const kept =
    c.segments.reduce(
      (sum, s) =>
        sum +
        Array.from({ length: s.tokens * kvHeads }, (_, i) =>
          s.tier(i % kvHeads, Math.floor(i / kvHeads)),
        ).filter((id) => id !== DROP).length,
      0,
    ) / kvHeads;
  const cells = kept + c.visible + (rows - 1) / 2;
  console.log(`${rows}\t${c.name}\t${((rows * cells * width * 2) / ms / 1e6).toFixed(1)}\t${ms.toFixed(3)}`);
}

const kernels = wasmKernels(variant);
const { arena } = kernels;
const shape = { kvHeads: 3, headDim: 64, capacity: 256, bits: 16 as const, mass: true };
const exact = { ptr: arena.ptr(arena.alloc(exactBytes(shape))), ...shape };
const x = put(arena, normals(128 * 192, 1));
const [record, recoded] = [arena.ptr(arena.alloc(65536)), arena.ptr(arena.alloc(65536))];
const [mass, massOut] = [arena.ptr(arena.alloc(1024)), arena.ptr(arena.alloc(1024))];
/** Microseconds a token for all of a model's layers. */
const perToken = (ms: number, layers: number): string => ((ms * 1000 * layers) / 128).toFixed(1);
console.log('\noperation\tus a token, all layers');
console.log(
  `appendExact\t${perToken(
    time(() => kernels.appendExact(exact, 0, 128, x, x, 192)),
    30,
  )}`,
);
console.log(
  `hadamard of q, k, v, out\t${perToken(
    time(() => kernels.hadamard(x, 192, 128, 3, 64)),
    30 * 8,
  )}`,
);
for (const name of TIER_NAMES.slice(1)) {
  const tiers = put(arena, new Uint8Array(128).fill(tierNamed(name)));
  const ms = time(() => kernels.encodeRecord(exact, 1, 0, 128, tiers, record, mass));
  console.log(`encode ${name}\t${perToken(ms, 90)}`);
}
const [before, after] = [
  [2, 3, 4, 6, 8, 10, 15],
  [3, 4, 6, 8, 10, 15, 15],
].map((ids) =>
  put(
    arena,
    Uint8Array.from({ length: 128 }, (_, t) => ids[t % 7]!),
  ),
) as [number, number];
kernels.encodeRecord(exact, 1, 0, 128, before, record, mass);
for (const [what, tiers] of [
  ['recode, every token a tier down', after],
  ['recode, nothing changes', before],
] as const) {
  const ms = time(() => kernels.recodeRecord(record, 128, 64, tiers, recoded, mass, massOut));
  console.log(`${what}\t${perToken(ms, 90)}`);
}
