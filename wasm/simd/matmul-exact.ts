import { halfFloats, loadHigh, loadLow, nibbleMask, panel, storeLanes8 } from './lanes';

/**
 * Products of float32 activations with weights that decode to exactly what GGUF defines (layouts: src/kernels/weights.ts).
 * An f32 lane is an output row. A block's 32 products are added in channel order, then the block to the row's sum.
 */

/** Channels of a float panel: [channel][8 output rows] f32, 8 KiB. */
const CHANNELS: i32 = 256;

/** Channel j (0..3) of a vector of unsigned bytes [4 channels][4 rows], as f32. */
// @ts-ignore: decorator
@inline
function unsigned(codes: v128, j: i32): v128 {
  const half = j < 2 ? i16x8.extend_low_i8x16_u(codes) : i16x8.extend_high_i8x16_u(codes);
  return f32x4.convert_i32x4_s(j & 1 ? i32x4.extend_high_i16x8_s(half) : i32x4.extend_low_i16x8_s(half));
}
// @ts-ignore: decorator
@inline
function signed(codes: v128, j: i32): v128 {
  const half = j < 2 ? i16x8.extend_low_i8x16_s(codes) : i16x8.extend_high_i8x16_s(codes);
  return f32x4.convert_i32x4_s(j & 1 ? i32x4.extend_high_i16x8_s(half) : i32x4.extend_low_i16x8_s(half));
}
// @ts-ignore: decorator
@inline
function affine(codes: v128, j: i32, scale: v128, minimum: v128): v128 {
  return f32x4.add(f32x4.mul(scale, unsigned(codes, j)), minimum);
}
// @ts-ignore: decorator
@inline
function scaled(codes: v128, j: i32, scale: v128): v128 {
  return f32x4.mul(scale, signed(codes, j));
}
// @ts-ignore: decorator
@inline
function add(sum: v128, x: usize, w: v128): v128 {
  return f32x4.add(sum, f32x4.mul(v128.load32_splat(x), w));
}

export function matmulQ41(x: usize, rows: i32, weight: usize, n: i32, k: i32, out: usize, ldOut: i32): void {
  const groupBytes: usize = <usize>(k >> 5) * 80;
  const ldX = <usize>k << 2;
  const outStride = <usize>ldOut << 2;
  const quads = rows & ~3;
  for (let row = 0; row < n; row += 8) {
    const valid = n - row;
    // The last group may stand alone: then it is computed twice and stored once.
    const second = valid > 4 ? weight + groupBytes : weight;
    for (let from = 0; quads > 0 && from < k; from += CHANNELS) {
      const channels = min(CHANNELS, k - from);
      unpackQ41(weight + (from >> 5) * 80, channels, panel);
      unpackQ41(second + (from >> 5) * 80, channels, panel + 16);
      quadsOfRows(x + (from << 2), ldX, quads, channels, out, outStride, valid, from > 0);
    }
    for (let r = quads; r < rows; r++)
      oneRowQ41(x + <usize>r * ldX, weight, second, k, out + <usize>r * outStride, valid);
    weight += groupBytes << 1;
    out += 32;
  }
}

export function matmulQ80(x: usize, rows: i32, weight: usize, n: i32, k: i32, out: usize, ldOut: i32): void {
  const groupBytes: usize = <usize>(k >> 5) * 136;
  const ldX = <usize>k << 2;
  const outStride = <usize>ldOut << 2;
  const quads = rows & ~3;
  for (let row = 0; row < n; row += 8) {
    const valid = n - row;
    const second = valid > 4 ? weight + groupBytes : weight;
    for (let from = 0; quads > 0 && from < k; from += CHANNELS) {
      const channels = min(CHANNELS, k - from);
      unpackQ80(weight + (from >> 5) * 136, channels, panel);
      unpackQ80(second + (from >> 5) * 136, channels, panel + 16);
      quadsOfRows(x + (from << 2), ldX, quads, channels, out, outStride, valid, from > 0);
    }
    for (let r = quads; r < rows; r++)
      oneRowQ80(x + <usize>r * ldX, weight, second, k, out + <usize>r * outStride, valid);
    weight += groupBytes << 1;
    out += 32;
  }
}

/** Blocks of one group of 4 rows -> panel[channel][4 lanes of 8]. */
function unpackQ41(weight: usize, channels: i32, to: usize): void {
  const mask = nibbleMask();
  for (; channels > 0; channels -= 32) {
    const scale = halfFloats(v128.load16x4_u(weight));
    const minimum = halfFloats(v128.load16x4_u(weight, 8));
    for (const end = weight + 64; weight < end; weight += 16) {
      let codes = v128.load(weight, 16);
      const high = v128.and(i16x8.shr_u(codes, 4), mask);
      codes = v128.and(codes, mask);
      v128.store(to, affine(codes, 0, scale, minimum));
      v128.store(to, affine(codes, 1, scale, minimum), 32);
      v128.store(to, affine(codes, 2, scale, minimum), 64);
      v128.store(to, affine(codes, 3, scale, minimum), 96);
      v128.store(to, affine(high, 0, scale, minimum), 128);
      v128.store(to, affine(high, 1, scale, minimum), 160);
      v128.store(to, affine(high, 2, scale, minimum), 192);
      v128.store(to, affine(high, 3, scale, minimum), 224);
      to += 256;
    }
    weight += 16;
  }
}

function unpackQ80(weight: usize, channels: i32, to: usize): void {
  for (; channels > 0; channels -= 32) {
    const scale = halfFloats(v128.load16x4_u(weight));
    for (const end = weight + 128; weight < end; weight += 16) {
      const codes = v128.load(weight, 8);
      v128.store(to, scaled(codes, 0, scale));
      v128.store(to, scaled(codes, 1, scale), 32);
      v128.store(to, scaled(codes, 2, scale), 64);
      v128.store(to, scaled(codes, 3, scale), 96);
      to += 128;
    }
    weight += 8;
  }
}

/** Rows four at a time against the panel. `more`: the output holds sums to add to. */
function quadsOfRows(
  x: usize,
  ldX: usize,
  rows: i32,
  channels: i32,
  out: usize,
  outStride: usize,
  valid: i32,
  more: bool,
): void {
  for (; rows > 0; rows -= 4) {
    fourRows(x, ldX, channels, out, outStride, valid, more);
    x += ldX << 2;
    out += outStride << 2;
  }
}

function fourRows(
  x0: usize,
  ldX: usize,
  channels: i32,
  out: usize,
  outStride: usize,
  valid: i32,
  more: bool,
): void {
  let x1 = x0 + ldX;
  let x2 = x1 + ldX;
  let x3 = x2 + ldX;
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
  let w = panel;
  for (const end = w + (<usize>channels << 5); w < end; ) {
    let d00 = f32x4.splat(0);
    let d01 = f32x4.splat(0);
    let d10 = f32x4.splat(0);
    let d11 = f32x4.splat(0);
    let d20 = f32x4.splat(0);
    let d21 = f32x4.splat(0);
    let d30 = f32x4.splat(0);
    let d31 = f32x4.splat(0);
    for (const stop = w + 1024; w < stop; w += 64) {
      let a = v128.load(w);
      let b = v128.load(w, 16);
      let p = v128.load32_splat(x0);
      d00 = f32x4.add(d00, f32x4.mul(p, a));
      d01 = f32x4.add(d01, f32x4.mul(p, b));
      p = v128.load32_splat(x1);
      d10 = f32x4.add(d10, f32x4.mul(p, a));
      d11 = f32x4.add(d11, f32x4.mul(p, b));
      p = v128.load32_splat(x2);
      d20 = f32x4.add(d20, f32x4.mul(p, a));
      d21 = f32x4.add(d21, f32x4.mul(p, b));
      p = v128.load32_splat(x3);
      d30 = f32x4.add(d30, f32x4.mul(p, a));
      d31 = f32x4.add(d31, f32x4.mul(p, b));
      a = v128.load(w, 32);
      b = v128.load(w, 48);
      p = v128.load32_splat(x0, 4);
      d00 = f32x4.add(d00, f32x4.mul(p, a));
      d01 = f32x4.add(d01, f32x4.mul(p, b));
      p = v128.load32_splat(x1, 4);
      d10 = f32x4.add(d10, f32x4.mul(p, a));
      d11 = f32x4.add(d11, f32x4.mul(p, b));
      p = v128.load32_splat(x2, 4);
      d20 = f32x4.add(d20, f32x4.mul(p, a));
      d21 = f32x4.add(d21, f32x4.mul(p, b));
      p = v128.load32_splat(x3, 4);
      d30 = f32x4.add(d30, f32x4.mul(p, a));
      d31 = f32x4.add(d31, f32x4.mul(p, b));
      x0 += 8;
      x1 += 8;
      x2 += 8;
      x3 += 8;
    }
    sum00 = f32x4.add(sum00, d00);
    sum01 = f32x4.add(sum01, d01);
    sum10 = f32x4.add(sum10, d10);
    sum11 = f32x4.add(sum11, d11);
    sum20 = f32x4.add(sum20, d20);
    sum21 = f32x4.add(sum21, d21);
    sum30 = f32x4.add(sum30, d30);
    sum31 = f32x4.add(sum31, d31);
  }
  storeLanes8(out, valid, sum00, sum01);
  storeLanes8(out1, valid, sum10, sum11);
  storeLanes8(out2, valid, sum20, sum21);
  storeLanes8(out3, valid, sum30, sum31);
}

/** Two groups of 4 output rows, so that two chains of additions overlap. */
function oneRowQ41(x: usize, w0: usize, w1: usize, k: i32, out: usize, valid: i32): void {
  const mask = nibbleMask();
  let sum0 = f32x4.splat(0);
  let sum1 = f32x4.splat(0);
  for (; k > 0; k -= 32) {
    const scale0 = halfFloats(v128.load16x4_u(w0));
    const minimum0 = halfFloats(v128.load16x4_u(w0, 8));
    const scale1 = halfFloats(v128.load16x4_u(w1));
    const minimum1 = halfFloats(v128.load16x4_u(w1, 8));
    let d0 = f32x4.splat(0);
    let d1 = f32x4.splat(0);
    for (const end = x + 128; x < end; x += 32) {
      let a = v128.load(w0, 16);
      let b = v128.load(w1, 16);
      const aHigh = v128.and(i16x8.shr_u(a, 4), mask);
      const bHigh = v128.and(i16x8.shr_u(b, 4), mask);
      a = v128.and(a, mask);
      b = v128.and(b, mask);
      d0 = add(d0, x, affine(a, 0, scale0, minimum0));
      d1 = add(d1, x, affine(b, 0, scale1, minimum1));
      d0 = add(d0, x + 4, affine(a, 1, scale0, minimum0));
      d1 = add(d1, x + 4, affine(b, 1, scale1, minimum1));
      d0 = add(d0, x + 8, affine(a, 2, scale0, minimum0));
      d1 = add(d1, x + 8, affine(b, 2, scale1, minimum1));
      d0 = add(d0, x + 12, affine(a, 3, scale0, minimum0));
      d1 = add(d1, x + 12, affine(b, 3, scale1, minimum1));
      d0 = add(d0, x + 16, affine(aHigh, 0, scale0, minimum0));
      d1 = add(d1, x + 16, affine(bHigh, 0, scale1, minimum1));
      d0 = add(d0, x + 20, affine(aHigh, 1, scale0, minimum0));
      d1 = add(d1, x + 20, affine(bHigh, 1, scale1, minimum1));
      d0 = add(d0, x + 24, affine(aHigh, 2, scale0, minimum0));
      d1 = add(d1, x + 24, affine(bHigh, 2, scale1, minimum1));
      d0 = add(d0, x + 28, affine(aHigh, 3, scale0, minimum0));
      d1 = add(d1, x + 28, affine(bHigh, 3, scale1, minimum1));
      w0 += 16;
      w1 += 16;
    }
    sum0 = f32x4.add(sum0, d0);
    sum1 = f32x4.add(sum1, d1);
    w0 += 16;
    w1 += 16;
  }
  storeLanes8(out, valid, sum0, sum1);
}

function oneRowQ80(x: usize, w0: usize, w1: usize, k: i32, out: usize, valid: i32): void {
  let sum0 = f32x4.splat(0);
  let sum1 = f32x4.splat(0);
  for (; k > 0; k -= 32) {
    const scale0 = halfFloats(v128.load16x4_u(w0));
    const scale1 = halfFloats(v128.load16x4_u(w1));
    let d0 = f32x4.splat(0);
    let d1 = f32x4.splat(0);
    for (const end = x + 128; x < end; x += 16) {
      const a = v128.load(w0, 8);
      const b = v128.load(w1, 8);
      d0 = add(d0, x, scaled(a, 0, scale0));
      d1 = add(d1, x, scaled(b, 0, scale1));
      d0 = add(d0, x + 4, scaled(a, 1, scale0));
      d1 = add(d1, x + 4, scaled(b, 1, scale1));
      d0 = add(d0, x + 8, scaled(a, 2, scale0));
      d1 = add(d1, x + 8, scaled(b, 2, scale1));
      d0 = add(d0, x + 12, scaled(a, 3, scale0));
      d1 = add(d1, x + 12, scaled(b, 3, scale1));
      w0 += 16;
      w1 += 16;
    }
    sum0 = f32x4.add(sum0, d0);
    sum1 = f32x4.add(sum1, d1);
    w0 += 8;
    w1 += 8;
  }
  storeLanes8(out, valid, sum0, sum1);
}
