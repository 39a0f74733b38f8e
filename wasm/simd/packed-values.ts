import { finishWeigh, once, ONES, twice, WEIGH } from './dots-i8';
import { halfBlockBytes } from './groups';
import { lookUp } from './unpack';
import { NIBBLES, tablesOf, VALUES } from './unpack-i8';

/** Packed values, weighed: as packed-keys.ts, with spread weights (few-weights.ts). */

let touched: u32 = 0;
/** Reads a word of every line of bytes that will be wanted all at once: misses wait together, not one after the other. */
export function touch(from: usize, end: usize): void {
  let any: u32 = 0;
  for (; from < end; from += 64) any |= load<u32>(from);
  touched = any;
}

/** Where the codes of a pair of chunks lie: one in the low and one in the high nibbles, or both in the same ones. */
const APART = 0;
const LOW = 1;
const HIGH = 2;

// @ts-ignore: decorator
@inline
function nibbles(where: i32, x: v128, mask: v128): v128 {
  return v128.and(where == HIGH ? i16x8.shr_u(x, 4) : x, mask);
}

/** Adds a pair of chunks of all blocks, `row` bytes apart, to acc i32x4 [chunk][4 queries]. b spread. */
// @ts-ignore: decorator
@inline
function weighPair(nq: i32, where: i32, tables: usize, from: usize, row: usize, blocks: i32, b: usize, acc: usize): void {
  const first = v128.load(tables);
  const second = where == APART ? first : v128.load(tables, 16);
  const mask = v128.load(NIBBLES);
  const ones = v128.load(ONES);
  let s00 = v128.load(acc);
  let s10 = v128.load(acc, 16);
  let s20 = v128.load(acc, 32);
  let s30 = nq > 3 ? v128.load(acc, 48) : first;
  let s01 = v128.load(acc, 64);
  let s11 = v128.load(acc, 80);
  let s21 = v128.load(acc, 96);
  let s31 = nq > 3 ? v128.load(acc, 112) : first;
  for (; blocks > 1; blocks -= 2) {
    const w0 = v128.load(from);
    const w1 = v128.load(from + row);
    const n0 = nibbles(where, w0, mask);
    const n1 = nibbles(where, w1, mask);
    const a0 = lookUp(first, n0);
    const a1 = lookUp(first, n1);
    const c0 = lookUp(second, where == APART ? nibbles(HIGH, w0, mask) : n0);
    const c1 = lookUp(second, where == APART ? nibbles(HIGH, w1, mask) : n1);
    let y = v128.load(b);
    let z = v128.load(b, 64);
    s00 = twice(WEIGH, s00, a0, y, a1, z, ones);
    s01 = twice(WEIGH, s01, c0, y, c1, z, ones);
    y = v128.load(b, 16);
    z = v128.load(b, 80);
    s10 = twice(WEIGH, s10, a0, y, a1, z, ones);
    s11 = twice(WEIGH, s11, c0, y, c1, z, ones);
    y = v128.load(b, 32);
    z = v128.load(b, 96);
    s20 = twice(WEIGH, s20, a0, y, a1, z, ones);
    s21 = twice(WEIGH, s21, c0, y, c1, z, ones);
    if (nq > 3) {
      y = v128.load(b, 48);
      z = v128.load(b, 112);
      s30 = twice(WEIGH, s30, a0, y, a1, z, ones);
      s31 = twice(WEIGH, s31, c0, y, c1, z, ones);
    }
    from += row << 1;
    b += 128;
  }
  if (blocks > 0) {
    const w = v128.load(from);
    const n = nibbles(where, w, mask);
    const a = lookUp(first, n);
    const c = lookUp(second, where == APART ? nibbles(HIGH, w, mask) : n);
    let y = v128.load(b);
    s00 = once(WEIGH, s00, a, y, ones);
    s01 = once(WEIGH, s01, c, y, ones);
    y = v128.load(b, 16);
    s10 = once(WEIGH, s10, a, y, ones);
    s11 = once(WEIGH, s11, c, y, ones);
    y = v128.load(b, 32);
    s20 = once(WEIGH, s20, a, y, ones);
    s21 = once(WEIGH, s21, c, y, ones);
    if (nq > 3) {
      y = v128.load(b, 48);
      s30 = once(WEIGH, s30, a, y, ones);
      s31 = once(WEIGH, s31, c, y, ones);
    }
  }
  v128.store(acc, s00);
  v128.store(acc, s10, 16);
  v128.store(acc, s20, 32);
  if (nq > 3) v128.store(acc, s30, 48);
  v128.store(acc, s01, 64);
  v128.store(acc, s11, 80);
  v128.store(acc, s21, 96);
  if (nq > 3) v128.store(acc, s31, 112);
}

// @ts-ignore: decorator
@inline
function weighVectors(nq: i32, bits: i32, from: usize, blocks: i32, chunks: i32, b: usize, acc: usize): void {
  const row = <usize>halfBlockBytes(bits, chunks << 2);
  const tables = VALUES + tablesOf(bits);
  for (let v: usize = 0; v < row; v += 16) {
    if (bits == 4) {
      weighPair(nq, APART, tables, from + v, row, blocks, b, acc);
      acc += 128;
    } else {
      // Of a vector of 8 chunks, each nibble holds two pairs.
      for (let t: usize = 0; t < (bits == 1 ? 64 : 32); t += 32) {
        weighPair(nq, LOW, tables + t, from + v, row, blocks, b, acc);
        acc += 128;
      }
      for (let t: usize = 0; t < (bits == 1 ? 64 : 32); t += 32) {
        weighPair(nq, HIGH, tables + t, from + v, row, blocks, b, acc);
        acc += 128;
      }
    }
  }
}

/** Whether weighPacked takes values of so many bits. Those of 3 are not worth a kernel: no tier of the default policy has them. */
// @ts-ignore: decorator
@inline
export function weighsPacked(bits: i32): bool {
  return bits != 3;
}

/**
 * Adds packed values of 1, 2 or 4 bits, times the spread weights of 3 or 4 queries, to acc i32x4 [chunk][4 queries], which has room for the
 * chunks of a whole vector: a multiple of 8.
 */
export function weighPacked(nq: i32, bits: i32, from: usize, blocks: i32, chunks: i32, b: usize, acc: usize): void {
  if (nq == 3) {
    if (bits == 4) weighVectors(3, 4, from, blocks, chunks, b, acc);
    else if (bits == 2) weighVectors(3, 2, from, blocks, chunks, b, acc);
    else weighVectors(3, 1, from, blocks, chunks, b, acc);
  } else {
    if (bits == 4) weighVectors(4, 4, from, blocks, chunks, b, acc);
    else if (bits == 2) weighVectors(4, 2, from, blocks, chunks, b, acc);
    else weighVectors(4, 1, from, blocks, chunks, b, acc);
  }
}

/** No sums yet, of so many chunks and those behind them. */
export function clearPacked(acc: usize, chunks: i32): void {
  const none = i32x4.splat(0);
  for (const end = acc + (<usize>((chunks + 7) & ~7) << 6); acc < end; acc += 64) {
    v128.store(acc, none);
    v128.store(acc, none, 16);
    v128.store(acc, none, 32);
    v128.store(acc, none, 48);
  }
}

/** Adds the sums, times each query's step, to the outputs. */
export function finishPacked(nq: i32, acc: usize, chunks: i32, out: usize, ldOut: usize, params: usize): void {
  for (let i = 0; i < nq; i++) {
    const step = v128.load32_splat(params, 8);
    let from = acc + (<usize>i << 4);
    let to = out;
    for (const end = from + (<usize>chunks << 6); from < end; from += 64) {
      finishWeigh(v128.load(from), to, step);
      to += 16;
    }
    out += ldOut;
    params += 32;
  }
}
