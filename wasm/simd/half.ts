/** binary16 and small steps of the cache kernels. The TypeScript twin of every formula is src/kernels/cache-math.ts. */

/** Constants as loaded vectors: V8 makes a v128 constant anew at each use, but keeps a loaded value in a register. */
export const MAGIC: usize = memory.data<f32>([12582912, 12582912, 12582912, 12582912], 16);
/** f32 bits of MAGIC: adding 1.5 * 2^23 leaves the nearest integer in the low bits. */
export const MAGIC_BITS: i32 = 0x4b400000;
/** Vectors whose squares sum to less are held as zero; weights below it do not count. */
export const TINY: f32 = 1e-30;
/** Largest integer of a quantised query or weight. */
export const FINE: f32 = 32767;
/** Largest integer of weights that meet cells of 1 to 4 bits. */
export const COARSE: f32 = 127;
/** Largest integer of queries that meet cells of 2 to 4 bits: two pairs of products stay within i16. */
export const COARSE_QUERY: f32 = 63;

/** f32 -> binary16 bits, to nearest even, saturating at 65504. */
export function toF16(x: f32): u32 {
  const bits = reinterpret<u32>(x);
  const sign = (bits >> 16) & 0x8000;
  const a = min<u32>(bits & 0x7fffffff, 0x477fe000);
  if (a < 0x38800000) return sign | (reinterpret<u32>(reinterpret<f32>(a) + 0.5) - 0x3f000000);
  return sign | ((a - 0x38000000 + 0xfff + ((a >> 13) & 1)) >> 13);
}
/** The smallest finite binary16 that is not below x >= 0. */
export function toF16Up(x: f32): u32 {
  const h = toF16(x);
  return h < 0x7bff && fromF16(h) < x ? h + 1 : h;
}
export function fromF16(h: u32): f32 {
  const a = reinterpret<f32>((h & 0x7fff) << 13) * reinterpret<f32>(0x77800000);
  return reinterpret<f32>(reinterpret<u32>(a) | ((h & 0x8000) << 16));
}

/** Four f32 -> binary16 bits in i32 lanes; as toF16. */
// @ts-ignore: decorator
@inline
export function toF16x4(x: v128): v128 {
  const sign = v128.and(i32x4.shr_u(x, 16), i32x4.splat(0x8000));
  const a = i32x4.min_s(v128.and(x, i32x4.splat(0x7fffffff)), i32x4.splat(0x477fe000));
  const small = i32x4.sub(f32x4.add(a, f32x4.splat(0.5)), i32x4.splat(0x3f000000));
  const odd = v128.and(i32x4.shr_u(a, 13), i32x4.splat(1));
  const normal = i32x4.shr_u(i32x4.add(i32x4.add(a, i32x4.splat(0xfff - 0x38000000)), odd), 13);
  return v128.or(sign, v128.bitselect(small, normal, i32x4.lt_s(a, i32x4.splat(0x38800000))));
}
const HALF_MASK: usize = memory.data<u32>([0x8fffe000, 0x8fffe000, 0x8fffe000, 0x8fffe000], 16);
const HALF_UNIT: usize = memory.data<u32>([0x77800000, 0x77800000, 0x77800000, 0x77800000], 16);
/** Four binary16 values -> f32; as fromF16. `mask` and `unit` are HALF_MASK and 2^112, loaded once by the caller. */
// @ts-ignore: decorator
@inline
function loadHalves(at: usize, mask: v128, unit: v128): v128 {
  // Sign-extended, so that the shift leaves the sign in place above three copies that the mask clears.
  return f32x4.mul(v128.and(i32x4.shl(v128.load16x4_s(at), 13), mask), unit);
}
/** Loads 4 floats held as 16 or 32 bits. */
// @ts-ignore: decorator
@inline
export function loadFloats(at: usize, bits: i32): v128 {
  return bits == 32 ? v128.load(at) : loadHalves(at, v128.load(HALF_MASK), v128.load(HALF_UNIT));
}
/** Stores the low halves of 4 i32 lanes. */
// @ts-ignore: decorator
@inline
export function storeHalves(at: usize, h: v128): void {
  v128.store64_lane(at, i16x8.narrow_i32x4_u(h, h), 0);
}

/** (l0 + l1) + (l2 + l3). */
// @ts-ignore: decorator
@inline
export function lanes(v: v128): f32 {
  return (
    f32x4.extract_lane(v, 0) + f32x4.extract_lane(v, 1) + (f32x4.extract_lane(v, 2) + f32x4.extract_lane(v, 3))
  );
}
// @ts-ignore: decorator
@inline
export function largestLane(v: v128): f32 {
  return max(
    max(f32x4.extract_lane(v, 0), f32x4.extract_lane(v, 1)),
    max(f32x4.extract_lane(v, 2), f32x4.extract_lane(v, 3)),
  );
}
// @ts-ignore: decorator
@inline
export function pad4(n: i32): i32 {
  return (n + 3) & ~3;
}
// @ts-ignore: decorator
@inline
export function pad16(n: i32): i32 {
  return (n + 15) & ~15;
}

/** count (a multiple of 4) binary16 values -> f32. */
export function halvesToFloats(from: usize, count: i32, to: usize): void {
  const mask = v128.load(HALF_MASK);
  const unit = v128.load(HALF_UNIT);
  for (; count >= 8; count -= 8) {
    v128.store(to, loadHalves(from, mask, unit));
    v128.store(to, loadHalves(from + 8, mask, unit), 16);
    from += 16;
    to += 32;
  }
  if (count) v128.store(to, loadHalves(from, mask, unit));
}
