import { levelTable, lookUp } from './unpack';

/** One cell of a half block as floats, 64 channels at a time; layout: src/kernels/layout.ts. */

/** In lane j the bit that holds chunk j, or 4 + j, of the third bit's plane. */
const THIRD: usize = memory.data<u32>(
  [0x01010101, 0x02020202, 0x04040404, 0x08080808, 0x10101010, 0x20202020, 0x40404040, 0x80808080],
  16,
);

/** to f32 [headDim] = scale * level of the cell's codes of 2, 3, 4 or 8 bits. headDim: a multiple of 64. */
export function cellToFloats(
  keys: bool,
  bits: i32,
  block: usize,
  token: i32,
  headDim: i32,
  scale: f32,
  to: usize,
): void {
  const by = f32x4.splat(scale);
  const end = to + (<usize>headDim << 2);
  if (bits == 8) {
    for (; to < end; to += 64) {
      put(to, by, four(keys, block, token));
      block += 64;
    }
    return;
  }
  const table = levelTable(bits);
  if (bits == 4) {
    const mask = i8x16.splat(15);
    for (; to < end; to += 128) {
      const x = four(keys, block, token);
      const low = v128.and(x, mask);
      const high = i8x16.shr_u(x, 4);
      put(to, by, lookUp(table, v128.shuffle<i32>(low, high, 0, 4, 1, 5)));
      put(to + 64, by, lookUp(table, v128.shuffle<i32>(low, high, 2, 6, 3, 7)));
      block += 64;
    }
    return;
  }
  const mask = i8x16.splat(3);
  // The third bits, of which a vector serves 32 channels, lie behind all pairs of bits.
  let third = bits == 3 ? block + <usize>headDim : 0;
  for (; to < end; to += 256) {
    const x = four(keys, block, token);
    const q0 = v128.and(x, mask);
    const q1 = v128.and(i16x8.shr_u(x, 2), mask);
    const q2 = v128.and(i16x8.shr_u(x, 4), mask);
    const q3 = v128.and(i16x8.shr_u(x, 6), mask);
    const a = v128.shuffle<i32>(q0, q1, 0, 4, 1, 5);
    const b = v128.shuffle<i32>(q2, q3, 0, 4, 1, 5);
    const c = v128.shuffle<i32>(q0, q1, 2, 6, 3, 7);
    const d = v128.shuffle<i32>(q2, q3, 2, 6, 3, 7);
    let e = v128.shuffle<i64>(a, b, 0, 2);
    let f = v128.shuffle<i64>(a, b, 1, 3);
    let g = v128.shuffle<i64>(c, d, 0, 2);
    let h = v128.shuffle<i64>(c, d, 1, 3);
    if (third) {
      const early = i32x4.splat(one(keys, third, token));
      const late = i32x4.splat(one(keys, third + 16, token));
      e = v128.or(e, thirdBits(early, 0));
      f = v128.or(f, thirdBits(early, 16));
      g = v128.or(g, thirdBits(late, 0));
      h = v128.or(h, thirdBits(late, 16));
      third += 32;
    }
    put(to, by, lookUp(table, e));
    put(to + 64, by, lookUp(table, f));
    put(to + 128, by, lookUp(table, g));
    put(to + 192, by, lookUp(table, h));
    block += 64;
  }
}

/** A token's 4 bytes in each of 4 vectors: 16 bytes, vector by vector. */
// @ts-ignore: decorator
@inline
function four(keys: bool, from: usize, token: i32): v128 {
  if (keys) {
    from += <usize>token << 2;
    let x = v128.load32_zero(from);
    x = v128.load32_lane(from, x, 1, 16);
    x = v128.load32_lane(from, x, 2, 32);
    return v128.load32_lane(from, x, 3, 48);
  }
  const up = token << 3;
  const byte = i32x4.splat(255);
  const a = v128.and(i32x4.shr_u(v128.load(from), up), byte);
  const b = v128.and(i32x4.shr_u(v128.load(from, 16), up), byte);
  const c = v128.and(i32x4.shr_u(v128.load(from, 32), up), byte);
  const d = v128.and(i32x4.shr_u(v128.load(from, 48), up), byte);
  return i8x16.narrow_i16x8_u(i16x8.narrow_i32x4_s(a, b), i16x8.narrow_i32x4_s(c, d));
}

/** A token's 4 bytes in one vector. */
// @ts-ignore: decorator
@inline
function one(keys: bool, from: usize, token: i32): u32 {
  if (keys) return load<u32>(from + (<usize>token << 2));
  from += <usize>token;
  return (
    <u32>load<u8>(from) |
    (<u32>load<u8>(from, 4) << 8) |
    (<u32>load<u8>(from, 8) << 16) |
    (<u32>load<u8>(from, 12) << 24)
  );
}

/** 4 in each byte whose code has its third bit set. */
// @ts-ignore: decorator
@inline
function thirdBits(x: v128, at: usize): v128 {
  const bits = v128.load(THIRD + at);
  return v128.and(i8x16.eq(v128.and(x, bits), bits), i8x16.splat(4));
}

/** to f32 [16] = by * levels. */
// @ts-ignore: decorator
@inline
function put(to: usize, by: v128, levels: v128): void {
  const low = i16x8.extend_low_i8x16_s(levels);
  const high = i16x8.extend_high_i8x16_s(levels);
  v128.store(to, f32x4.mul(by, f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(low))));
  v128.store(to, f32x4.mul(by, f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(low))), 16);
  v128.store(to, f32x4.mul(by, f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(high))), 32);
  v128.store(to, f32x4.mul(by, f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(high))), 48);
}
