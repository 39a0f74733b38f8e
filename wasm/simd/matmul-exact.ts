import { halfFloats, nibbleMask, storeLanes4 } from './lanes';

/**
 * Products of float32 activations with weights that decode to exactly what GGUF defines (layouts: src/kernels/weights.ts).
 * An f32 lane is an output row. For each block of 32 channels two partial sums, over even and odd channels, are added, then the block to the row's sum.
 */
export function matmulQ41(x: usize, rows: i32, weight: usize, n: i32, k: i32, out: usize, ldOut: i32): void {
  const groupBytes: usize = <usize>(k >> 5) * 80;
  const ldX = <usize>k << 2;
  const outStride = <usize>ldOut << 2;
  for (let row = 0; row < n; row += 4) {
    const valid = n - row;
    let from = x;
    let to = out;
    let left = rows;
    for (; left >= 4; left -= 4) {
      fourRowsQ41(from, ldX, weight, k, to, outStride, valid);
      from += ldX << 2;
      to += outStride << 2;
    }
    for (; left > 0; left--) {
      oneRowQ41(from, weight, k, to, valid);
      from += ldX;
      to += outStride;
    }
    weight += groupBytes;
    out += 16;
  }
}

export function matmulQ80(x: usize, rows: i32, weight: usize, n: i32, k: i32, out: usize, ldOut: i32): void {
  const groupBytes: usize = <usize>(k >> 5) * 136;
  const ldX = <usize>k << 2;
  const outStride = <usize>ldOut << 2;
  for (let row = 0; row < n; row += 4) {
    const valid = n - row;
    let from = x;
    let to = out;
    let left = rows;
    for (; left >= 4; left -= 4) {
      fourRowsQ80(from, ldX, weight, k, to, outStride, valid);
      from += ldX << 2;
      to += outStride << 2;
    }
    for (; left > 0; left--) {
      oneRowQ80(from, weight, k, to, valid);
      from += ldX;
      to += outStride;
    }
    weight += groupBytes;
    out += 16;
  }
}

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
function add(sum: v128, x: usize, w: v128): v128 {
  return f32x4.add(sum, f32x4.mul(v128.load32_splat(x), w));
}

function oneRowQ41(x: usize, weight: usize, k: i32, out: usize, valid: i32): void {
  const mask = nibbleMask();
  let sum = f32x4.splat(0);
  for (; k > 0; k -= 32) {
    const scale = halfFloats(v128.load16x4_u(weight));
    const minimum = halfFloats(v128.load16x4_u(weight, 8));
    let even = f32x4.splat(0);
    let odd = f32x4.splat(0);
    for (const end = weight + 64; weight < end; weight += 16) {
      let codes = v128.load(weight, 16);
      const high = v128.and(i16x8.shr_u(codes, 4), mask);
      codes = v128.and(codes, mask);
      even = add(even, x, affine(codes, 0, scale, minimum));
      odd = add(odd, x + 4, affine(codes, 1, scale, minimum));
      even = add(even, x + 8, affine(codes, 2, scale, minimum));
      odd = add(odd, x + 12, affine(codes, 3, scale, minimum));
      even = add(even, x + 16, affine(high, 0, scale, minimum));
      odd = add(odd, x + 20, affine(high, 1, scale, minimum));
      even = add(even, x + 24, affine(high, 2, scale, minimum));
      odd = add(odd, x + 28, affine(high, 3, scale, minimum));
      x += 32;
    }
    sum = f32x4.add(sum, f32x4.add(even, odd));
    weight += 16;
  }
  storeLanes4(out, valid, sum);
}

function oneRowQ80(x: usize, weight: usize, k: i32, out: usize, valid: i32): void {
  let sum = f32x4.splat(0);
  for (; k > 0; k -= 32) {
    const scale = halfFloats(v128.load16x4_u(weight));
    let even = f32x4.splat(0);
    let odd = f32x4.splat(0);
    for (const end = weight + 128; weight < end; weight += 16) {
      const codes = v128.load(weight, 8);
      even = add(even, x, f32x4.mul(scale, signed(codes, 0)));
      odd = add(odd, x + 4, f32x4.mul(scale, signed(codes, 1)));
      even = add(even, x + 8, f32x4.mul(scale, signed(codes, 2)));
      odd = add(odd, x + 12, f32x4.mul(scale, signed(codes, 3)));
      x += 16;
    }
    sum = f32x4.add(sum, f32x4.add(even, odd));
    weight += 8;
  }
  storeLanes4(out, valid, sum);
}

/** A block's 32 decoded channels of 4 output rows: each is used by four activation rows. */
const decoded: usize = memory.data(512, 16);

function fourRowsQ41(x0: usize, ldX: usize, weight: usize, k: i32, out: usize, outStride: usize, valid: i32): void {
  const mask = nibbleMask();
  const x1 = x0 + ldX;
  const x2 = x1 + ldX;
  const x3 = x2 + ldX;
  let sum0 = f32x4.splat(0);
  let sum1 = f32x4.splat(0);
  let sum2 = f32x4.splat(0);
  let sum3 = f32x4.splat(0);
  const bytes = <usize>k << 2;
  for (let at: usize = 0; at < bytes; at += 128) {
    const scale = halfFloats(v128.load16x4_u(weight));
    const minimum = halfFloats(v128.load16x4_u(weight, 8));
    for (let to = decoded; to < decoded + 512; to += 128) {
      weight += 16;
      let codes = v128.load(weight);
      const high = v128.and(i16x8.shr_u(codes, 4), mask);
      codes = v128.and(codes, mask);
      v128.store(to, affine(codes, 0, scale, minimum));
      v128.store(to, affine(codes, 1, scale, minimum), 16);
      v128.store(to, affine(codes, 2, scale, minimum), 32);
      v128.store(to, affine(codes, 3, scale, minimum), 48);
      v128.store(to, affine(high, 0, scale, minimum), 64);
      v128.store(to, affine(high, 1, scale, minimum), 80);
      v128.store(to, affine(high, 2, scale, minimum), 96);
      v128.store(to, affine(high, 3, scale, minimum), 112);
    }
    weight += 16;
    sum0 = f32x4.add(sum0, block(x0 + at));
    sum1 = f32x4.add(sum1, block(x1 + at));
    sum2 = f32x4.add(sum2, block(x2 + at));
    sum3 = f32x4.add(sum3, block(x3 + at));
  }
  storeLanes4(out, valid, sum0);
  storeLanes4(out + outStride, valid, sum1);
  storeLanes4(out + (outStride << 1), valid, sum2);
  storeLanes4(out + outStride * 3, valid, sum3);
}

function fourRowsQ80(x0: usize, ldX: usize, weight: usize, k: i32, out: usize, outStride: usize, valid: i32): void {
  const x1 = x0 + ldX;
  const x2 = x1 + ldX;
  const x3 = x2 + ldX;
  let sum0 = f32x4.splat(0);
  let sum1 = f32x4.splat(0);
  let sum2 = f32x4.splat(0);
  let sum3 = f32x4.splat(0);
  const bytes = <usize>k << 2;
  for (let at: usize = 0; at < bytes; at += 128) {
    const scale = halfFloats(v128.load16x4_u(weight));
    weight += 8;
    for (let to = decoded; to < decoded + 512; to += 64) {
      const codes = v128.load(weight);
      v128.store(to, f32x4.mul(scale, signed(codes, 0)));
      v128.store(to, f32x4.mul(scale, signed(codes, 1)), 16);
      v128.store(to, f32x4.mul(scale, signed(codes, 2)), 32);
      v128.store(to, f32x4.mul(scale, signed(codes, 3)), 48);
      weight += 16;
    }
    sum0 = f32x4.add(sum0, block(x0 + at));
    sum1 = f32x4.add(sum1, block(x1 + at));
    sum2 = f32x4.add(sum2, block(x2 + at));
    sum3 = f32x4.add(sum3, block(x3 + at));
  }
  storeLanes4(out, valid, sum0);
  storeLanes4(out + outStride, valid, sum1);
  storeLanes4(out + (outStride << 1), valid, sum2);
  storeLanes4(out + outStride * 3, valid, sum3);
}

/** 32 channels of one activation row against the decoded block. */
// @ts-ignore: decorator
@inline
function block(x: usize): v128 {
  let even = f32x4.splat(0);
  let odd = f32x4.splat(0);
  for (let w = decoded; w < decoded + 512; w += 128) {
    even = add(even, x, v128.load(w));
    odd = add(odd, x + 4, v128.load(w, 16));
    even = add(even, x + 8, v128.load(w, 32));
    odd = add(odd, x + 12, v128.load(w, 48));
    even = add(even, x + 16, v128.load(w, 64));
    odd = add(odd, x + 20, v128.load(w, 80));
    even = add(even, x + 24, v128.load(w, 96));
    odd = add(odd, x + 28, v128.load(w, 112));
    x += 32;
  }
  return f32x4.add(even, odd);
}

/**
 * f32 rows. Four lanes over the channels, lane j sums channels j, j + 4, ...; the dot is (l0 + l1) + (l2 + l3), then the
 * channels past the last multiple of 4 are added in order.
 */
export function matmulF32(x: usize, rows: i32, weight: usize, n: i32, k: i32, out: usize, ldOut: i32): void {
  const ld = <usize>k << 2;
  const outStride = <usize>ldOut << 2;
  const whole = <usize>(k & ~3) << 2;
  for (let row = 0; row < n; row++) {
    let from = x;
    let to = out;
    let left = rows;
    for (; left >= 4; left -= 4) {
      const x1 = from + ld;
      const x2 = x1 + ld;
      const x3 = x2 + ld;
      let s0 = f32x4.splat(0);
      let s1 = f32x4.splat(0);
      let s2 = f32x4.splat(0);
      let s3 = f32x4.splat(0);
      for (let i: usize = 0; i < whole; i += 16) {
        const w = v128.load(weight + i);
        s0 = f32x4.add(s0, f32x4.mul(v128.load(from + i), w));
        s1 = f32x4.add(s1, f32x4.mul(v128.load(x1 + i), w));
        s2 = f32x4.add(s2, f32x4.mul(v128.load(x2 + i), w));
        s3 = f32x4.add(s3, f32x4.mul(v128.load(x3 + i), w));
      }
      f32.store(to, finish(s0, from, weight, whole, ld));
      f32.store(to + outStride, finish(s1, x1, weight, whole, ld));
      f32.store(to + (outStride << 1), finish(s2, x2, weight, whole, ld));
      f32.store(to + outStride * 3, finish(s3, x3, weight, whole, ld));
      from += ld << 2;
      to += outStride << 2;
    }
    for (; left > 0; left--) {
      let s = f32x4.splat(0);
      for (let i: usize = 0; i < whole; i += 16)
        s = f32x4.add(s, f32x4.mul(v128.load(from + i), v128.load(weight + i)));
      f32.store(to, finish(s, from, weight, whole, ld));
      from += ld;
      to += outStride;
    }
    weight += ld;
    out += 4;
  }
}

// @ts-ignore: decorator
@inline
function finish(s: v128, x: usize, weight: usize, from: usize, end: usize): f32 {
  let sum =
    f32x4.extract_lane(s, 0) + f32x4.extract_lane(s, 1) + (f32x4.extract_lane(s, 2) + f32x4.extract_lane(s, 3));
  for (let i = from; i < end; i += 4) sum += f32.load(x + i) * f32.load(weight + i);
  return sum;
}
