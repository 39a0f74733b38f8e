/**
 * Sums of adjacent products, i16x8: lane i = x[2i] * codes[2i] + x[2i+1] * codes[2i+1].
 * x: signed bytes within -127..127. codes: 0..127, which makes the relaxed instruction's result the same on every host
 * (a pair is at most 2 * 127 * 127 = 32258, so nothing saturates). The plain form computes the same integers.
 */
// @ts-ignore: decorator
@inline
export function dotPairs(x: v128, codes: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return i16x8.relaxed_dot_i8x16_i7x16_s(x, codes);
  const odd = i16x8.mul(i16x8.shr_s(x, 8), i16x8.shr_u(codes, 8));
  const even = i16x8.mul(i16x8.shr_s(i16x8.shl(x, 8), 8), v128.and(codes, i16x8.splat(255)));
  return i16x8.add(odd, even);
}

/** i32x4: sum + the four products of each lane's bytes; operands as in dotPairs. */
// @ts-ignore: decorator
@inline
export function dotAdd(x: v128, codes: v128, sum: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return i32x4.relaxed_dot_i8x16_i7x16_add_s(x, codes, sum);
  return i32x4.add(sum, i32x4.extadd_pairwise_i16x8_s(dotPairs(x, codes)));
}
