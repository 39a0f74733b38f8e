import { halvesToFloats } from './half';

/** A call of attend and its tile of queries: set here, so that the steps of attention need not pass twenty arguments on. */

/** The most cells of a record (each tier's are padded to 4) and of a part of the exact slots: their weights are made at once. */
export const PIECE = 160;
export const EXACT_PIECE = 128;
/** Float values are summed by so many cells before they join the output; two such panels fill the first-level cache. */
export const FLOAT_PIECE = 64;
/** Groups of the record that was opened last. */
export const GROUPS: usize = memory.data(512, 16);

export let headDim: i32 = 0;
export let chunks: i32 = 0;
/** Queries of the tile: query i is row floor((first + i) / group), head (first + i) mod group of the kvHead's group. */
export let tile: i32 = 0;
export let integer: bool = false;
/** Mass is the largest weight instead of the sum. */
export let largestMass: bool = false;
/** Areas of the workspace. */
export let panel: usize = 0;
export let scales: usize = 0;
export let mean: usize = 0;
export let params: usize = 0;
export let qFloat: usize = 0;
export let qInteger: usize = 0;
export let qBytes: usize = 0;
export let sums: usize = 0;
export let weights: usize = 0;
export let scores: usize = 0;
export let ldScores: usize = 0;
/** Bytes of 4 queries in qInteger and in qBytes; of one query in qFloat and sums. */
export let ldInteger: usize = 0;
export let ldBytes: usize = 0;
export let ldSums: usize = 0;

function padUp(n: usize): usize {
  return (n + 15) & ~15;
}
/** 64 cells of f32, 128 of i16, 160 of i8; bytes are unpacked by 8 chunks. */
function panelBytes(headDim: i32): usize {
  return <usize>((headDim + 31) & ~31) << 8;
}
export function attendFixedBytes(headDim: i32): usize {
  return panelBytes(headDim) + PIECE * 4 + padUp(<usize>headDim << 2) + 64;
}
export function attendQueryBytes(headDim: i32, cells: i32): usize {
  return (
    padUp(<usize>cells << 2) + 16 + padUp(<usize>headDim << 2) * 2 + padUp(<usize>headDim << 1) + padUp(headDim) + PIECE * 4 + 32
  );
}

/** Takes a call's shape over and lays the workspace out for tiles of up to `largestTile` queries over `cells` cells. */
export function layOut(dim: i32, integers: bool, massLargest: bool, workspace: usize, largestTile: i32, cells: i32): void {
  headDim = dim;
  chunks = dim >> 2;
  integer = integers;
  largestMass = massLargest;
  panel = workspace;
  scales = panel + panelBytes(dim);
  mean = scales + PIECE * 4;
  params = mean + padUp(<usize>dim << 2);
  qFloat = params + (<usize>largestTile << 5);
  ldSums = <usize>dim << 2;
  qInteger = qFloat + <usize>largestTile * ldSums;
  ldInteger = <usize>dim << 3;
  qBytes = qInteger + padUp((<usize>largestTile >> 2) * ldInteger);
  ldBytes = padUp(dim) << 2;
  sums = qBytes + (<usize>largestTile >> 2) * ldBytes;
  weights = sums + <usize>largestTile * ldSums;
  scores = weights + <usize>largestTile * (PIECE * 4);
  ldScores = (<usize>cells << 2) + 16;
}

/** Takes over how many queries the tile has. */
// @ts-ignore: decorator
@inline
export function takeTile(queries: i32): void {
  tile = queries;
}

// @ts-ignore: decorator
@inline
export function queryOffset(query: i32, group: i32, ld: i32): usize {
  return ((<usize>(query / group) * <usize>ld) << 2) + (<usize>(query % group) * (<usize>headDim << 2));
}

/** Whether so few queries meet cells of 1 to 4 bits as they are packed. */
// @ts-ignore: decorator
@inline
export function readsPacked(): bool {
  return (tile == 3 || tile == 4) && (chunks & 3) == 0;
}

/** Where `count` cells of f32 or f16 rows, from the `first` on, stand as f32: in place, or widened into `panel` (FLOAT_PIECE at most). */
export function floatRows(bits: i32, rows: usize, first: i32, count: i32): usize {
  const from = rows + ((<usize>first * <usize>(headDim * bits)) >> 3);
  if (bits != 16) return from;
  halvesToFloats(from, count * headDim, panel);
  return panel;
}
