import { dotPairs } from './dot';
import { activationStride, gridOrigin, gridStep, highFloats, lowFloats, nibbleMask, storeLanes8 } from './lanes';

/**
 * out [rows, n] = activation x weight transposed, weight in form q4r (layout: src/kernels/weights.ts).
 * For each block of 32 channels: (dot * scale) * xScale + minimum * xSum, added to the row's sum in block order.
 * A block's dot: codes <= 15, so eight pair sums of at most 3810 fit 16 bits (30480) and are widened once.
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
  const stride = activationStride(k, 5);
  const groupBytes: usize = 64 + <usize>(k >> 5) * 144;
  const outStride = <usize>ldOut << 2;
  for (let row = 0; row < n; row += 8) {
    const valid = n - row;
    let x = activation;
    let to = out;
    let left = rows;
    for (; left >= 4; left -= 4) {
      fourRows(x, stride, weight, k, to, outStride, valid);
      x += stride << 2;
      to += outStride << 2;
    }
    for (; left > 0; left--) {
      oneRow(x, weight, k, to, valid);
      x += stride;
      to += outStride;
    }
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
  return f32x4.convert_i32x4_s(i32x4.extadd_pairwise_i16x8_s(sum));
}

// @ts-ignore: decorator
@inline
function combine(sum: v128, dot: v128, scale: v128, minimum: v128, pair: usize): v128 {
  const product = f32x4.mul(f32x4.mul(dot, scale), v128.load32_splat(pair));
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
    const dot0 = dot8(x, v128.load(weight, 16), v128.load(weight, 32), v128.load(weight, 48), v128.load(weight, 64), mask);
    const dot1 = dot8(x, v128.load(weight, 80), v128.load(weight, 96), v128.load(weight, 112), v128.load(weight, 128), mask);
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
    pair += 8;
  }
  storeLanes8(out, valid, sum0, sum1);
}

/** Four activation rows at once: each code is unpacked once for all of them. */
function fourRows(
  x0: usize,
  stride: usize,
  weight: usize,
  k: i32,
  out: usize,
  outStride: usize,
  valid: i32,
): void {
  const scaleGrid0 = v128.load(weight);
  const scaleGrid1 = v128.load(weight, 16);
  const minimumGrid0 = v128.load(weight, 32);
  const minimumGrid1 = v128.load(weight, 48);
  weight += 64;
  let x1 = x0 + stride;
  let x2 = x1 + stride;
  let x3 = x2 + stride;
  let toPair = <usize>k;
  const end = x0 + toPair;
  const mask = nibbleMask();
  let sum00 = f32x4.splat(0);
  let sum01 = f32x4.splat(0);
  let sum10 = f32x4.splat(0);
  let sum11 = f32x4.splat(0);
  let sum20 = f32x4.splat(0);
  let sum21 = f32x4.splat(0);
  let sum30 = f32x4.splat(0);
  let sum31 = f32x4.splat(0);
  while (x0 < end) {
    let d00 = i32x4.splat(0);
    let d01 = i32x4.splat(0);
    let d10 = i32x4.splat(0);
    let d11 = i32x4.splat(0);
    let d20 = i32x4.splat(0);
    let d21 = i32x4.splat(0);
    let d30 = i32x4.splat(0);
    let d31 = i32x4.splat(0);
    for (let v = 0; v < 4; v++) {
      const a = v128.load(weight, 16);
      const b = v128.load(weight, 80);
      const aLow = low(a, mask);
      const aHigh = high(a, mask);
      const bLow = low(b, mask);
      const bHigh = high(b, mask);
      let p = v128.load32_splat(x0);
      let q = v128.load32_splat(x0, 4);
      d00 = i16x8.add(i16x8.add(d00, dotPairs(p, aLow)), dotPairs(q, aHigh));
      d01 = i16x8.add(i16x8.add(d01, dotPairs(p, bLow)), dotPairs(q, bHigh));
      p = v128.load32_splat(x1);
      q = v128.load32_splat(x1, 4);
      d10 = i16x8.add(i16x8.add(d10, dotPairs(p, aLow)), dotPairs(q, aHigh));
      d11 = i16x8.add(i16x8.add(d11, dotPairs(p, bLow)), dotPairs(q, bHigh));
      p = v128.load32_splat(x2);
      q = v128.load32_splat(x2, 4);
      d20 = i16x8.add(i16x8.add(d20, dotPairs(p, aLow)), dotPairs(q, aHigh));
      d21 = i16x8.add(i16x8.add(d21, dotPairs(p, bLow)), dotPairs(q, bHigh));
      p = v128.load32_splat(x3);
      q = v128.load32_splat(x3, 4);
      d30 = i16x8.add(i16x8.add(d30, dotPairs(p, aLow)), dotPairs(q, aHigh));
      d31 = i16x8.add(i16x8.add(d31, dotPairs(p, bLow)), dotPairs(q, bHigh));
      x0 += 8;
      x1 += 8;
      x2 += 8;
      x3 += 8;
      weight += 16;
    }
    const bytes = v128.load(weight - 64);
    const scales = i16x8.extend_low_i8x16_u(bytes);
    const minima = i16x8.extend_high_i8x16_u(bytes);
    const scale0 = f32x4.mul(f32x4.add(lowFloats(scales), gridOrigin(scaleGrid0)), gridStep(scaleGrid0));
    const scale1 = f32x4.mul(f32x4.add(highFloats(scales), gridOrigin(scaleGrid1)), gridStep(scaleGrid1));
    const minimum0 = f32x4.mul(f32x4.add(lowFloats(minima), gridOrigin(minimumGrid0)), gridStep(minimumGrid0));
    const minimum1 = f32x4.mul(f32x4.add(highFloats(minima), gridOrigin(minimumGrid1)), gridStep(minimumGrid1));
    // x has moved on by 32 bytes, the pairs by 8 a block.
    toPair -= 32;
    const p0 = x0 + toPair;
    const p1 = x1 + toPair;
    const p2 = x2 + toPair;
    const p3 = x3 + toPair;
    sum00 = combine(sum00, widen(d00), scale0, minimum0, p0);
    sum01 = combine(sum01, widen(d01), scale1, minimum1, p0);
    sum10 = combine(sum10, widen(d10), scale0, minimum0, p1);
    sum11 = combine(sum11, widen(d11), scale1, minimum1, p1);
    sum20 = combine(sum20, widen(d20), scale0, minimum0, p2);
    sum21 = combine(sum21, widen(d21), scale1, minimum1, p2);
    sum30 = combine(sum30, widen(d30), scale0, minimum0, p3);
    sum31 = combine(sum31, widen(d31), scale1, minimum1, p3);
    toPair += 8;
    weight += 80;
  }
  storeLanes8(out, valid, sum00, sum01);
  storeLanes8(out + outStride, valid, sum10, sum11);
  storeLanes8(out + (outStride << 1), valid, sum20, sum21);
  storeLanes8(out + outStride * 3, valid, sum30, sum31);
}

// @ts-ignore: decorator
@inline
function widen(pairs: v128): v128 {
  return f32x4.convert_i32x4_s(i32x4.extadd_pairwise_i16x8_s(pairs));
}
