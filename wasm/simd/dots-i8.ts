import { dotPairs } from './dot';

/**
 * Integer products of attention with cells of 1 to 4 bits: int8 operands, sums exact. For up to 4 queries and every `outer`, four lanes of the
 * sum over `inner`:
 *   scores           outer = 4 tokens (a lane is a token), inner = chunks of channels; unsigned levels times signed queries
 *   weighted values  outer = 4 channels (a lane is a channel), inner = blocks of tokens; signed levels times unsigned weights
 * a [outer][inner]: 16 bytes, four bytes a lane. b [inner][4 queries]: 4 bytes.
 */

/** A pair of products is at most 2 * 63 * 124: two pairs are summed as i16. What lies in `a` behind an odd inner meets zeros in `b`. */
export const SCORE = 0;
/** At most 2 * 127 * 62. */
export const WEIGH = 1;

export const ONES: usize = memory.data<i16>([1, 1, 1, 1, 1, 1, 1, 1], 16);

/** Lane i in all lanes. From a loaded vector: V8 adds the offset of a load that splats in an instruction of its own. */
// @ts-ignore: decorator
@inline
function splat(x: v128, i: i32): v128 {
  if (i == 0) return v128.shuffle<i32>(x, x, 0, 0, 0, 0);
  if (i == 1) return v128.shuffle<i32>(x, x, 1, 1, 1, 1);
  if (i == 2) return v128.shuffle<i32>(x, x, 2, 2, 2, 2);
  return v128.shuffle<i32>(x, x, 3, 3, 3, 3);
}

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
 * Parameters of a query, 32 bytes: f32 [4] score of the mean, [8] step of its weights, [16] of its integers; i32 [20] what its scores' sums
 * start from: less the sum of its integers times the levels' offset.
 *   scores   out = (([20] + sum) * keyScale) * [16] + [4]
 *   values   out += sum * [8]
 */
// @ts-ignore: decorator
@inline
export function finishScore(sum: v128, out: usize, scales: v128, step: v128, mean: v128): void {
  const x = f32x4.convert_i32x4_s(sum);
  v128.store(out, f32x4.add(f32x4.mul(f32x4.mul(x, scales), step), mean));
}
// @ts-ignore: decorator
@inline
export function finishWeigh(sum: v128, out: usize, step: v128): void {
  v128.store(out, f32x4.add(v128.load(out), f32x4.mul(f32x4.convert_i32x4_s(sum), step)));
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
  // Loaded once: what outnumbers the registers is nearer on the stack.
  const step0 = v128.load32_splat(queries + (mode == SCORE ? 16 : 8));
  const step1 = nq > 1 ? v128.load32_splat(queries + (mode == SCORE ? 48 : 40)) : step0;
  const step2 = nq > 2 ? v128.load32_splat(queries + (mode == SCORE ? 80 : 72)) : step0;
  const step3 = nq > 3 ? v128.load32_splat(queries + (mode == SCORE ? 112 : 104)) : step0;
  const mean0 = mode == SCORE ? v128.load32_splat(queries, 4) : step0;
  const mean1 = mode == SCORE && nq > 1 ? v128.load32_splat(queries, 36) : step0;
  const mean2 = mode == SCORE && nq > 2 ? v128.load32_splat(queries, 68) : step0;
  const mean3 = mode == SCORE && nq > 3 ? v128.load32_splat(queries, 100) : step0;
  const start0 = mode == SCORE ? v128.load32_splat(queries, 20) : i32x4.splat(0);
  const start1 = mode == SCORE && nq > 1 ? v128.load32_splat(queries, 52) : i32x4.splat(0);
  const start2 = mode == SCORE && nq > 2 ? v128.load32_splat(queries, 84) : i32x4.splat(0);
  const start3 = mode == SCORE && nq > 3 ? v128.load32_splat(queries, 116) : i32x4.splat(0);
  for (let o = 0; o < outer; o += 2) {
    const two = o + 1 < outer;
    let p0 = a;
    let p1 = two ? a + row : a;
    let x = b;
    let s00 = start0;
    let s01 = start0;
    let s10 = start1;
    let s11 = start1;
    let s20 = start2;
    let s21 = start2;
    let s30 = start3;
    let s31 = start3;
    for (let i = 0; i < inner; i += 2) {
      const a0 = v128.load(p0);
      const a1 = v128.load(p1);
      const c0 = v128.load(p0, 16);
      const c1 = v128.load(p1, 16);
      const b0 = v128.load(x);
      const b1 = v128.load(x, 16);
      let y = splat(b0, 0);
      let z = splat(b1, 0);
      s00 = twice(mode, s00, a0, y, c0, z, ones);
      s01 = twice(mode, s01, a1, y, c1, z, ones);
      if (nq > 1) {
        y = splat(b0, 1);
        z = splat(b1, 1);
        s10 = twice(mode, s10, a0, y, c0, z, ones);
        s11 = twice(mode, s11, a1, y, c1, z, ones);
      }
      if (nq > 2) {
        y = splat(b0, 2);
        z = splat(b1, 2);
        s20 = twice(mode, s20, a0, y, c0, z, ones);
        s21 = twice(mode, s21, a1, y, c1, z, ones);
      }
      if (nq > 3) {
        y = splat(b0, 3);
        z = splat(b1, 3);
        s30 = twice(mode, s30, a0, y, c0, z, ones);
        s31 = twice(mode, s31, a1, y, c1, z, ones);
      }
      p0 += 32;
      p1 += 32;
      x += 32;
    }
    if (mode == SCORE) {
      let scales = v128.load(keyScales);
      finishScore(s00, out, scales, step0, mean0);
      if (nq > 1) finishScore(s10, out + ldOut, scales, step1, mean1);
      if (nq > 2) finishScore(s20, out + ldOut * 2, scales, step2, mean2);
      if (nq > 3) finishScore(s30, out + ldOut * 3, scales, step3, mean3);
      if (two) {
        scales = v128.load(keyScales, 16);
        finishScore(s01, out + 16, scales, step0, mean0);
        if (nq > 1) finishScore(s11, out + ldOut + 16, scales, step1, mean1);
        if (nq > 2) finishScore(s21, out + ldOut * 2 + 16, scales, step2, mean2);
        if (nq > 3) finishScore(s31, out + ldOut * 3 + 16, scales, step3, mean3);
      }
      keyScales += 32;
    } else {
      finishWeigh(s00, out, step0);
      if (nq > 1) finishWeigh(s10, out + ldOut, step1);
      if (nq > 2) finishWeigh(s20, out + ldOut * 2, step2);
      if (nq > 3) finishWeigh(s30, out + ldOut * 3, step3);
      if (two) {
        finishWeigh(s01, out + 16, step0);
        if (nq > 1) finishWeigh(s11, out + ldOut + 16, step1);
        if (nq > 2) finishWeigh(s21, out + ldOut * 2 + 16, step2);
        if (nq > 3) finishWeigh(s31, out + ldOut * 3 + 16, step3);
      }
    }
    a += row << 1;
    out += 32;
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
