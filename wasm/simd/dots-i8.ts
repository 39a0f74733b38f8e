import { dotPairs } from './dot';

/**
 * Integer products of attention with cells of 1 to 4 bits: int8 operands, sums exact. For up to 4 queries and every `outer`, four lanes of the
 * sum over `inner`:
 *   scores           outer = 4 tokens (a lane is a token), inner = chunks of channels; unsigned levels times signed queries
 *   weighted values  outer = 4 channels (a lane is a channel), inner = blocks of tokens; signed levels times unsigned weights
 * a [outer][inner]: 16 bytes, four bytes a lane. b [inner][4 queries]: 4 bytes.
 */

/** A pair of products is at most 2 * 127 * 124, and is widened at once. */
export const SCORE = 0;
/** At most 2 * 127 * 62: two pairs are summed as i16. What lies in `a` behind an odd inner meets zeros in `b`. */
export const WEIGH = 1;

export const ONES: usize = memory.data<i16>([1, 1, 1, 1, 1, 1, 1, 1], 16);

// @ts-ignore: decorator
@inline
function pairs(mode: i32, a: v128, b: v128): v128 {
  return mode == WEIGH ? dotPairs(a, b) : dotPairs(b, a);
}
// @ts-ignore: decorator
@inline
export function once(mode: i32, sum: v128, a: v128, b: v128, ones: v128): v128 {
  return i32x4.add(sum, i32x4.dot_i16x8_s(pairs(mode, a, b), ones));
}
// @ts-ignore: decorator
@inline
export function twice(mode: i32, sum: v128, a: v128, b: v128, a2: v128, b2: v128, ones: v128): v128 {
  return i32x4.add(sum, i32x4.dot_i16x8_s(i16x8.add(pairs(mode, a, b), pairs(mode, a2, b2)), ones));
}

/**
 * Parameters of a query, 32 bytes: f32 [4] score of the mean, [8] step of its weights, [16] of its integers; i32 [20] the sum of its
 * integers times the levels' offset.
 *   scores   out = ((sum - [20]) * keyScale) * [16] + [4]
 *   values   out += sum * [8]
 */
// @ts-ignore: decorator
@inline
export function finish(mode: i32, sum: v128, out: usize, scales: v128, query: usize): void {
  if (mode == WEIGH) {
    v128.store(out, f32x4.add(v128.load(out), f32x4.mul(f32x4.convert_i32x4_s(sum), v128.load32_splat(query, 8))));
    return;
  }
  const x = f32x4.convert_i32x4_s(i32x4.sub(sum, v128.load32_splat(query, 20)));
  v128.store(
    out,
    f32x4.add(f32x4.mul(f32x4.mul(x, scales), v128.load32_splat(query, 16)), v128.load32_splat(query, 4)),
  );
}

// @ts-ignore: decorator
@inline
function dotsI8(
  nq: i32,
  mode: i32,
  a: usize,
  outer: i32,
  inner: i32,
  b: usize,
  out: usize,
  ldOut: usize,
  keyScales: usize,
  queries: usize,
): void {
  const row = <usize>inner << 4;
  const ones = v128.load(ONES);
  for (let o = 0; o < outer; o += 2) {
    const two = o + 1 < outer;
    let p0 = a;
    let p1 = two ? a + row : a;
    let x = b;
    let s00 = i32x4.splat(0);
    let s01 = i32x4.splat(0);
    let s10 = i32x4.splat(0);
    let s11 = i32x4.splat(0);
    let s20 = i32x4.splat(0);
    let s21 = i32x4.splat(0);
    let s30 = i32x4.splat(0);
    let s31 = i32x4.splat(0);
    if (mode == SCORE)
      for (let i = 0; i < inner; i++) {
        const a0 = v128.load(p0);
        const a1 = v128.load(p1);
        let y = v128.load32_splat(x);
        s00 = once(mode, s00, a0, y, ones);
        s01 = once(mode, s01, a1, y, ones);
        if (nq > 1) {
          y = v128.load32_splat(x, 4);
          s10 = once(mode, s10, a0, y, ones);
          s11 = once(mode, s11, a1, y, ones);
        }
        if (nq > 2) {
          y = v128.load32_splat(x, 8);
          s20 = once(mode, s20, a0, y, ones);
          s21 = once(mode, s21, a1, y, ones);
        }
        if (nq > 3) {
          y = v128.load32_splat(x, 12);
          s30 = once(mode, s30, a0, y, ones);
          s31 = once(mode, s31, a1, y, ones);
        }
        p0 += 16;
        p1 += 16;
        x += 16;
      }
    else
      for (let i = 0; i < inner; i += 2) {
        const a0 = v128.load(p0);
        const a1 = v128.load(p1);
        const c0 = v128.load(p0, 16);
        const c1 = v128.load(p1, 16);
        let y = v128.load32_splat(x);
        let z = v128.load32_splat(x, 16);
        s00 = twice(mode, s00, a0, y, c0, z, ones);
        s01 = twice(mode, s01, a1, y, c1, z, ones);
        if (nq > 1) {
          y = v128.load32_splat(x, 4);
          z = v128.load32_splat(x, 20);
          s10 = twice(mode, s10, a0, y, c0, z, ones);
          s11 = twice(mode, s11, a1, y, c1, z, ones);
        }
        if (nq > 2) {
          y = v128.load32_splat(x, 8);
          z = v128.load32_splat(x, 24);
          s20 = twice(mode, s20, a0, y, c0, z, ones);
          s21 = twice(mode, s21, a1, y, c1, z, ones);
        }
        if (nq > 3) {
          y = v128.load32_splat(x, 12);
          z = v128.load32_splat(x, 28);
          s30 = twice(mode, s30, a0, y, c0, z, ones);
          s31 = twice(mode, s31, a1, y, c1, z, ones);
        }
        p0 += 32;
        p1 += 32;
        x += 32;
      }
    let scales = mode == WEIGH ? ones : v128.load(keyScales);
    finish(mode, s00, out, scales, queries);
    if (nq > 1) finish(mode, s10, out + ldOut, scales, queries + 32);
    if (nq > 2) finish(mode, s20, out + ldOut * 2, scales, queries + 64);
    if (nq > 3) finish(mode, s30, out + ldOut * 3, scales, queries + 96);
    if (two) {
      if (mode != WEIGH) scales = v128.load(keyScales, 16);
      finish(mode, s01, out + 16, scales, queries);
      if (nq > 1) finish(mode, s11, out + ldOut + 16, scales, queries + 32);
      if (nq > 2) finish(mode, s21, out + ldOut * 2 + 16, scales, queries + 64);
      if (nq > 3) finish(mode, s31, out + ldOut * 3 + 16, scales, queries + 96);
    }
    a += row << 1;
    out += 32;
    if (mode != WEIGH) keyScales += 32;
  }
}

/** Scores of all `queries`: operands of each 4 queries `ldB` bytes apart, outputs `ldOut` bytes a query. */
export function scoresI8(
  queries: i32,
  a: usize,
  blocks: i32,
  chunks: i32,
  b: usize,
  ldB: usize,
  out: usize,
  ldOut: usize,
  keyScales: usize,
  params: usize,
): void {
  for (; queries >= 4; queries -= 4) {
    dotsI8(4, SCORE, a, blocks, chunks, b, out, ldOut, keyScales, params);
    b += ldB;
    out += ldOut << 2;
    params += 128;
  }
  if (queries == 3) dotsI8(3, SCORE, a, blocks, chunks, b, out, ldOut, keyScales, params);
  else if (queries == 2) dotsI8(2, SCORE, a, blocks, chunks, b, out, ldOut, keyScales, params);
  else if (queries == 1) dotsI8(1, SCORE, a, blocks, chunks, b, out, ldOut, keyScales, params);
}
export function weighI8(
  queries: i32,
  a: usize,
  chunks: i32,
  blocks: i32,
  b: usize,
  ldB: usize,
  out: usize,
  ldOut: usize,
  params: usize,
): void {
  for (; queries >= 4; queries -= 4) {
    dotsI8(4, WEIGH, a, chunks, blocks, b, out, ldOut, 0, params);
    b += ldB;
    out += ldOut << 2;
    params += 128;
  }
  if (queries == 3) dotsI8(3, WEIGH, a, chunks, blocks, b, out, ldOut, 0, params);
  else if (queries == 2) dotsI8(2, WEIGH, a, chunks, blocks, b, out, ldOut, 0, params);
  else if (queries == 1) dotsI8(1, WEIGH, a, chunks, blocks, b, out, ldOut, 0, params);
}
