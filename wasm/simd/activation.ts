import { strideI8, strideI8H64 } from './lanes';

/**
 * The integer operands of the products. A row holds its codes i8 [k], then for each group
 *   i8      groups of 32: f32 scale, f32 scale * sum of codes, 4 bytes `high`, i32 `step`
 *   i8h64   groups of 64, rotated: f32 scale, f32 scale * sum of codes
 * scale = largest |x| / 127; code = round(x * (127 / largest)), ties to even. A group below TINY is zero; a NaN or an infinity makes the scale so.
 *
 * Outliers (i8 only): a channel more than OUTLIER times as large as all others of its group would leave these few levels, and such channels
 * cause four fifths of what int8 activations cost (KL 0.0022 -> 0.0006 on SmolLM2-135M). The scale then follows the others, and the channel's
 * code is low + 128 * high: `low` among the codes, `high` at its place in the 4 bytes, which belong to channels 4 * step .. 4 * step + 3. Without
 * an outlier step is -1.
 */
const TINY: f32 = 1e-30;
const OUTLIER: f32 = 2.5;

/** x f32 [rows, k]. */
export function activationI8(x: usize, rows: i32, k: i32, out: usize): void {
  const stride = strideI8(k);
  for (; rows > 0; rows--) {
    let to = out;
    let meta = out + <usize>k;
    for (const end = meta; to < end; to += 32) {
      quantizeGroup(x, to, meta);
      x += 128;
      meta += 16;
    }
    out += stride;
  }
}

function quantizeGroup(x: usize, to: usize, meta: usize): void {
  const peak = peak32(x);
  i64.store(meta, <i64>0xffffffff << 32, 8);
  const peaks = f32x4.splat(peak);
  let others = f32x4.splat(0);
  let where = 0;
  for (let i = 0; i < 8; i++) {
    const v = f32x4.abs(v128.load(x + (<usize>i << 4)));
    const equal = f32x4.eq(v, peaks);
    where |= i32x4.bitmask(equal) << (i << 2);
    others = f32x4.max(others, v128.andnot(v, equal));
  }
  const rest = largest(others);
  const kept = max(rest, peak / <f32>128);
  if (popcnt(where) != 1 || !(peak > OUTLIER * rest) || kept < TINY) {
    quantize32(x, to, meta, peak);
    return;
  }
  const scale = quantize32(x, to, meta, kept);
  const at = <usize>ctz(where);
  const code = rounded(f32.load(x + (at << 2)) * (<f32>127 / kept));
  const high = rounded(<f32>code / <f32>128);
  // quantize32 counted the code as it saturated.
  const sum = codeSum + code - min(max(code, -128), 127);
  i32.store8(to + at, code - (high << 7));
  i32.store8(meta + (at & 3), high, 8);
  i32.store(meta, <i32>(at >> 2), 12);
  f32.store(meta, scale * <f32>sum, 4);
}

const rotated: usize = memory.data(256, 16);

/** x f32 [rows, k], each 64 channels rotated by the orthonormal Hadamard matrix: which leaves no outliers. */
export function activationI8H64(x: usize, rows: i32, k: i32, out: usize): void {
  const stride = strideI8H64(k);
  for (; rows > 0; rows--) {
    let to = out;
    let pair = out + <usize>k;
    for (const end = pair; to < end; to += 64) {
      memory.copy(rotated, x, 256);
      hadamard64(rotated);
      const low = peak32(rotated);
      const high = peak32(rotated + 128);
      // f32.max keeps NaN, unlike a comparison.
      const peak = f32.max(low, high);
      const scale = quantize32(rotated, to, pair, peak);
      const sum = codeSum;
      quantize32(rotated + 128, to + 32, pair, peak);
      f32.store(pair, scale * <f32>(sum + codeSum), 4);
      x += 256;
      pair += 8;
    }
    out += stride;
  }
}

/** Nearest integer, ties to even; 0 for NaN (the scalar conversion would trap). */
// @ts-ignore: decorator
@inline
function rounded(v: f32): i32 {
  return i32x4.extract_lane(i32x4.trunc_sat_f32x4_s(f32x4.splat(nearest<f32>(v))), 0);
}

// @ts-ignore: decorator
@inline
function peak32(x: usize): f32 {
  let peak = f32x4.max(f32x4.abs(v128.load(x)), f32x4.abs(v128.load(x, 16)));
  peak = f32x4.max(peak, f32x4.max(f32x4.abs(v128.load(x, 32)), f32x4.abs(v128.load(x, 48))));
  peak = f32x4.max(peak, f32x4.max(f32x4.abs(v128.load(x, 64)), f32x4.abs(v128.load(x, 80))));
  peak = f32x4.max(peak, f32x4.max(f32x4.abs(v128.load(x, 96)), f32x4.abs(v128.load(x, 112))));
  return largest(peak);
}

// @ts-ignore: decorator
@inline
function largest(v: v128): f32 {
  return f32.max(
    f32.max(f32x4.extract_lane(v, 0), f32x4.extract_lane(v, 1)),
    f32.max(f32x4.extract_lane(v, 2), f32x4.extract_lane(v, 3)),
  );
}

/** Sum of the codes that quantize32 wrote last. */
let codeSum: i32 = 0;

/** Writes 32 codes and the group's pair. @returns the scale */
function quantize32(x: usize, to: usize, pair: usize, peak: f32): f32 {
  const factor = f32x4.splat(peak >= TINY ? <f32>127 / peak : <f32>0);
  const scale: f32 = peak < TINY ? <f32>0 : peak / <f32>127;
  let sum = i16x8.splat(0);
  for (let i: usize = 0; i < 32; i += 16) {
    const a = code4(x, factor);
    const b = code4(x + 16, factor);
    const c = code4(x + 32, factor);
    const d = code4(x + 48, factor);
    const codes = i8x16.narrow_i16x8_s(i16x8.narrow_i32x4_s(a, b), i16x8.narrow_i32x4_s(c, d));
    v128.store(to + i, codes);
    sum = i16x8.add(sum, i16x8.extadd_pairwise_i8x16_s(codes));
    x += 64;
  }
  const wide = i32x4.extadd_pairwise_i16x8_s(sum);
  codeSum =
    i32x4.extract_lane(wide, 0) +
    i32x4.extract_lane(wide, 1) +
    i32x4.extract_lane(wide, 2) +
    i32x4.extract_lane(wide, 3);
  f32.store(pair, scale);
  f32.store(pair, scale * <f32>codeSum, 4);
  return scale;
}

// @ts-ignore: decorator
@inline
function code4(x: usize, factor: v128): v128 {
  return i32x4.trunc_sat_f32x4_s(f32x4.nearest(f32x4.mul(v128.load(x), factor)));
}

/** x f32 [64] times the orthonormal Hadamard matrix of 64, in place, strides 1 to 32 in this order. */
export function hadamard64(x: usize): void {
  for (let i: usize = 0; i < 256; i += 16) {
    const v = v128.load(x + i);
    const a = v128.shuffle<f32>(v, v, 0, 0, 2, 2);
    const b = v128.shuffle<f32>(v, v, 1, 1, 3, 3);
    // Lanes: (a + b, a - b) for each pair, then the same at distance two.
    const one = v128.shuffle<f32>(f32x4.add(a, b), f32x4.sub(a, b), 0, 5, 2, 7);
    const c = v128.shuffle<f32>(one, one, 0, 1, 0, 1);
    const d = v128.shuffle<f32>(one, one, 2, 3, 2, 3);
    v128.store(x + i, v128.shuffle<f32>(f32x4.add(c, d), f32x4.sub(c, d), 0, 1, 6, 7));
  }
  for (let half: usize = 16; half < 256; half <<= 1)
    for (let i: usize = 0; i < 256; i += half << 1)
      for (let j = x + i; j < x + i + half; j += 16) {
        const a = v128.load(j);
        const b = v128.load(j + half);
        v128.store(j, f32x4.add(a, b));
        v128.store(j + half, f32x4.sub(a, b));
      }
  const eighth = f32x4.splat(0.125);
  for (let i: usize = 0; i < 256; i += 16) v128.store(x + i, f32x4.mul(v128.load(x + i), eighth));
}
