import { dotPairs } from './dot';
import {
  PANEL,
  gridOrigin,
  gridStep,
  highFloats,
  loadHigh,
  loadLow,
  lowFloats,
  nibbleMask,
  panel,
  storeLanes8,
  strideI8,
} from './lanes';

/**
 * out [rows, n] = activation x weight transposed, weight in form q4r (layout: src/kernels/weights.ts).
 * For each block of 32 channels: (dot * scale) * xScale + minimum * xSum, added to the row's sum in block order.
 * A block's dot: codes <= 15, so eight pair sums of at most 3840 fit 16 bits (30720) and are widened once; an outlier's high part is added after.
 */
export function matmulQ4r(
  activation: usize,
  rows: i32,
  weight: usize,
  n: i32,
  k: i32,
  out: usize,
  ldOut: i32,
): void {
  const stride = strideI8(k);
  const groupBytes: usize = 64 + <usize>(k >> 5) * 144;
  const outStride = <usize>ldOut << 2;
  const quads = rows & ~3;
  for (let row = 0; row < n; row += 8) {
    const valid = n - row;
    for (let from = 0; quads > 0 && from < k; from += PANEL) {
      const channels = min(PANEL, k - from);
      unpack(weight, from, channels);
      let x = activation + from;
      let pair = activation + k + ((from >> 5) << 4);
      let to = out;
      for (let left = quads; left > 0; left -= 4) {
        fourRows(x, pair, stride, channels, to, outStride, valid, from > 0);
        x += stride << 2;
        pair += stride << 2;
        to += outStride << 2;
      }
    }
    for (let r = quads; r < rows; r++)
      oneRow(activation + <usize>r * stride, weight, k, out + <usize>r * outStride, valid);
    weight += groupBytes;
    out += 32;
  }
}

// @ts-ignore: decorator
@inline
function high(codes: v128, mask: v128): v128 {
  return v128.and(i16x8.shr_u(codes, 4), mask);
}
// @ts-ignore: decorator
@inline
function low(codes: v128, mask: v128): v128 {
  return v128.and(codes, mask);
}
// @ts-ignore: decorator
@inline
function dot8(x: usize, c0: v128, c1: v128, c2: v128, c3: v128, mask: v128): v128 {
  let sum = i16x8.add(dotPairs(v128.load32_splat(x), low(c0, mask)), dotPairs(v128.load32_splat(x, 4), high(c0, mask)));
  sum = i16x8.add(sum, dotPairs(v128.load32_splat(x, 8), low(c1, mask)));
  sum = i16x8.add(sum, dotPairs(v128.load32_splat(x, 12), high(c1, mask)));
  sum = i16x8.add(sum, dotPairs(v128.load32_splat(x, 16), low(c2, mask)));
  sum = i16x8.add(sum, dotPairs(v128.load32_splat(x, 20), high(c2, mask)));
  sum = i16x8.add(sum, dotPairs(v128.load32_splat(x, 24), low(c3, mask)));
  sum = i16x8.add(sum, dotPairs(v128.load32_splat(x, 28), high(c3, mask)));
  return i32x4.extadd_pairwise_i16x8_s(sum);
}

/** dot + 128 * the products of an outlier's high part: one byte of `high` with the codes of its step. */
// @ts-ignore: decorator
@inline
function addHigh(dot: v128, high: v128, codes: v128): v128 {
  return i32x4.add(dot, i32x4.shl(i32x4.extadd_pairwise_i16x8_s(dotPairs(high, codes)), 7));
}

// @ts-ignore: decorator
@inline
function combine(sum: v128, dot: v128, scale: v128, minimum: v128, pair: usize): v128 {
  const product = f32x4.mul(f32x4.mul(f32x4.convert_i32x4_s(dot), scale), v128.load32_splat(pair));
  return f32x4.add(sum, f32x4.add(product, f32x4.mul(minimum, v128.load32_splat(pair, 4))));
}

function oneRow(x: usize, weight: usize, k: i32, out: usize, valid: i32): void {
  const scaleStep0 = gridStep(v128.load(weight));
  const scaleStep1 = gridStep(v128.load(weight, 16));
  const scaleOrigin0 = gridOrigin(v128.load(weight));
  const scaleOrigin1 = gridOrigin(v128.load(weight, 16));
  const minimumStep0 = gridStep(v128.load(weight, 32));
  const minimumStep1 = gridStep(v128.load(weight, 48));
  const minimumOrigin0 = gridOrigin(v128.load(weight, 32));
  const minimumOrigin1 = gridOrigin(v128.load(weight, 48));
  weight += 64;
  let pair = x + <usize>k;
  const end = pair;
  const mask = nibbleMask();
  let sum0 = f32x4.splat(0);
  let sum1 = f32x4.splat(0);
  while (x < end) {
    const bytes = v128.load(weight);
    const scales = i16x8.extend_low_i8x16_u(bytes);
    const minima = i16x8.extend_high_i8x16_u(bytes);
    let dot0 = dot8(x, v128.load(weight, 16), v128.load(weight, 32), v128.load(weight, 48), v128.load(weight, 64), mask);
    let dot1 = dot8(x, v128.load(weight, 80), v128.load(weight, 96), v128.load(weight, 112), v128.load(weight, 128), mask);
    const step = i32.load(pair, 12);
    if (step >= 0) {
      const high = v128.load32_splat(pair, 8);
      const at = weight + (<usize>(step >> 1) << 4);
      // The odd steps lie in the high nibbles.
      const shift = (step & 1) << 2;
      dot0 = addHigh(dot0, high, low(i16x8.shr_u(v128.load(at, 16), shift), mask));
      dot1 = addHigh(dot1, high, low(i16x8.shr_u(v128.load(at, 80), shift), mask));
    }
    sum0 = combine(
      sum0,
      dot0,
      f32x4.mul(f32x4.add(lowFloats(scales), scaleOrigin0), scaleStep0),
      f32x4.mul(f32x4.add(lowFloats(minima), minimumOrigin0), minimumStep0),
      pair,
    );
    sum1 = combine(
      sum1,
      dot1,
      f32x4.mul(f32x4.add(highFloats(scales), scaleOrigin1), scaleStep1),
      f32x4.mul(f32x4.add(highFloats(minima), minimumOrigin1), minimumStep1),
      pair,
    );
    weight += 144;
    x += 32;
    pair += 16;
  }
  storeLanes8(out, valid, sum0, sum1);
}

/** One block of 32 channels in the panel: scales of 8 rows, minima of 8 rows, then (rows 0..3, rows 4..7) codes of each 4 channels. */
const BLOCK: usize = 64 + 256;

function unpack(weight: usize, from: i32, channels: i32): void {
  const scaleGrid0 = v128.load(weight);
  const scaleGrid1 = v128.load(weight, 16);
  const minimumGrid0 = v128.load(weight, 32);
  const minimumGrid1 = v128.load(weight, 48);
  const mask = nibbleMask();
  let at = weight + 64 + <usize>(from >> 5) * 144;
  let to = panel;
  for (; channels > 0; channels -= 32) {
    const bytes = v128.load(at);
    const scales = i16x8.extend_low_i8x16_u(bytes);
    const minima = i16x8.extend_high_i8x16_u(bytes);
    v128.store(to, f32x4.mul(f32x4.add(lowFloats(scales), gridOrigin(scaleGrid0)), gridStep(scaleGrid0)));
    v128.store(to, f32x4.mul(f32x4.add(highFloats(scales), gridOrigin(scaleGrid1)), gridStep(scaleGrid1)), 16);
    v128.store(to, f32x4.mul(f32x4.add(lowFloats(minima), gridOrigin(minimumGrid0)), gridStep(minimumGrid0)), 32);
    v128.store(to, f32x4.mul(f32x4.add(highFloats(minima), gridOrigin(minimumGrid1)), gridStep(minimumGrid1)), 48);
    let codes = to + 64;
    for (let v = at + 16; v < at + 80; v += 16) {
      const a = v128.load(v);
      const b = v128.load(v, 64);
      v128.store(codes, low(a, mask));
      v128.store(codes, low(b, mask), 16);
      v128.store(codes, high(a, mask), 32);
      v128.store(codes, high(b, mask), 48);
      codes += 64;
    }
    at += 144;
    to += BLOCK;
  }
}

/** Four activation rows against the panel. `more`: the output holds sums to add to. */
function fourRows(
  x0: usize,
  pair: usize,
  stride: usize,
  channels: i32,
  out: usize,
  outStride: usize,
  valid: i32,
  more: bool,
): void {
  const x1 = x0 + stride;
  const x2 = x1 + stride;
  const x3 = x2 + stride;
  const out1 = out + outStride;
  const out2 = out1 + outStride;
  const out3 = out2 + outStride;
  let sum00 = f32x4.splat(0);
  let sum01 = f32x4.splat(0);
  let sum10 = f32x4.splat(0);
  let sum11 = f32x4.splat(0);
  let sum20 = f32x4.splat(0);
  let sum21 = f32x4.splat(0);
  let sum30 = f32x4.splat(0);
  let sum31 = f32x4.splat(0);
  if (more) {
    sum00 = loadLow(out, valid);
    sum01 = loadHigh(out, valid);
    sum10 = loadLow(out1, valid);
    sum11 = loadHigh(out1, valid);
    sum20 = loadLow(out2, valid);
    sum21 = loadHigh(out2, valid);
    sum30 = loadLow(out3, valid);
    sum31 = loadHigh(out3, valid);
  }
  let at: usize = 0;
  let w = panel;
  while (at < <usize>channels) {
    let d00 = i16x8.splat(0);
    let d01 = i16x8.splat(0);
    let d10 = i16x8.splat(0);
    let d11 = i16x8.splat(0);
    let d20 = i16x8.splat(0);
    let d21 = i16x8.splat(0);
    let d30 = i16x8.splat(0);
    let d31 = i16x8.splat(0);
    const scales = w;
    for (const end = w + 256; w < end; w += 64) {
      const a0 = v128.load(w, 64);
      const b0 = v128.load(w, 80);
      const a1 = v128.load(w, 96);
      const b1 = v128.load(w, 112);
      let p = v128.load32_splat(x0 + at);
      let q = v128.load32_splat(x0 + at, 4);
      d00 = i16x8.add(i16x8.add(d00, dotPairs(p, a0)), dotPairs(q, a1));
      d01 = i16x8.add(i16x8.add(d01, dotPairs(p, b0)), dotPairs(q, b1));
      p = v128.load32_splat(x1 + at);
      q = v128.load32_splat(x1 + at, 4);
      d10 = i16x8.add(i16x8.add(d10, dotPairs(p, a0)), dotPairs(q, a1));
      d11 = i16x8.add(i16x8.add(d11, dotPairs(p, b0)), dotPairs(q, b1));
      p = v128.load32_splat(x2 + at);
      q = v128.load32_splat(x2 + at, 4);
      d20 = i16x8.add(i16x8.add(d20, dotPairs(p, a0)), dotPairs(q, a1));
      d21 = i16x8.add(i16x8.add(d21, dotPairs(p, b0)), dotPairs(q, b1));
      p = v128.load32_splat(x3 + at);
      q = v128.load32_splat(x3 + at, 4);
      d30 = i16x8.add(i16x8.add(d30, dotPairs(p, a0)), dotPairs(q, a1));
      d31 = i16x8.add(i16x8.add(d31, dotPairs(p, b0)), dotPairs(q, b1));
      at += 8;
    }
    w += 64;
    const scale0 = v128.load(scales);
    const scale1 = v128.load(scales, 16);
    const minimum0 = v128.load(scales, 32);
    const minimum1 = v128.load(scales, 48);
    const pair1 = pair + stride;
    const pair2 = pair1 + stride;
    const pair3 = pair2 + stride;
    d00 = i32x4.extadd_pairwise_i16x8_s(d00);
    d01 = i32x4.extadd_pairwise_i16x8_s(d01);
    d10 = i32x4.extadd_pairwise_i16x8_s(d10);
    d11 = i32x4.extadd_pairwise_i16x8_s(d11);
    d20 = i32x4.extadd_pairwise_i16x8_s(d20);
    d21 = i32x4.extadd_pairwise_i16x8_s(d21);
    d30 = i32x4.extadd_pairwise_i16x8_s(d30);
    d31 = i32x4.extadd_pairwise_i16x8_s(d31);
    let step = i32.load(pair, 12);
    if (step >= 0) {
      const high = v128.load32_splat(pair, 8);
      const codes = scales + (<usize>step << 5);
      d00 = addHigh(d00, high, v128.load(codes, 64));
      d01 = addHigh(d01, high, v128.load(codes, 80));
    }
    step = i32.load(pair1, 12);
    if (step >= 0) {
      const high = v128.load32_splat(pair1, 8);
      const codes = scales + (<usize>step << 5);
      d10 = addHigh(d10, high, v128.load(codes, 64));
      d11 = addHigh(d11, high, v128.load(codes, 80));
    }
    step = i32.load(pair2, 12);
    if (step >= 0) {
      const high = v128.load32_splat(pair2, 8);
      const codes = scales + (<usize>step << 5);
      d20 = addHigh(d20, high, v128.load(codes, 64));
      d21 = addHigh(d21, high, v128.load(codes, 80));
    }
    step = i32.load(pair3, 12);
    if (step >= 0) {
      const high = v128.load32_splat(pair3, 8);
      const codes = scales + (<usize>step << 5);
      d30 = addHigh(d30, high, v128.load(codes, 64));
      d31 = addHigh(d31, high, v128.load(codes, 80));
    }
    sum00 = combine(sum00, d00, scale0, minimum0, pair);
    sum01 = combine(sum01, d01, scale1, minimum1, pair);
    sum10 = combine(sum10, d10, scale0, minimum0, pair1);
    sum11 = combine(sum11, d11, scale1, minimum1, pair1);
    sum20 = combine(sum20, d20, scale0, minimum0, pair2);
    sum21 = combine(sum21, d21, scale1, minimum1, pair2);
    sum30 = combine(sum30, d30, scale0, minimum0, pair3);
    sum31 = combine(sum31, d31, scale1, minimum1, pair3);
    pair += 16;
  }
  storeLanes8(out, valid, sum00, sum01);
  storeLanes8(out1, valid, sum10, sum11);
  storeLanes8(out2, valid, sum20, sum21);
  storeLanes8(out3, valid, sum30, sum31);
}
