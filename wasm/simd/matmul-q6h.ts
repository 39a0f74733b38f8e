import { dotPairs } from './dot';
import {
  PANEL,
  gridOrigin,
  gridStep,
  highFloats,
  loadHigh,
  loadLow,
  lowFloats,
  pairMask,
  panel,
  sixMask,
  storeLanes8,
  strideI8H64,
} from './lanes';

/** Rows with a second set of codes for what the first misses: 2048 of a vocabulary; src/kernels/weights-q6h.ts states it too. */
// @ts-ignore: decorator
@inline
export function fineRows(n: i32): i32 {
  return n >= 16384 ? 2048 : 0;
}

/**
 * out [rows, n] = rotated activation x weight transposed, weight in form q6h (layout: src/kernels/weights.ts).
 * An output starts at its row's share times the product of the activation with the mean row.
 * Then for each group of 64 channels: (dot * scale) * xScale - (scale * zero / 4) * xSum, in group order; then the same for the residual.
 * A group's dot: codes <= 63, so two pair sums of at most 16002 fit 16 bits and are widened together.
 */
export function matmulQ6h(
  activation: usize,
  rows: i32,
  weight: usize,
  n: i32,
  k: i32,
  out: usize,
  ldOut: i32,
): void {
  const stride = strideI8H64(k);
  const outStride = <usize>ldOut << 2;
  for (let r = 0; r < rows; r++)
    fill(out + <usize>r * outStride, n, shared(activation + <usize>r * stride, weight, k));
  const next = addRows(activation, stride, rows, weight + (<usize>k << 2), n, k, out, outStride);
  addRows(activation, stride, rows, next, fineRows(n), k, out, outStride);
}

/** out = out * share + products, for each group of 8 rows. @returns the address after the last group */
function addRows(
  activation: usize,
  stride: usize,
  rows: i32,
  weight: usize,
  n: i32,
  k: i32,
  out: usize,
  outStride: usize,
): usize {
  const quads = rows & ~3;
  for (let row = 0; row < n; row += 8) {
    const valid = n - row;
    for (let from = 0; quads > 0 && from < k; from += PANEL) {
      const channels = min(PANEL, k - from);
      unpack(weight, from, channels);
      let x = activation + from;
      let pair = activation + k + ((from >> 6) << 3);
      let to = out;
      for (let left = quads; left > 0; left -= 4) {
        fourRows(x, pair, stride, channels, to, outStride, valid);
        x += stride << 2;
        pair += stride << 2;
        to += outStride << 2;
      }
    }
    for (let r = quads; r < rows; r++)
      oneRow(activation + <usize>r * stride, weight, k, out + <usize>r * outStride, valid);
    weight += 64 + <usize>(k >> 6) * 400;
    out += 32;
  }
  return weight;
}

/** Product of an activation row with the mean row, in four lanes a group, (l0 + l1) + (l2 + l3). */
function shared(x: usize, mean: usize, k: i32): f32 {
  let pair = x + <usize>k;
  let sum: f32 = 0;
  for (const end = pair; x < end; pair += 8) {
    let lanes = f32x4.splat(0);
    for (const stop = x + 64; x < stop; x += 4) {
      const codes = i32x4.extend_low_i16x8_s(i16x8.extend_low_i8x16_s(v128.load32_zero(x)));
      lanes = f32x4.add(lanes, f32x4.mul(f32x4.convert_i32x4_s(codes), v128.load(mean)));
      mean += 16;
    }
    const dot =
      f32x4.extract_lane(lanes, 0) +
      f32x4.extract_lane(lanes, 1) +
      (f32x4.extract_lane(lanes, 2) + f32x4.extract_lane(lanes, 3));
    sum += dot * f32.load(pair);
  }
  return sum;
}

function fill(out: usize, n: i32, value: f32): void {
  for (const end = out + (<usize>n << 2); out < end; out += 4) f32.store(out, value);
}

/** Codes of a set's channels 12..15, put together from the upper bits of its three vectors. */
// @ts-ignore: decorator
@inline
function fourth(a: v128, b: v128, c: v128, m0: v128, m1: v128, m2: v128): v128 {
  return v128.or(
    v128.or(v128.and(i16x8.shr_u(a, 2), m0), v128.and(i16x8.shr_u(b, 4), m1)),
    v128.and(i16x8.shr_u(c, 6), m2),
  );
}

/** sum + the dots of 8 channels for 4 output rows. */
// @ts-ignore: decorator
@inline
function dot8(sum: v128, p: v128, q: v128, low: v128, high: v128): v128 {
  return i32x4.add(sum, i32x4.extadd_pairwise_i16x8_s(i16x8.add(dotPairs(p, low), dotPairs(q, high))));
}

// @ts-ignore: decorator
@inline
function combine(sum: v128, dot: v128, scale: v128, shift: v128, pair: usize): v128 {
  const product = f32x4.mul(f32x4.mul(f32x4.convert_i32x4_s(dot), scale), v128.load32_splat(pair));
  return f32x4.add(sum, f32x4.sub(product, f32x4.mul(shift, v128.load32_splat(pair, 4))));
}

/** scale * zero / 4; `zero` as it is stored. */
// @ts-ignore: decorator
@inline
function shiftOf(scale: v128, zero: v128): v128 {
  return f32x4.mul(f32x4.mul(zero, f32x4.splat(0.25)), scale);
}

function oneRow(x: usize, weight: usize, k: i32, out: usize, valid: i32): void {
  const grid0 = v128.load(weight);
  const grid1 = v128.load(weight, 16);
  const six = sixMask();
  const m0 = pairMask(0);
  const m1 = pairMask(1);
  const m2 = pairMask(2);
  let pair = x + <usize>k;
  const end = pair;
  let sum0 = f32x4.mul(loadLow(out, valid), v128.load(weight, 32));
  let sum1 = f32x4.mul(loadHigh(out, valid), v128.load(weight, 48));
  weight += 64;
  while (x < end) {
    let d0 = i32x4.splat(0);
    let d1 = i32x4.splat(0);
    let set = weight + 16;
    for (const stop = x + 64; x < stop; x += 16) {
      const x0 = v128.load32_splat(x);
      const x1 = v128.load32_splat(x, 4);
      const x2 = v128.load32_splat(x, 8);
      const x3 = v128.load32_splat(x, 12);
      let a = v128.load(set);
      let b = v128.load(set, 16);
      let c = v128.load(set, 32);
      d0 = dot8(d0, x0, x1, v128.and(a, six), v128.and(b, six));
      d0 = dot8(d0, x2, x3, v128.and(c, six), fourth(a, b, c, m0, m1, m2));
      a = v128.load(set, 192);
      b = v128.load(set, 208);
      c = v128.load(set, 224);
      d1 = dot8(d1, x0, x1, v128.and(a, six), v128.and(b, six));
      d1 = dot8(d1, x2, x3, v128.and(c, six), fourth(a, b, c, m0, m1, m2));
      set += 48;
    }
    const bytes = v128.load(weight);
    const scales = i16x8.extend_low_i8x16_u(bytes);
    const zeros = i16x8.extend_high_i8x16_u(bytes);
    const scale0 = f32x4.mul(f32x4.add(lowFloats(scales), gridOrigin(grid0)), gridStep(grid0));
    const scale1 = f32x4.mul(f32x4.add(highFloats(scales), gridOrigin(grid1)), gridStep(grid1));
    sum0 = combine(sum0, d0, scale0, shiftOf(scale0, lowFloats(zeros)), pair);
    sum1 = combine(sum1, d1, scale1, shiftOf(scale1, highFloats(zeros)), pair);
    weight += 400;
    pair += 8;
  }
  storeLanes8(out, valid, sum0, sum1);
}

/** The panel: shares of 8 rows, then the groups. One group of 64 channels: scales of 8 rows, shifts of 8 rows, then (rows 0..3, rows 4..7) codes of each 4 channels. */
const GROUP: usize = 64 + 512;

function unpack(weight: usize, from: i32, channels: i32): void {
  const grid0 = v128.load(weight);
  const grid1 = v128.load(weight, 16);
  const six = sixMask();
  const m0 = pairMask(0);
  const m1 = pairMask(1);
  const m2 = pairMask(2);
  // The share applies once, before the first panel.
  v128.store(panel, from ? f32x4.splat(1) : v128.load(weight, 32));
  v128.store(panel, from ? f32x4.splat(1) : v128.load(weight, 48), 16);
  let at = weight + 64 + <usize>(from >> 6) * 400;
  let to = panel + 32;
  for (; channels > 0; channels -= 64) {
    const bytes = v128.load(at);
    const scales = i16x8.extend_low_i8x16_u(bytes);
    const zeros = i16x8.extend_high_i8x16_u(bytes);
    const scale0 = f32x4.mul(f32x4.add(lowFloats(scales), gridOrigin(grid0)), gridStep(grid0));
    const scale1 = f32x4.mul(f32x4.add(highFloats(scales), gridOrigin(grid1)), gridStep(grid1));
    v128.store(to, scale0);
    v128.store(to, scale1, 16);
    v128.store(to, shiftOf(scale0, lowFloats(zeros)), 32);
    v128.store(to, shiftOf(scale1, highFloats(zeros)), 48);
    let codes = to + 64;
    for (let set = at + 16; set < at + 208; set += 48) {
      for (let rows: usize = 0; rows < 2; rows++) {
        const a = v128.load(set + rows * 192);
        const b = v128.load(set + rows * 192, 16);
        const c = v128.load(set + rows * 192, 32);
        v128.store(codes + rows * 16, v128.and(a, six));
        v128.store(codes + rows * 16, v128.and(b, six), 32);
        v128.store(codes + rows * 16, v128.and(c, six), 64);
        v128.store(codes + rows * 16, fourth(a, b, c, m0, m1, m2), 96);
      }
      codes += 128;
    }
    at += 400;
    to += GROUP;
  }
}

/** Four activation rows against the panel; adds to the sums in the output. */
function fourRows(
  x0: usize,
  pair: usize,
  stride: usize,
  channels: i32,
  out: usize,
  outStride: usize,
  valid: i32,
): void {
  const x1 = x0 + stride;
  const x2 = x1 + stride;
  const x3 = x2 + stride;
  const out1 = out + outStride;
  const out2 = out1 + outStride;
  const out3 = out2 + outStride;
  const share0 = v128.load(panel);
  const share1 = v128.load(panel, 16);
  let sum00 = f32x4.mul(loadLow(out, valid), share0);
  let sum01 = f32x4.mul(loadHigh(out, valid), share1);
  let sum10 = f32x4.mul(loadLow(out1, valid), share0);
  let sum11 = f32x4.mul(loadHigh(out1, valid), share1);
  let sum20 = f32x4.mul(loadLow(out2, valid), share0);
  let sum21 = f32x4.mul(loadHigh(out2, valid), share1);
  let sum30 = f32x4.mul(loadLow(out3, valid), share0);
  let sum31 = f32x4.mul(loadHigh(out3, valid), share1);
  let at: usize = 0;
  let w = panel + 32;
  while (at < <usize>channels) {
    let d00 = i32x4.splat(0);
    let d01 = i32x4.splat(0);
    let d10 = i32x4.splat(0);
    let d11 = i32x4.splat(0);
    let d20 = i32x4.splat(0);
    let d21 = i32x4.splat(0);
    let d30 = i32x4.splat(0);
    let d31 = i32x4.splat(0);
    const scales = w;
    for (const end = w + 512; w < end; w += 64) {
      const a0 = v128.load(w, 64);
      const b0 = v128.load(w, 80);
      const a1 = v128.load(w, 96);
      const b1 = v128.load(w, 112);
      let p = v128.load32_splat(x0 + at);
      let q = v128.load32_splat(x0 + at, 4);
      d00 = dot8(d00, p, q, a0, a1);
      d01 = dot8(d01, p, q, b0, b1);
      p = v128.load32_splat(x1 + at);
      q = v128.load32_splat(x1 + at, 4);
      d10 = dot8(d10, p, q, a0, a1);
      d11 = dot8(d11, p, q, b0, b1);
      p = v128.load32_splat(x2 + at);
      q = v128.load32_splat(x2 + at, 4);
      d20 = dot8(d20, p, q, a0, a1);
      d21 = dot8(d21, p, q, b0, b1);
      p = v128.load32_splat(x3 + at);
      q = v128.load32_splat(x3 + at, 4);
      d30 = dot8(d30, p, q, a0, a1);
      d31 = dot8(d31, p, q, b0, b1);
      at += 8;
    }
    w += 64;
    const scale0 = v128.load(scales);
    const scale1 = v128.load(scales, 16);
    const shift0 = v128.load(scales, 32);
    const shift1 = v128.load(scales, 48);
    const pair1 = pair + stride;
    const pair2 = pair1 + stride;
    const pair3 = pair2 + stride;
    sum00 = combine(sum00, d00, scale0, shift0, pair);
    sum01 = combine(sum01, d01, scale1, shift1, pair);
    sum10 = combine(sum10, d10, scale0, shift0, pair1);
    sum11 = combine(sum11, d11, scale1, shift1, pair1);
    sum20 = combine(sum20, d20, scale0, shift0, pair2);
    sum21 = combine(sum21, d21, scale1, shift1, pair2);
    sum30 = combine(sum30, d30, scale0, shift0, pair3);
    sum31 = combine(sum31, d31, scale1, shift1, pair3);
    pair += 8;
  }
  storeLanes8(out, valid, sum00, sum01);
  storeLanes8(out1, valid, sum10, sum11);
  storeLanes8(out2, valid, sum20, sum21);
  storeLanes8(out3, valid, sum30, sum31);
}
