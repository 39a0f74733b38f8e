/** Small steps that several products share. */

/** Bytes of one row of an i8 activation: codes, then 16 bytes for each group of 32. */
// @ts-ignore: decorator
@inline
export function strideI8(k: i32): usize {
  return <usize>k + (<usize>k >> 1);
}

/** Bytes of one row of an i8h64 activation: codes, then 8 bytes for each group of 64; a multiple of 16. */
// @ts-ignore: decorator
@inline
export function strideI8H64(k: i32): usize {
  return (<usize>k + (<usize>k >> 3) + 15) & ~15;
}

/** Step of an affine grid word: a bfloat16 in its upper half. */
// @ts-ignore: decorator
@inline
export function gridStep(word: v128): v128 {
  return v128.and(word, i32x4.splat(0xffff0000));
}

/** Origin of an affine grid word, as f32. */
// @ts-ignore: decorator
@inline
export function gridOrigin(word: v128): v128 {
  return f32x4.convert_i32x4_s(i32x4.shr_s(i32x4.shl(word, 16), 16));
}

/** Bytes 0..3 (or 4..7) of a u16x8 as f32. */
// @ts-ignore: decorator
@inline
export function lowFloats(u16: v128): v128 {
  return f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_u(u16));
}
// @ts-ignore: decorator
@inline
export function highFloats(u16: v128): v128 {
  return f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_u(u16));
}

/** binary16 in the lower halves of an i32x4 -> f32, exact for finite values. */
// @ts-ignore: decorator
@inline
export function halfFloats(u32: v128): v128 {
  const sign = i32x4.shl(v128.and(u32, i32x4.splat(0x8000)), 16);
  const magnitude = i32x4.shl(v128.and(u32, i32x4.splat(0x7fff)), 13);
  // Exponents are 112 too small as they stand; the product also normalises binary16's subnormals.
  return v128.or(f32x4.mul(magnitude, i32x4.splat(0x77800000)), sign);
}

const tail: usize = memory.data(32);

/** Stores up to 8 lanes: the last group of rows may hold fewer. */
// @ts-ignore: decorator
@inline
export function storeLanes8(out: usize, valid: i32, low: v128, high: v128): void {
  if (valid >= 8) {
    v128.store(out, low);
    v128.store(out, high, 16);
  } else {
    v128.store(tail, low);
    v128.store(tail, high, 16);
    memory.copy(out, tail, <usize>valid << 2);
  }
}
/*
 * Masks are loaded, not constants: V8 makes a vector constant anew at each use, in three instructions, but keeps a loaded value.
 */
const masks: usize = memory.data<u32>([0x0f0f0f0f, 0x3f3f3f3f, 0x30303030, 0x0c0c0c0c, 0x03030303]);

/** 15 in every byte. */
// @ts-ignore: decorator
@inline
export function nibbleMask(): v128 {
  return v128.load32_splat(masks);
}
/** 63 in every byte. */
// @ts-ignore: decorator
@inline
export function sixMask(): v128 {
  return v128.load32_splat(masks, 4);
}
/** Bits 5 and 4 (j = 0), 3 and 2 (j = 1) or 1 and 0 (j = 2) of every byte. */
// @ts-ignore: decorator
@inline
export function pairMask(j: i32): v128 {
  return v128.load32_splat(masks + 8 + (j << 2));
}

/**
 * A panel: up to PANEL channels of 8 output rows, unpacked once and used by all activation rows. It stays in the first-level cache.
 * The kernels of one instance run one at a time, so they share it.
 */
export const PANEL: i32 = 1024;
export const panel: usize = memory.data(10240, 16);

/** Up to 8 lanes of sums that a former panel left in the output. */
// @ts-ignore: decorator
@inline
export function loadLow(out: usize, valid: i32): v128 {
  if (valid >= 4) return v128.load(out);
  memory.copy(tail, out, <usize>valid << 2);
  return v128.load(tail);
}
// @ts-ignore: decorator
@inline
export function loadHigh(out: usize, valid: i32): v128 {
  if (valid >= 8) return v128.load(out, 16);
  if (valid <= 4) return f32x4.splat(0);
  memory.copy(tail, out + 16, <usize>(valid - 4) << 2);
  return v128.load(tail);
}
