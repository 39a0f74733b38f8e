import { finish as finishFine, SCORE as FINE_SCORE } from './dots';
import { finishScore, ONES, SCORE, twice } from './dots-i8';
import { halfBlockBytes } from './groups';
import { lookUp } from './unpack';
import { KEYS, NIBBLES, tablesOf, THREES, TWELVES } from './unpack-i8';

/**
 * Scores of packed keys: those of dots-i8.ts for a tile of 3 or 4 queries (a decoding step) and a multiple of 16 channels, straight from packed cells: so few
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

/** Levels of chunk `c` of the 4 that start at a vector: in x for 2 bits, in two of them for 4. */
// @ts-ignore: decorator
@inline
function levels(bits: i32, c: i32, x: v128, x2: v128, first: v128, second: v128, mask: v128): v128 {
  if (bits == 4) {
    const codes = c < 2 ? x : x2;
    return lookUp(first, v128.and(c & 1 ? i16x8.shr_u(codes, 4) : codes, mask));
  }
  return lookUp(c & 1 ? second : first, v128.and(c > 1 ? i16x8.shr_u(x, 4) : x, mask));
}

/** Scores of one block or of two, `row` bytes apart. finish [queries]: what sums start from, step, score of the mean, spread (FINISH of attend-queries.ts). */
// @ts-ignore: decorator
@inline
function scoreBlocks(
  nq: i32,
  bits: i32,
  two: bool,
  from: usize,
  row: usize,
  b: usize,
  end: usize,
  first: v128,
  second: v128,
  mask: v128,
  ones: v128,
  out: usize,
  ldOut: usize,
  keyScales: usize,
  finish: usize,
): void {
  let p0 = from;
  let p1 = two ? from + row : from;
  let s00 = v128.load(finish);
  let s10 = v128.load(finish, 48);
  let s20 = v128.load(finish, 96);
  let s30 = nq > 3 ? v128.load(finish, 144) : s00;
  let s01 = s00;
  let s11 = s10;
  let s21 = s20;
  let s31 = s30;
  for (let x = b; x < end; x += 256) {
    const w0 = v128.load(p0);
    const w1 = two ? v128.load(p1) : w0;
    let a0 = levels(bits, 0, w0, w0, first, second, mask);
    let a1 = two ? levels(bits, 0, w1, w1, first, second, mask) : a0;
    let c0 = levels(bits, 1, w0, w0, first, second, mask);
    let c1 = two ? levels(bits, 1, w1, w1, first, second, mask) : c0;
    let y = v128.load(x);
    let z = v128.load(x, 64);
    s00 = twice(SCORE, s00, a0, y, c0, z, ones);
    if (two) s01 = twice(SCORE, s01, a1, y, c1, z, ones);
    y = v128.load(x, 16);
    z = v128.load(x, 80);
    s10 = twice(SCORE, s10, a0, y, c0, z, ones);
    if (two) s11 = twice(SCORE, s11, a1, y, c1, z, ones);
    y = v128.load(x, 32);
    z = v128.load(x, 96);
    s20 = twice(SCORE, s20, a0, y, c0, z, ones);
    if (two) s21 = twice(SCORE, s21, a1, y, c1, z, ones);
    if (nq > 3) {
      y = v128.load(x, 48);
      z = v128.load(x, 112);
      s30 = twice(SCORE, s30, a0, y, c0, z, ones);
      if (two) s31 = twice(SCORE, s31, a1, y, c1, z, ones);
    }
    // Never so: a branch keeps the compiler from joining these sums with the next, whose levels it would hold beside these, on the stack.
    if (x == end) break;
    const v0 = bits == 4 ? v128.load(p0, 16) : w0;
    const v1 = bits == 4 && two ? v128.load(p1, 16) : w1;
    a0 = levels(bits, 2, w0, v0, first, second, mask);
    a1 = two ? levels(bits, 2, w1, v1, first, second, mask) : a0;
    c0 = levels(bits, 3, w0, v0, first, second, mask);
    c1 = two ? levels(bits, 3, w1, v1, first, second, mask) : c0;
    y = v128.load(x, 128);
    z = v128.load(x, 192);
    s00 = twice(SCORE, s00, a0, y, c0, z, ones);
    if (two) s01 = twice(SCORE, s01, a1, y, c1, z, ones);
    y = v128.load(x, 144);
    z = v128.load(x, 208);
    s10 = twice(SCORE, s10, a0, y, c0, z, ones);
    if (two) s11 = twice(SCORE, s11, a1, y, c1, z, ones);
    y = v128.load(x, 160);
    z = v128.load(x, 224);
    s20 = twice(SCORE, s20, a0, y, c0, z, ones);
    if (two) s21 = twice(SCORE, s21, a1, y, c1, z, ones);
    if (nq > 3) {
      y = v128.load(x, 176);
      z = v128.load(x, 240);
      s30 = twice(SCORE, s30, a0, y, c0, z, ones);
      if (two) s31 = twice(SCORE, s31, a1, y, c1, z, ones);
    }
    p0 += bits == 4 ? 32 : 16;
    p1 += bits == 4 ? 32 : 16;
  }
  const scales0 = v128.load(keyScales);
  const scales1 = two ? v128.load(keyScales, 16) : scales0;
  let step = v128.load(finish, 16);
  let mean = v128.load(finish, 32);
  store2(two, s00, s01, out, scales0, scales1, step, mean);
  step = v128.load(finish, 64);
  mean = v128.load(finish, 80);
  store2(two, s10, s11, out + ldOut, scales0, scales1, step, mean);
  step = v128.load(finish, 112);
  mean = v128.load(finish, 128);
  store2(two, s20, s21, out + ldOut * 2, scales0, scales1, step, mean);
  if (nq > 3) {
    step = v128.load(finish, 160);
    mean = v128.load(finish, 176);
    store2(two, s30, s31, out + ldOut * 3, scales0, scales1, step, mean);
  }
}
// @ts-ignore: decorator
@inline
function store2(two: bool, s0: v128, s1: v128, out: usize, scales0: v128, scales1: v128, step: v128, mean: v128): void {
  finishScore(s0, out, scales0, step, mean);
  if (two) finishScore(s1, out + 16, scales1, step, mean);
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
  finish: usize,
): void {
  const row = <usize>halfBlockBytes(bits, chunks << 2);
  const first = v128.load(KEYS + tablesOf(bits));
  const second = bits == 4 ? first : v128.load(KEYS + tablesOf(bits), 16);
  const mask = v128.load(NIBBLES);
  const ones = v128.load(ONES);
  const end = b + (<usize>chunks << 6);
  for (; blocks > 1; blocks -= 2) {
    scoreBlocks(nq, bits, true, from, row, b, end, first, second, mask, ones, out, ldOut, keyScales, finish);
    from += row << 1;
    out += 32;
    keyScales += 32;
  }
  if (blocks > 0)
    scoreBlocks(nq, bits, false, from, row, b, end, first, second, mask, ones, out, ldOut, keyScales, finish);
}

/** Levels of 3 bits: low ones in x, high ones of two chunks in bits 2 and 3 of h. */
// @ts-ignore: decorator
@inline
function levels3(table: v128, x: v128, mask: v128, h: v128): v128 {
  return lookUp(table, v128.or(v128.and(x, mask), h));
}

/** The same of keys of 3 bits: one block at a time, since levels in two vectors leave no registers for the sums of a second. */
// @ts-ignore: decorator
@inline
function scoreThrees(nq: i32, from: usize, blocks: i32, chunks: i32, b: usize, out: usize, ldOut: usize, keyScales: usize, finish: usize): void {
  const row = <usize>halfBlockBytes(3, chunks << 2);
  const first = v128.load(KEYS + tablesOf(3));
  const second = v128.load(KEYS + tablesOf(3), 16);
  const mask = v128.load(THREES);
  const high = v128.load(TWELVES);
  const ones = v128.load(ONES);
  const end = b + (<usize>chunks << 6);
  for (; blocks > 0; blocks--) {
    let p = from;
    let behind = from + (<usize>chunks << 2);
    let s0 = v128.load(finish);
    let s1 = v128.load(finish, 48);
    let s2 = v128.load(finish, 96);
    let s3 = nq > 3 ? v128.load(finish, 144) : s0;
    for (let x = b; x < end; x += 512) {
      // A vector of high bits serves 8 chunks.
      const y = v128.load(behind);
      let w = v128.load(p);
      let h = v128.and(i16x8.shl(y, 2), high);
      let a = levels3(first, w, mask, h);
      let c = levels3(second, i16x8.shr_u(w, 2), mask, h);
      s0 = twice(SCORE, s0, a, v128.load(x), c, v128.load(x, 64), ones);
      s1 = twice(SCORE, s1, a, v128.load(x, 16), c, v128.load(x, 80), ones);
      s2 = twice(SCORE, s2, a, v128.load(x, 32), c, v128.load(x, 96), ones);
      if (nq > 3) s3 = twice(SCORE, s3, a, v128.load(x, 48), c, v128.load(x, 112), ones);
      h = v128.and(y, high);
      a = levels3(first, i16x8.shr_u(w, 4), mask, h);
      c = levels3(second, i16x8.shr_u(w, 6), mask, h);
      s0 = twice(SCORE, s0, a, v128.load(x, 128), c, v128.load(x, 192), ones);
      s1 = twice(SCORE, s1, a, v128.load(x, 144), c, v128.load(x, 208), ones);
      s2 = twice(SCORE, s2, a, v128.load(x, 160), c, v128.load(x, 224), ones);
      if (nq > 3) s3 = twice(SCORE, s3, a, v128.load(x, 176), c, v128.load(x, 240), ones);
      if (x + 256 == end) break;
      w = v128.load(p, 16);
      h = v128.and(i16x8.shr_u(y, 2), high);
      a = levels3(first, w, mask, h);
      c = levels3(second, i16x8.shr_u(w, 2), mask, h);
      s0 = twice(SCORE, s0, a, v128.load(x, 256), c, v128.load(x, 320), ones);
      s1 = twice(SCORE, s1, a, v128.load(x, 272), c, v128.load(x, 336), ones);
      s2 = twice(SCORE, s2, a, v128.load(x, 288), c, v128.load(x, 352), ones);
      if (nq > 3) s3 = twice(SCORE, s3, a, v128.load(x, 304), c, v128.load(x, 368), ones);
      h = v128.and(i16x8.shr_u(y, 4), high);
      a = levels3(first, i16x8.shr_u(w, 4), mask, h);
      c = levels3(second, i16x8.shr_u(w, 6), mask, h);
      s0 = twice(SCORE, s0, a, v128.load(x, 384), c, v128.load(x, 448), ones);
      s1 = twice(SCORE, s1, a, v128.load(x, 400), c, v128.load(x, 464), ones);
      s2 = twice(SCORE, s2, a, v128.load(x, 416), c, v128.load(x, 480), ones);
      if (nq > 3) s3 = twice(SCORE, s3, a, v128.load(x, 432), c, v128.load(x, 496), ones);
      p += 32;
      behind += 16;
    }
    const scales = v128.load(keyScales);
    finishScore(s0, out, scales, v128.load(finish, 16), v128.load(finish, 32));
    finishScore(s1, out + ldOut, scales, v128.load(finish, 64), v128.load(finish, 80));
    finishScore(s2, out + ldOut * 2, scales, v128.load(finish, 112), v128.load(finish, 128));
    if (nq > 3) finishScore(s3, out + ldOut * 3, scales, v128.load(finish, 160), v128.load(finish, 176));
    from += row;
    out += 16;
    keyScales += 16;
  }
}

// Functions of their own: where calls stand in the arms of one condition, the compiler joins kernels that differ in constants alone, and asks for them in the loop.
function threeOf4(from: usize, blocks: i32, chunks: i32, b: usize, out: usize, ldOut: usize, keyScales: usize, finish: usize): void {
  scorePacked(3, 4, from, blocks, chunks, b, out, ldOut, keyScales, finish);
}
function threeOf3(from: usize, blocks: i32, chunks: i32, b: usize, out: usize, ldOut: usize, keyScales: usize, finish: usize): void {
  scoreThrees(3, from, blocks, chunks, b, out, ldOut, keyScales, finish);
}
function threeOf2(from: usize, blocks: i32, chunks: i32, b: usize, out: usize, ldOut: usize, keyScales: usize, finish: usize): void {
  scorePacked(3, 2, from, blocks, chunks, b, out, ldOut, keyScales, finish);
}
function fourOf4(from: usize, blocks: i32, chunks: i32, b: usize, out: usize, ldOut: usize, keyScales: usize, finish: usize): void {
  scorePacked(4, 4, from, blocks, chunks, b, out, ldOut, keyScales, finish);
}
function fourOf3(from: usize, blocks: i32, chunks: i32, b: usize, out: usize, ldOut: usize, keyScales: usize, finish: usize): void {
  scoreThrees(4, from, blocks, chunks, b, out, ldOut, keyScales, finish);
}
function fourOf2(from: usize, blocks: i32, chunks: i32, b: usize, out: usize, ldOut: usize, keyScales: usize, finish: usize): void {
  scorePacked(4, 2, from, blocks, chunks, b, out, ldOut, keyScales, finish);
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
  finish: usize,
): void {
  if (nq == 3) {
    if (bits == 4) threeOf4(from, blocks, chunks, b, out, ldOut, keyScales, finish);
    else if (bits == 3) threeOf3(from, blocks, chunks, b, out, ldOut, keyScales, finish);
    else threeOf2(from, blocks, chunks, b, out, ldOut, keyScales, finish);
  } else {
    if (bits == 4) fourOf4(from, blocks, chunks, b, out, ldOut, keyScales, finish);
    else if (bits == 3) fourOf3(from, blocks, chunks, b, out, ldOut, keyScales, finish);
    else fourOf2(from, blocks, chunks, b, out, ldOut, keyScales, finish);
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
