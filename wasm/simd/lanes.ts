/** Small steps that several products share. */

/** Bytes of one row of a quantised activation: codes, then (scale, scale * sum of codes) for each group; a multiple of 16. */
// @ts-ignore: decorator
@inline
export function activationStride(k: i32, groupShift: i32): usize {
  return (<usize>k + ((<usize>k >> groupShift) << 3) + 15) & ~15;
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
// @ts-ignore: decorator
@inline
export function storeLanes4(out: usize, valid: i32, value: v128): void {
  if (valid >= 4) v128.store(out, value);
  else {
    v128.store(tail, value);
    memory.copy(out, tail, <usize>valid << 2);
  }
}

const masks: usize = memory.data<u8>(
  [
    15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 48, 48, 48, 48, 48, 48, 48, 48, 48, 48, 48, 48, 48,
    48, 48, 48,
  ],
  16,
);

/** 15 in every byte. Loaded, not a constant: V8 makes a constant anew at each use, in three instructions, but keeps a loaded value. */
// @ts-ignore: decorator
@inline
export function nibbleMask(): v128 {
  return v128.load(masks);
}
/** 0x30 in every byte: where the upper two of six bits belong. */
// @ts-ignore: decorator
@inline
export function upperMask(): v128 {
  return v128.load(masks, 16);
}
