import { dotAdd, dotPairs } from './dot';
import { highFloats, lowFloats, nibbleMask } from './lanes';

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

/**
 * Reads `blocks` blocks of 144 bytes as 4-bit codes with byte scales and minima, as a matrix-vector product would (256 products a block),
 * whatever the bytes are: every value is a small integer in f32, so no block can slow the arithmetic down.
 */
export function q4Stream(from: usize, blocks: i32): f32 {
  const mask = nibbleMask();
  const x = i8x16.splat(3);
  const xScale = f32x4.splat(<f32>blocks);
  let sum0 = f32x4.splat(0);
  let sum1 = f32x4.splat(0);
  for (; blocks > 0; blocks--) {
    const bytes = v128.load(from);
    const scales = i16x8.extend_low_i8x16_u(bytes);
    const minima = i16x8.extend_high_i8x16_u(bytes);
    let d0 = i16x8.splat(0);
    let d1 = i16x8.splat(0);
    for (let at = from + 16, end = from + 80; at < end; at += 32) {
      d0 = i16x8.add(d0, pair(x, v128.load(at), mask));
      d1 = i16x8.add(d1, pair(x, v128.load(at, 64), mask));
      d0 = i16x8.add(d0, pair(x, v128.load(at, 16), mask));
      d1 = i16x8.add(d1, pair(x, v128.load(at, 80), mask));
    }
    sum0 = f32x4.add(sum0, f32x4.mul(f32x4.mul(widen(d0), lowFloats(scales)), xScale));
    sum1 = f32x4.add(sum1, f32x4.mul(f32x4.mul(widen(d1), highFloats(scales)), xScale));
    sum0 = f32x4.add(sum0, f32x4.mul(lowFloats(minima), xScale));
    sum1 = f32x4.add(sum1, f32x4.mul(highFloats(minima), xScale));
    from += 144;
  }
  const t = f32x4.add(sum0, sum1);
  return f32x4.extract_lane(t, 0) + f32x4.extract_lane(t, 1) + f32x4.extract_lane(t, 2) + f32x4.extract_lane(t, 3);
}

// @ts-ignore: decorator
@inline
function pair(x: v128, codes: v128, mask: v128): v128 {
  return i16x8.add(dotPairs(x, v128.and(codes, mask)), dotPairs(x, v128.and(i16x8.shr_u(codes, 4), mask)));
}
// @ts-ignore: decorator
@inline
function widen(pairs: v128): v128 {
  return f32x4.convert_i32x4_s(i32x4.extadd_pairwise_i16x8_s(pairs));
}
