import { lanes, largestLane, MAGIC, TINY, toF16 } from './half';
import { scaleCode } from './scales';
import { codeMask, levelTable, lookUp } from './unpack';

/** Sums of adjacent positive levels (twice the midpoints), 8 for each of 1 to 4 bits; 127 never passes. */
const THRESHOLDS: usize = memory.data<u8>([
  127, 127, 127, 127, 127, 127, 127, 127,
  52, 127, 127, 127, 127, 127, 127, 127,
  29, 61, 101, 127, 127, 127, 127, 127,
  12, 24, 36, 49, 64, 82, 107, 127,
]);
/** Twice CODEBOOK_UNIT. */
const UNITS: usize = memory.data<f32>([
  <f32>((2 * 40) / 0.7978846),
  <f32>(2 * 26.4831),
  <f32>(2 * 28.8825),
  <f32>(2 * 22.312),
]);

/**
 * Quantiser U; TypeScript twin: cache-math.ts. x f32 [headDim], zero up to the next multiple of 16; codes u8, likewise padded.
 * `base`: what scale codes are relative to; 8 bits need none.
 * @returns 8 bits: the scale's binary16 bits; else its code
 */
export function quantise(bits: i32, x: usize, headDim: i32, codes: usize, base: f32): u32 {
  const end = x + (<usize>headDim << 2);
  const absolute = i32x4.splat(0x7fffffff);
  // 16 partial sums: a single chain of additions would set the pace.
  let s0 = f32x4.splat(0);
  let s1 = f32x4.splat(0);
  let s2 = f32x4.splat(0);
  let s3 = f32x4.splat(0);
  let top = f32x4.splat(0);
  for (let p = x; p < end; p += 64) {
    const a = v128.load(p);
    const b = v128.load(p, 16);
    const c = v128.load(p, 32);
    const d = v128.load(p, 48);
    s0 = f32x4.add(s0, f32x4.mul(a, a));
    s1 = f32x4.add(s1, f32x4.mul(b, b));
    s2 = f32x4.add(s2, f32x4.mul(c, c));
    s3 = f32x4.add(s3, f32x4.mul(d, d));
    top = f32x4.pmax(top, f32x4.pmax(v128.and(a, absolute), v128.and(b, absolute)));
    top = f32x4.pmax(top, f32x4.pmax(v128.and(c, absolute), v128.and(d, absolute)));
  }
  const xx = fold(s0, s1, s2, s3);
  if (!(xx >= TINY && xx < Infinity)) {
    memory.fill(codes, 0, headDim);
    return 0;
  }
  s0 = f32x4.splat(0);
  s1 = s0;
  s2 = s0;
  s3 = s0;
  const magic = v128.load(MAGIC);
  if (bits == 8) {
    const inverse = f32x4.splat(127 / largestLane(top));
    for (let p = x; p < end; p += 64) {
      const a = integers(p, inverse, magic);
      const b = integers(p + 16, inverse, magic);
      const c = integers(p + 32, inverse, magic);
      const d = integers(p + 48, inverse, magic);
      const levels = i8x16.narrow_i16x8_s(i16x8.narrow_i32x4_s(a, b), i16x8.narrow_i32x4_s(c, d));
      v128.store(codes, levels);
      const low = i16x8.extend_low_i8x16_s(levels);
      const high = i16x8.extend_high_i8x16_s(levels);
      s0 = addProduct(s0, p, i32x4.extend_low_i16x8_s(low));
      s1 = addProduct(s1, p + 16, i32x4.extend_high_i16x8_s(low));
      s2 = addProduct(s2, p + 32, i32x4.extend_low_i16x8_s(high));
      s3 = addProduct(s3, p + 48, i32x4.extend_high_i16x8_s(high));
      codes += 16;
    }
  } else {
    const inverse = f32x4.splat(load<f32>(UNITS + (<usize>(bits - 1) << 2)) / sqrt<f32>(xx / <f32>headDim));
    const table = levelTable(bits);
    const thresholds = THRESHOLDS + (<usize>(bits - 1) << 3);
    const last = codeMask(bits);
    const half = i8x16.shr_u(last, 1);
    const t0 = v128.load8_splat(thresholds);
    const t1 = v128.load8_splat(thresholds, 1);
    const t2 = v128.load8_splat(thresholds, 2);
    const t3 = v128.load8_splat(thresholds, 3);
    const t4 = v128.load8_splat(thresholds, 4);
    const t5 = v128.load8_splat(thresholds, 5);
    const t6 = v128.load8_splat(thresholds, 6);
    for (let p = x; p < end; p += 64) {
      // |x| in half units, rounded up: more than an integer threshold exactly when |x| is.
      const a = i8x16.narrow_i16x8_s(
        i16x8.narrow_i32x4_s(ceilings(p, inverse, absolute, magic), ceilings(p + 16, inverse, absolute, magic)),
        i16x8.narrow_i32x4_s(ceilings(p + 32, inverse, absolute, magic), ceilings(p + 48, inverse, absolute, magic)),
      );
      const positive = i8x16.narrow_i16x8_s(
        i16x8.narrow_i32x4_s(isPositive(p), isPositive(p + 16)),
        i16x8.narrow_i32x4_s(isPositive(p + 32), isPositive(p + 48)),
      );
      // A threshold that is passed subtracts one (its lanes are -1); the code of a positive x is the mirror image.
      let code = i8x16.add(half, i8x16.add(i8x16.gt_s(a, t0), i8x16.gt_s(a, t1)));
      code = i8x16.add(code, i8x16.add(i8x16.gt_s(a, t2), i8x16.gt_s(a, t3)));
      code = i8x16.add(code, i8x16.add(i8x16.gt_s(a, t4), i8x16.gt_s(a, t5)));
      code = i8x16.add(code, i8x16.gt_s(a, t6));
      code = v128.xor(code, v128.and(positive, last));
      v128.store(codes, code);
      const levels = lookUp(table, code);
      const low = i16x8.extend_low_i8x16_s(levels);
      const high = i16x8.extend_high_i8x16_s(levels);
      s0 = addProduct(s0, p, i32x4.extend_low_i16x8_s(low));
      s1 = addProduct(s1, p + 16, i32x4.extend_high_i16x8_s(low));
      s2 = addProduct(s2, p + 32, i32x4.extend_low_i16x8_s(high));
      s3 = addProduct(s3, p + 48, i32x4.extend_high_i16x8_s(high));
      codes += 16;
    }
  }
  const scale = xx / fold(s0, s1, s2, s3);
  return bits == 8 ? toF16(scale) : scaleCode(bits, scale, base);
}

/** Sum of squares of x f32 [headDim], zero up to the next multiple of 16; in quantise's order. */
export function sumOfSquares(x: usize, headDim: i32): f32 {
  let s0 = f32x4.splat(0);
  let s1 = s0;
  let s2 = s0;
  let s3 = s0;
  for (const end = x + (<usize>headDim << 2); x < end; x += 64) {
    const a = v128.load(x);
    const b = v128.load(x, 16);
    const c = v128.load(x, 32);
    const d = v128.load(x, 48);
    s0 = f32x4.add(s0, f32x4.mul(a, a));
    s1 = f32x4.add(s1, f32x4.mul(b, b));
    s2 = f32x4.add(s2, f32x4.mul(c, c));
    s3 = f32x4.add(s3, f32x4.mul(d, d));
  }
  return fold(s0, s1, s2, s3);
}

/** GGML's q8_0 or q4_0 on n channels; TypeScript twin: cache-math.ts. @returns the scale's binary16 bits */
export function quantisePlain(bits: i32, x: usize, n: i32, codes: usize): u32 {
  let top: f32 = 0;
  for (let i = 0; i < n; i++) {
    const value = load<f32>(x + (<usize>i << 2));
    if (abs(value) > abs(top)) top = value;
  }
  const d: f32 = bits == 8 ? abs(top) / 127 : top / -8;
  const inverse: f32 = d == 0 ? 0 : <f32>1 / d;
  for (let i = 0; i < n; i++) {
    const y = load<f32>(x + (<usize>i << 2)) * inverse;
    let code: i32;
    if (bits == 8) code = y < 0 ? -(<i32>floor(<f32>0.5 - y)) : <i32>floor(y + <f32>0.5);
    else code = min(15, <i32>floor(y + <f32>8.5));
    store<u8>(codes + <usize>i, <u8>code);
  }
  return toF16(d);
}

// @ts-ignore: decorator
@inline
function integers(p: usize, inverse: v128, magic: v128): v128 {
  return i32x4.sub(f32x4.add(f32x4.mul(v128.load(p), inverse), magic), magic);
}
// @ts-ignore: decorator
@inline
function ceilings(p: usize, inverse: v128, absolute: v128, magic: v128): v128 {
  const a = f32x4.ceil(f32x4.mul(v128.and(v128.load(p), absolute), inverse));
  return i32x4.sub(f32x4.add(a, magic), magic);
}
// @ts-ignore: decorator
@inline
function isPositive(p: usize): v128 {
  return f32x4.gt(v128.load(p), f32x4.splat(0));
}
// @ts-ignore: decorator
@inline
function addProduct(sum: v128, x: usize, level: v128): v128 {
  return f32x4.add(sum, f32x4.mul(v128.load(x), f32x4.convert_i32x4_s(level)));
}
// @ts-ignore: decorator
@inline
function fold(a: v128, b: v128, c: v128, d: v128): f32 {
  return lanes(f32x4.add(f32x4.add(a, b), f32x4.add(c, d)));
}
