import { dotAdd } from './dot';

/**
 * Peak of the int8 dot in registers: `iterations` times 8 independent chains of 16 products.
 * Returns a sum that depends on all of them, so that nothing is optimised away.
 */
export function dotPeak(iterations: i32): i32 {
  let x = i8x16.splat(<i8>iterations);
  const codes = v128.and(i8x16.splat(<i8>(iterations >> 3)), i8x16.splat(127));
  let s0 = i32x4.splat(0);
  let s1 = i32x4.splat(1);
  let s2 = i32x4.splat(2);
  let s3 = i32x4.splat(3);
  let s4 = i32x4.splat(4);
  let s5 = i32x4.splat(5);
  let s6 = i32x4.splat(6);
  let s7 = i32x4.splat(7);
  for (let i = 0; i < iterations; i++) {
    s0 = dotAdd(x, codes, s0);
    s1 = dotAdd(x, codes, s1);
    s2 = dotAdd(x, codes, s2);
    s3 = dotAdd(x, codes, s3);
    s4 = dotAdd(x, codes, s4);
    s5 = dotAdd(x, codes, s5);
    s6 = dotAdd(x, codes, s6);
    s7 = dotAdd(x, codes, s7);
    // Changes x each time: a compiler must not hoist the products.
    x = v128.xor(x, s0);
  }
  const t = i32x4.add(i32x4.add(i32x4.add(s0, s1), i32x4.add(s2, s3)), i32x4.add(i32x4.add(s4, s5), i32x4.add(s6, s7)));
  return i32x4.extract_lane(t, 0) + i32x4.extract_lane(t, 1) + i32x4.extract_lane(t, 2) + i32x4.extract_lane(t, 3);
}
