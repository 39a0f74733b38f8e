import { finish as finishFine, SCORE as FINE_SCORE } from './dots';
import { finishScore, finishWeigh, once, ONES, SCORE, twice, WEIGH } from './dots-i8';
import { halfBlockBytes } from './groups';
import { lookUp } from './unpack';
import { KEYS, NIBBLES, THREES, TWELVES, VALUES } from './unpack-i8';

/**
 * The products of dots-i8.ts for a tile of 3 or 4 queries (a decoding step) and a multiple of 16 channels, straight from packed cells: so few
 * queries do not pay for a panel of unpacked ones. The same sums, so the same bits.
 * Operands are spread, 16 bytes where dots-i8.ts has 4: V8 adds the offset of a load that splats in an instruction of its own.
 */

/** Spread operands of `n` chunks or blocks: b [n][4 queries] 4 bytes -> to [n][4 queries] 16 bytes. */
export function spread(b: usize, n: i32, to: usize): void {
  for (const end = b + (<usize>n << 4); b < end; b += 4) {
    v128.store(to, v128.load32_splat(b));
    to += 16;
  }
}

/** 15-bit integers b [chunk][4 queries] 8 bytes -> to [chunk][3 queries], the pairs (0, 2) and (1, 3) spread. */
export function spreadFine(b: usize, chunks: i32, to: usize): void {
  for (const end = b + (<usize>chunks << 5); b < end; b += 32) {
    for (let i: usize = 0; i < 24; i += 8) {
      v128.store(to, v128.load32_splat(b + i));
      v128.store(to, v128.load32_splat(b + i, 4), 16);
      to += 32;
    }
  }
}

let touched: u32 = 0;
/** Reads a word of every line of bytes that will be wanted all at once: misses wait together, not one after the other. */
export function touch(from: usize, end: usize): void {
  let any: u32 = 0;
  for (; from < end; from += 64) any |= load<u32>(from);
  touched = any;
}

/** Tables of bytes3, bytes2 and bytes1 behind those of 4 bits (unpack-i8.ts). */
// @ts-ignore: decorator
@inline
function tablesOf(bits: i32): usize {
  return bits == 4 ? 0 : bits == 3 ? 16 : bits == 2 ? 48 : 80;
}

/** Levels of chunk `c` of the 4 that start at a vector: in x for 2 bits, in two of them for 4; 3 bits have high ones, h, in bits 2 and 3 or 0 and 1. */
// @ts-ignore: decorator
@inline
function levels(bits: i32, c: i32, x: v128, x2: v128, h: v128, first: v128, second: v128, mask: v128, high: v128): v128 {
  if (bits == 4) {
    const codes = c < 2 ? x : x2;
    return lookUp(first, v128.and(c & 1 ? i16x8.shr_u(codes, 4) : codes, mask));
  }
  const table = c & 1 ? second : first;
  if (bits == 2) return lookUp(table, v128.and(c > 1 ? i16x8.shr_u(x, 4) : x, mask));
  const low = v128.and(c ? i16x8.shr_u(x, c << 1) : x, mask);
  return lookUp(table, v128.or(low, v128.and(c > 1 ? h : i16x8.shl(h, 2), high)));
}

// @ts-ignore: decorator
@inline
function scorePacked(
  nq: i32,
  bits: i32,
  from: usize,
  blocks: i32,
  chunks: i32,
  b: usize,
  out: usize,
  ldOut: usize,
  keyScales: usize,
  queries: usize,
): void {
  const row = <usize>halfBlockBytes(bits, chunks << 2);
  const first = v128.load(KEYS + tablesOf(bits));
  const second = bits == 4 ? first : v128.load(KEYS + tablesOf(bits), 16);
  const mask = v128.load(bits == 3 ? THREES : NIBBLES);
  const high = bits == 3 ? v128.load(TWELVES) : mask;
  const ones = v128.load(ONES);
  const behind = <usize>chunks << 2;
  const end = b + (<usize>chunks << 6);
  const mean0 = v128.load32_splat(queries, 4);
  const step0 = v128.load32_splat(queries, 16);
  const offset0 = v128.load32_splat(queries, 20);
  const mean1 = v128.load32_splat(queries, 36);
  const step1 = v128.load32_splat(queries, 48);
  const offset1 = v128.load32_splat(queries, 52);
  const mean2 = v128.load32_splat(queries, 68);
  const step2 = v128.load32_splat(queries, 80);
  const offset2 = v128.load32_splat(queries, 84);
  const mean3 = nq > 3 ? v128.load32_splat(queries, 100) : mean2;
  const step3 = nq > 3 ? v128.load32_splat(queries, 112) : step2;
  const offset3 = nq > 3 ? v128.load32_splat(queries, 116) : offset2;
  for (; blocks > 0; blocks -= 2) {
    let p0 = from;
    let p1 = blocks > 1 ? from + row : from;
    let h0 = first;
    let h1 = first;
    let s00 = i32x4.splat(0);
    let s01 = i32x4.splat(0);
    let s10 = i32x4.splat(0);
    let s11 = i32x4.splat(0);
    let s20 = i32x4.splat(0);
    let s21 = i32x4.splat(0);
    let s30 = i32x4.splat(0);
    let s31 = i32x4.splat(0);
    for (let x = b; x < end; x += 256) {
      const w0 = v128.load(p0);
      const w1 = v128.load(p1);
      if (bits == 3) {
        // A vector of high bits serves 8 chunks.
        const c = x - b;
        if (c & 256) {
          h0 = i16x8.shr_u(h0, 4);
          h1 = i16x8.shr_u(h1, 4);
        } else {
          const at = behind - (c >> 5);
          h0 = v128.load(p0 + at);
          h1 = v128.load(p1 + at);
        }
      }
      let a0 = levels(bits, 0, w0, w0, h0, first, second, mask, high);
      let a1 = levels(bits, 0, w1, w1, h1, first, second, mask, high);
      let y = v128.load(x);
      s00 = once(SCORE, s00, a0, y, ones);
      s01 = once(SCORE, s01, a1, y, ones);
      y = v128.load(x, 16);
      s10 = once(SCORE, s10, a0, y, ones);
      s11 = once(SCORE, s11, a1, y, ones);
      y = v128.load(x, 32);
      s20 = once(SCORE, s20, a0, y, ones);
      s21 = once(SCORE, s21, a1, y, ones);
      if (nq > 3) {
        y = v128.load(x, 48);
        s30 = once(SCORE, s30, a0, y, ones);
        s31 = once(SCORE, s31, a1, y, ones);
      }
      a0 = levels(bits, 1, w0, w0, h0, first, second, mask, high);
      a1 = levels(bits, 1, w1, w1, h1, first, second, mask, high);
      y = v128.load(x, 64);
      s00 = once(SCORE, s00, a0, y, ones);
      s01 = once(SCORE, s01, a1, y, ones);
      y = v128.load(x, 80);
      s10 = once(SCORE, s10, a0, y, ones);
      s11 = once(SCORE, s11, a1, y, ones);
      y = v128.load(x, 96);
      s20 = once(SCORE, s20, a0, y, ones);
      s21 = once(SCORE, s21, a1, y, ones);
      if (nq > 3) {
        y = v128.load(x, 112);
        s30 = once(SCORE, s30, a0, y, ones);
        s31 = once(SCORE, s31, a1, y, ones);
      }
      const v0 = bits == 4 ? v128.load(p0, 16) : w0;
      const v1 = bits == 4 ? v128.load(p1, 16) : w1;
      a0 = levels(bits, 2, w0, v0, h0, first, second, mask, high);
      a1 = levels(bits, 2, w1, v1, h1, first, second, mask, high);
      y = v128.load(x, 128);
      s00 = once(SCORE, s00, a0, y, ones);
      s01 = once(SCORE, s01, a1, y, ones);
      y = v128.load(x, 144);
      s10 = once(SCORE, s10, a0, y, ones);
      s11 = once(SCORE, s11, a1, y, ones);
      y = v128.load(x, 160);
      s20 = once(SCORE, s20, a0, y, ones);
      s21 = once(SCORE, s21, a1, y, ones);
      if (nq > 3) {
        y = v128.load(x, 176);
        s30 = once(SCORE, s30, a0, y, ones);
        s31 = once(SCORE, s31, a1, y, ones);
      }
      a0 = levels(bits, 3, w0, v0, h0, first, second, mask, high);
      a1 = levels(bits, 3, w1, v1, h1, first, second, mask, high);
      y = v128.load(x, 192);
      s00 = once(SCORE, s00, a0, y, ones);
      s01 = once(SCORE, s01, a1, y, ones);
      y = v128.load(x, 208);
      s10 = once(SCORE, s10, a0, y, ones);
      s11 = once(SCORE, s11, a1, y, ones);
      y = v128.load(x, 224);
      s20 = once(SCORE, s20, a0, y, ones);
      s21 = once(SCORE, s21, a1, y, ones);
      if (nq > 3) {
        y = v128.load(x, 240);
        s30 = once(SCORE, s30, a0, y, ones);
        s31 = once(SCORE, s31, a1, y, ones);
      }
      p0 += bits == 4 ? 32 : 16;
      p1 += bits == 4 ? 32 : 16;
    }
    let scales = v128.load(keyScales);
    finishScore(s00, out, scales, offset0, step0, mean0);
    finishScore(s10, out + ldOut, scales, offset1, step1, mean1);
    finishScore(s20, out + ldOut * 2, scales, offset2, step2, mean2);
    if (nq > 3) finishScore(s30, out + ldOut * 3, scales, offset3, step3, mean3);
    if (blocks > 1) {
      scales = v128.load(keyScales, 16);
      finishScore(s01, out + 16, scales, offset0, step0, mean0);
      finishScore(s11, out + ldOut + 16, scales, offset1, step1, mean1);
      finishScore(s21, out + ldOut * 2 + 16, scales, offset2, step2, mean2);
      if (nq > 3) finishScore(s31, out + ldOut * 3 + 16, scales, offset3, step3, mean3);
    }
    from += row << 1;
    out += 32;
    keyScales += 32;
  }
}

/** Scores of 3 or 4 queries, spread at b, with packed keys of 2 to 4 bits. */
export function scoresPacked(
  nq: i32,
  bits: i32,
  from: usize,
  blocks: i32,
  chunks: i32,
  b: usize,
  out: usize,
  ldOut: usize,
  keyScales: usize,
  params: usize,
): void {
  if (nq == 3) {
    if (bits == 4) scorePacked(3, 4, from, blocks, chunks, b, out, ldOut, keyScales, params);
    else if (bits == 3) scorePacked(3, 3, from, blocks, chunks, b, out, ldOut, keyScales, params);
    else scorePacked(3, 2, from, blocks, chunks, b, out, ldOut, keyScales, params);
  } else {
    if (bits == 4) scorePacked(4, 4, from, blocks, chunks, b, out, ldOut, keyScales, params);
    else if (bits == 3) scorePacked(4, 3, from, blocks, chunks, b, out, ldOut, keyScales, params);
    else scorePacked(4, 2, from, blocks, chunks, b, out, ldOut, keyScales, params);
  }
}

// @ts-ignore: decorator
@inline
function pairs16(sum: v128, even: v128, odd: v128, q: usize): v128 {
  return i32x4.add(i32x4.add(sum, i32x4.dot_i16x8_s(even, v128.load(q))), i32x4.dot_i16x8_s(odd, v128.load(q, 16)));
}

/** Scores of 3 queries, 15-bit integers spread at b, with keys of 8 bits; as scoresI16 (dots.ts). */
export function scoresBytes3(
  from: usize,
  blocks: i32,
  chunks: i32,
  b: usize,
  out: usize,
  ldOut: usize,
  keyScales: usize,
  params: usize,
): void {
  const row = <usize>chunks << 4;
  const end = b + <usize>chunks * 96;
  for (; blocks > 0; blocks -= 2) {
    let p0 = from;
    let p1 = blocks > 1 ? from + row : from;
    let s00 = i32x4.splat(0);
    let s01 = i32x4.splat(0);
    let s10 = i32x4.splat(0);
    let s11 = i32x4.splat(0);
    let s20 = i32x4.splat(0);
    let s21 = i32x4.splat(0);
    for (let x = b; x < end; x += 96) {
      const w0 = v128.load(p0);
      const w1 = v128.load(p1);
      const e0 = i16x8.shr_s(i16x8.shl(w0, 8), 8);
      const e1 = i16x8.shr_s(i16x8.shl(w1, 8), 8);
      const o0 = i16x8.shr_s(w0, 8);
      const o1 = i16x8.shr_s(w1, 8);
      s00 = pairs16(s00, e0, o0, x);
      s01 = pairs16(s01, e1, o1, x);
      s10 = pairs16(s10, e0, o0, x + 32);
      s11 = pairs16(s11, e1, o1, x + 32);
      s20 = pairs16(s20, e0, o0, x + 64);
      s21 = pairs16(s21, e1, o1, x + 64);
      p0 += 16;
      p1 += 16;
    }
    let scales = v128.load(keyScales);
    finishFine(FINE_SCORE, s00, out, scales, params);
    finishFine(FINE_SCORE, s10, out + ldOut, scales, params + 32);
    finishFine(FINE_SCORE, s20, out + ldOut * 2, scales, params + 64);
    if (blocks > 1) {
      scales = v128.load(keyScales, 16);
      finishFine(FINE_SCORE, s01, out + 16, scales, params);
      finishFine(FINE_SCORE, s11, out + ldOut + 16, scales, params + 32);
      finishFine(FINE_SCORE, s21, out + ldOut * 2 + 16, scales, params + 64);
    }
    from += row << 1;
    out += 32;
    keyScales += 32;
  }
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
