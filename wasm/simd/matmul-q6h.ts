import { dotPairs } from './dot';
import { activationStride, gridOrigin, gridStep, highFloats, lowFloats, nibbleMask, storeLanes8, upperMask } from './lanes';

/**
 * out [rows, n] = rotated activation x weight transposed, weight in form q6h (layout: src/kernels/weights.ts).
 * For each group of 64 channels: (dot * scale) * xScale - (scale * zero / 4) * xSum, added to the row's sum in group order.
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
  const stride = activationStride(k, 6);
  const groupBytes: usize = 32 + <usize>(k >> 6) * 400;
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

/** Codes of channels 8v..8v+3 (`low`) or 8v+4..8v+7 (`high`): four bits of one plane, two of the other, already at bits 4 and 5. */
// @ts-ignore: decorator
@inline
function low(four: v128, two: v128, mask: v128, upper: v128): v128 {
  return v128.or(v128.and(four, mask), v128.and(two, upper));
}
// @ts-ignore: decorator
@inline
function high(four: v128, two: v128, mask: v128, upper: v128): v128 {
  return v128.or(v128.and(i16x8.shr_u(four, 4), mask), v128.and(two, upper));
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
  const mask = nibbleMask();
  const upper = upperMask();
  weight += 32;
  let pair = x + <usize>k;
  const end = pair;
  let sum0 = f32x4.splat(0);
  let sum1 = f32x4.splat(0);
  while (x < end) {
    let d0 = i32x4.splat(0);
    let d1 = i32x4.splat(0);
    let four = weight + 16;
    let two = weight + 144;
    for (const stop = x + 64; x < stop; x += 16) {
      let p = v128.load32_splat(x);
      let q = v128.load32_splat(x, 4);
      const a = v128.load(two);
      const b = v128.load(two, 192);
      let c = v128.load(four);
      d0 = dot8(d0, p, q, low(c, i16x8.shl(a, 4), mask, upper), high(c, i16x8.shl(a, 2), mask, upper));
      c = v128.load(four, 192);
      d1 = dot8(d1, p, q, low(c, i16x8.shl(b, 4), mask, upper), high(c, i16x8.shl(b, 2), mask, upper));
      p = v128.load32_splat(x, 8);
      q = v128.load32_splat(x, 12);
      c = v128.load(four, 16);
      d0 = dot8(d0, p, q, low(c, a, mask, upper), high(c, i16x8.shr_u(a, 2), mask, upper));
      c = v128.load(four, 208);
      d1 = dot8(d1, p, q, low(c, b, mask, upper), high(c, i16x8.shr_u(b, 2), mask, upper));
      four += 32;
      two += 16;
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
  const grid0 = v128.load(weight);
  const grid1 = v128.load(weight, 16);
  const mask = nibbleMask();
  const upper = upperMask();
  weight += 32;
  let x1 = x0 + stride;
  let x2 = x1 + stride;
  let x3 = x2 + stride;
  let toPair = <usize>k;
  const end = x0 + toPair;
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
    let four = weight + 16;
    let two = weight + 144;
    for (let v = 0; v < 8; v++) {
      // Odd vectors use the upper half of a byte of the two-bit plane.
      let twoA = v128.load(two);
      let twoB = v128.load(two, 192);
      if (v & 1) {
        twoA = i16x8.shr_u(twoA, 4);
        twoB = i16x8.shr_u(twoB, 4);
        two += 16;
      }
      const a = v128.load(four);
      const b = v128.load(four, 192);
      const aLow = low(a, i16x8.shl(twoA, 4), mask, upper);
      const aHigh = high(a, i16x8.shl(twoA, 2), mask, upper);
      const bLow = low(b, i16x8.shl(twoB, 4), mask, upper);
      const bHigh = high(b, i16x8.shl(twoB, 2), mask, upper);
      let p = v128.load32_splat(x0);
      let q = v128.load32_splat(x0, 4);
      d00 = dot8(d00, p, q, aLow, aHigh);
      d01 = dot8(d01, p, q, bLow, bHigh);
      p = v128.load32_splat(x1);
      q = v128.load32_splat(x1, 4);
      d10 = dot8(d10, p, q, aLow, aHigh);
      d11 = dot8(d11, p, q, bLow, bHigh);
      p = v128.load32_splat(x2);
      q = v128.load32_splat(x2, 4);
      d20 = dot8(d20, p, q, aLow, aHigh);
      d21 = dot8(d21, p, q, bLow, bHigh);
      p = v128.load32_splat(x3);
      q = v128.load32_splat(x3, 4);
      d30 = dot8(d30, p, q, aLow, aHigh);
      d31 = dot8(d31, p, q, bLow, bHigh);
      x0 += 8;
      x1 += 8;
      x2 += 8;
      x3 += 8;
      four += 16;
    }
    const bytes = v128.load(weight);
    const scales = i16x8.extend_low_i8x16_u(bytes);
    const zeros = i16x8.extend_high_i8x16_u(bytes);
    const scale0 = f32x4.mul(f32x4.add(lowFloats(scales), gridOrigin(grid0)), gridStep(grid0));
    const scale1 = f32x4.mul(f32x4.add(highFloats(scales), gridOrigin(grid1)), gridStep(grid1));
    const shift0 = shiftOf(scale0, lowFloats(zeros));
    const shift1 = shiftOf(scale1, highFloats(zeros));
    // x has moved on by 64 bytes, the pairs by 8 a group.
    toPair -= 64;
    const p0 = x0 + toPair;
    const p1 = x1 + toPair;
    const p2 = x2 + toPair;
    const p3 = x3 + toPair;
    sum00 = combine(sum00, d00, scale0, shift0, p0);
    sum01 = combine(sum01, d01, scale1, shift1, p0);
    sum10 = combine(sum10, d10, scale0, shift0, p1);
    sum11 = combine(sum11, d11, scale1, shift1, p1);
    sum20 = combine(sum20, d20, scale0, shift0, p2);
    sum21 = combine(sum21, d21, scale1, shift1, p2);
    sum30 = combine(sum30, d30, scale0, shift0, p3);
    sum31 = combine(sum31, d31, scale1, shift1, p3);
    toPair += 8;
    weight += 400;
  }
  storeLanes8(out, valid, sum00, sum01);
  storeLanes8(out + outStride, valid, sum10, sum11);
  storeLanes8(out + (outStride << 1), valid, sum20, sum21);
  storeLanes8(out + outStride * 3, valid, sum30, sum31);
}
