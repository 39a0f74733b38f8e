/**
 * The products of attention, but for those of cells of 1 to 4 bits (dots-i8.ts).
 * Integer: scores and weighted values are one kernel. For up to 4 queries and every `outer`, four lanes of the sum over `inner`
 * of a[outer][inner] * b[inner][query]:
 *   scores           outer = 4 tokens (a lane is a token), inner = chunks of channels
 *   weighted values  outer = 4 channels (a lane is a channel), inner = blocks of tokens
 * Operands are interleaved by 4 queries whatever their number. Every sum's order is fixed, whatever its company.
 */

/** What becomes of an integer sum. */
export const SCORE = 0;
const WEIGH = 1;

/**
 * Parameters of a query that the sums are finished with, 32 bytes a query:
 *   SCORE  out = (sum * keyScale[lane]) * [0] + [1]
 *   WEIGH  out += sum * [2]
 */
// @ts-ignore: decorator
@inline
export function finish(mode: i32, sum: v128, out: usize, keyScales: v128, query: usize): void {
  if (mode == SCORE)
    v128.store(
      out,
      f32x4.add(
        f32x4.mul(f32x4.mul(f32x4.convert_i32x4_s(sum), keyScales), v128.load32_splat(query)),
        v128.load32_splat(query, 4),
      ),
    );
  else
    v128.store(
      out,
      f32x4.add(v128.load(out), f32x4.mul(f32x4.convert_i32x4_s(sum), v128.load32_splat(query, 8))),
    );
}

// @ts-ignore: decorator
@inline
function mac16(sum: v128, a: v128, b: v128): v128 {
  return i32x4.add(sum, i32x4.dot_i16x8_s(a, b));
}

/**
 * Integer sums, exact. a [outer][inner]: 32 bytes, the 16-bit pairs (0, 2) of four lanes, then the pairs (1, 3).
 * b [inner][4 queries]: 8 bytes, 16-bit elements 0, 2, 1, 3.
 */
// @ts-ignore: decorator
@inline
function dotsI16(
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
  const row = <usize>inner << 5;
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
    for (let i = 0; i < inner; i++) {
      const a0 = v128.load(p0);
      const a1 = v128.load(p1);
      const c0 = v128.load(p0, 16);
      const c1 = v128.load(p1, 16);
      let y = v128.load32_splat(x);
      s00 = mac16(s00, a0, y);
      s01 = mac16(s01, a1, y);
      y = v128.load32_splat(x, 4);
      s00 = mac16(s00, c0, y);
      s01 = mac16(s01, c1, y);
      if (nq > 1) {
        y = v128.load32_splat(x, 8);
        s10 = mac16(s10, a0, y);
        s11 = mac16(s11, a1, y);
        y = v128.load32_splat(x, 12);
        s10 = mac16(s10, c0, y);
        s11 = mac16(s11, c1, y);
      }
      if (nq > 2) {
        y = v128.load32_splat(x, 16);
        s20 = mac16(s20, a0, y);
        s21 = mac16(s21, a1, y);
        y = v128.load32_splat(x, 20);
        s20 = mac16(s20, c0, y);
        s21 = mac16(s21, c1, y);
      }
      if (nq > 3) {
        y = v128.load32_splat(x, 24);
        s30 = mac16(s30, a0, y);
        s31 = mac16(s31, a1, y);
        y = v128.load32_splat(x, 28);
        s30 = mac16(s30, c0, y);
        s31 = mac16(s31, c1, y);
      }
      p0 += 32;
      p1 += 32;
      x += 32;
    }
    const scales0 = mode == SCORE ? v128.load(keyScales) : i32x4.splat(0);
    finish(mode, s00, out, scales0, queries);
    if (nq > 1) finish(mode, s10, out + ldOut, scales0, queries + 32);
    if (nq > 2) finish(mode, s20, out + ldOut * 2, scales0, queries + 64);
    if (nq > 3) finish(mode, s30, out + ldOut * 3, scales0, queries + 96);
    if (two) {
      const scales1 = mode == SCORE ? v128.load(keyScales, 16) : i32x4.splat(0);
      finish(mode, s01, out + 16, scales1, queries);
      if (nq > 1) finish(mode, s11, out + ldOut + 16, scales1, queries + 32);
      if (nq > 2) finish(mode, s21, out + ldOut * 2 + 16, scales1, queries + 64);
      if (nq > 3) finish(mode, s31, out + ldOut * 3 + 16, scales1, queries + 96);
    }
    a += row << 1;
    out += 32;
    if (mode == SCORE) keyScales += 32;
  }
}

// @ts-ignore: decorator
@inline
function macF32(sum: v128, a: v128, b: v128): v128 {
  return f32x4.add(sum, f32x4.mul(a, b));
}
/** Lanes (l0 + l1) + (l2 + l3) of four vectors. */
// @ts-ignore: decorator
@inline
function lanes4(a: v128, b: v128, c: v128, d: v128): v128 {
  const ab = f32x4.add(v128.shuffle<f32>(a, b, 0, 2, 4, 6), v128.shuffle<f32>(a, b, 1, 3, 5, 7));
  const cd = f32x4.add(v128.shuffle<f32>(c, d, 0, 2, 4, 6), v128.shuffle<f32>(c, d, 1, 3, 5, 7));
  return f32x4.add(v128.shuffle<f32>(ab, cd, 0, 2, 4, 6), v128.shuffle<f32>(ab, cd, 1, 3, 5, 7));
}

/** Scores of 4 rows and one or two queries; row addresses may coincide. */
// @ts-ignore: decorator
@inline
function rowScores(
  nq: i32,
  p0: usize,
  p1: usize,
  p2: usize,
  p3: usize,
  bytes: usize,
  q: usize,
  out: usize,
  ldOut: usize,
): void {
  let s00 = f32x4.splat(0);
  let s01 = f32x4.splat(0);
  let s02 = f32x4.splat(0);
  let s03 = f32x4.splat(0);
  let s10 = f32x4.splat(0);
  let s11 = f32x4.splat(0);
  let s12 = f32x4.splat(0);
  let s13 = f32x4.splat(0);
  const r = q + bytes;
  for (let c: usize = 0; c < bytes; c += 16) {
    const x = v128.load(q + c);
    const y = nq > 1 ? v128.load(r + c) : x;
    let a = v128.load(p0 + c);
    s00 = macF32(s00, a, x);
    if (nq > 1) s10 = macF32(s10, a, y);
    a = v128.load(p1 + c);
    s01 = macF32(s01, a, x);
    if (nq > 1) s11 = macF32(s11, a, y);
    a = v128.load(p2 + c);
    s02 = macF32(s02, a, x);
    if (nq > 1) s12 = macF32(s12, a, y);
    a = v128.load(p3 + c);
    s03 = macF32(s03, a, x);
    if (nq > 1) s13 = macF32(s13, a, y);
  }
  v128.store(out, lanes4(s00, s01, s02, s03));
  if (nq > 1) v128.store(out + ldOut, lanes4(s10, s11, s12, s13));
}

/**
 * Float scores: rows [n][dim] f32, queries [queries][dim] f32; 4 partial sums by channel mod 4, then the lanes.
 * The outputs of rows n .. up to the next multiple of 4 are written and mean nothing.
 */
export function scoresF32(
  queries: i32,
  rows: usize,
  n: i32,
  dim: i32,
  q: usize,
  out: usize,
  ldOut: usize,
): void {
  const bytes = <usize>dim << 2;
  for (; queries > 0; queries -= 2) {
    let p = rows;
    let to = out;
    for (let t = 0; t < n; t += 4) {
      const p1 = t + 1 < n ? p + bytes : p;
      const p2 = t + 2 < n ? p + bytes * 2 : p;
      const p3 = t + 3 < n ? p + bytes * 3 : p;
      if (queries > 1) rowScores(2, p, p1, p2, p3, bytes, q, to, ldOut);
      else rowScores(1, p, p1, p2, p3, bytes, q, to, ldOut);
      p += bytes << 2;
      to += 16;
    }
    q += bytes << 1;
    out += ldOut << 1;
  }
}

/** Adds sum over n rows, in order from 0, of rows [n][dim] f32 * b [n][4 queries] f32 to out. */
// @ts-ignore: decorator
@inline
function weighRows(nq: i32, rows: usize, n: i32, dim: i32, b: usize, out: usize, ldOut: usize): void {
  const bytes = <usize>dim << 2;
  for (let c = 0; c < dim; c += 8) {
    // A last single vector is computed twice.
    const next: usize = c + 4 < dim ? 16 : 0;
    let p = rows;
    let x = b;
    let s00 = f32x4.splat(0);
    let s01 = f32x4.splat(0);
    let s10 = f32x4.splat(0);
    let s11 = f32x4.splat(0);
    let s20 = f32x4.splat(0);
    let s21 = f32x4.splat(0);
    let s30 = f32x4.splat(0);
    let s31 = f32x4.splat(0);
    for (let i = 0; i < n; i++) {
      const a0 = v128.load(p);
      const a1 = v128.load(p + next);
      let y = v128.load32_splat(x);
      s00 = macF32(s00, a0, y);
      s01 = macF32(s01, a1, y);
      if (nq > 1) {
        y = v128.load32_splat(x, 4);
        s10 = macF32(s10, a0, y);
        s11 = macF32(s11, a1, y);
      }
      if (nq > 2) {
        y = v128.load32_splat(x, 8);
        s20 = macF32(s20, a0, y);
        s21 = macF32(s21, a1, y);
      }
      if (nq > 3) {
        y = v128.load32_splat(x, 12);
        s30 = macF32(s30, a0, y);
        s31 = macF32(s31, a1, y);
      }
      p += bytes;
      x += 16;
    }
    addTo(out, s00);
    if (nq > 1) addTo(out + ldOut, s10);
    if (nq > 2) addTo(out + ldOut * 2, s20);
    if (nq > 3) addTo(out + ldOut * 3, s30);
    if (next) {
      addTo(out + 16, s01);
      if (nq > 1) addTo(out + ldOut + 16, s11);
      if (nq > 2) addTo(out + ldOut * 2 + 16, s21);
      if (nq > 3) addTo(out + ldOut * 3 + 16, s31);
    }
    rows += 32;
    out += 32;
  }
}
// @ts-ignore: decorator
@inline
function addTo(out: usize, sum: v128): void {
  v128.store(out, f32x4.add(v128.load(out), sum));
}

/** Scores of all `queries`: operands of each 4 queries `ldB` bytes apart, outputs `ldOut` bytes a query. */
export function scoresI16(
  queries: i32,
  a: usize,
  outer: i32,
  inner: i32,
  b: usize,
  ldB: usize,
  out: usize,
  ldOut: usize,
  keyScales: usize,
  params: usize,
): void {
  for (; queries >= 4; queries -= 4) {
    dotsI16(4, SCORE, a, outer, inner, b, out, ldOut, keyScales, params);
    b += ldB;
    out += ldOut << 2;
    params += 128;
  }
  if (queries == 3) dotsI16(3, SCORE, a, outer, inner, b, out, ldOut, keyScales, params);
  else if (queries == 2) dotsI16(2, SCORE, a, outer, inner, b, out, ldOut, keyScales, params);
  else if (queries == 1) dotsI16(1, SCORE, a, outer, inner, b, out, ldOut, keyScales, params);
}
export function weighI16(
  queries: i32,
  a: usize,
  outer: i32,
  inner: i32,
  b: usize,
  ldB: usize,
  out: usize,
  ldOut: usize,
  params: usize,
): void {
  for (; queries >= 4; queries -= 4) {
    dotsI16(4, WEIGH, a, outer, inner, b, out, ldOut, 0, params);
    b += ldB;
    out += ldOut << 2;
    params += 128;
  }
  if (queries == 3) dotsI16(3, WEIGH, a, outer, inner, b, out, ldOut, 0, params);
  else if (queries == 2) dotsI16(2, WEIGH, a, outer, inner, b, out, ldOut, 0, params);
  else if (queries == 1) dotsI16(1, WEIGH, a, outer, inner, b, out, ldOut, 0, params);
}
export function weighF32(
  queries: i32,
  rows: usize,
  n: i32,
  dim: i32,
  b: usize,
  ldB: usize,
  out: usize,
  ldOut: usize,
): void {
  for (; queries >= 4; queries -= 4) {
    weighRows(4, rows, n, dim, b, out, ldOut);
    b += ldB;
    out += ldOut << 2;
  }
  if (queries == 3) weighRows(3, rows, n, dim, b, out, ldOut);
  else if (queries == 2) weighRows(2, rows, n, dim, b, out, ldOut);
  else if (queries == 1) weighRows(1, rows, n, dim, b, out, ldOut);
}
