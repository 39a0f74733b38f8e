import { COARSE, largestLane, MAGIC, MAGIC_BITS, TINY } from './half';
import { lookUp } from './unpack';

/**
 * Weights of values of 1 to 4 bits, and their mass, of 3 or 4 queries in two passes over the cells. Parameters of a query, 32 bytes: f32 [4] mass of a weight of 1, [12] dither of its mass; u32 [28] address of
 * its weights' dither; receives f32 [8], the step of its weights.
 */

/** What a weight's integer leaves of its lane, and where it lies: the four of a query, four times. */
const LOW: usize = memory.data<u32>([255, 255, 255, 255], 16);
const PICK: usize = memory.data<u8>([0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12], 16);

/** What takes MAGIC's bits from the largest, from sums of 3 and of 4. Read where it is added: V8 makes a constant of that size in three instructions. */
const OFFSETS: usize = memory.data<i32>(
  [
    -MAGIC_BITS, -MAGIC_BITS, -MAGIC_BITS, -MAGIC_BITS,
    -3 * MAGIC_BITS, -3 * MAGIC_BITS, -3 * MAGIC_BITS, -3 * MAGIC_BITS,
    -4 * MAGIC_BITS, -4 * MAGIC_BITS, -4 * MAGIC_BITS, -4 * MAGIC_BITS,
  ],
  16,
);

/** Weights of query i; the first's where there are not so many. */
// @ts-ignore: decorator
@inline
function rowOf(i: i32, few: i32, from: usize, ld: usize): usize {
  return from + (few > i ? ld * <usize>i : 0);
}
// @ts-ignore: decorator
@inline
function units(weight: v128, toMass: v128, dither: v128, magic: v128): v128 {
  return f32x4.add(f32x4.add(f32x4.mul(weight, toMass), dither), magic);
}
// @ts-ignore: decorator
@inline
function join(largest: bool, a: v128, b: v128): v128 {
  return largest ? i32x4.max_s(a, b) : i32x4.add(a, b);
}
/** Stores the step of a query's weights. @returns what makes integers of them */
// @ts-ignore: decorator
@inline
function inverseOf(top: v128, query: usize): v128 {
  const largest = largestLane(top);
  const some = largest >= TINY;
  store<f32>(query, some ? largest / COARSE : 0, 8);
  return f32x4.splat(some ? COARSE / largest : 0);
}
// @ts-ignore: decorator
@inline
function integers(from: usize, scale: v128, inverse: v128, dither: usize, magic: v128): v128 {
  const w = f32x4.mul(f32x4.mul(v128.load(from), scale), inverse);
  return f32x4.add(f32x4.add(w, v128.load(dither)), magic);
}

/** Adds to the cells' u16 what weights are as mass, saturating, or raises them to it. The largest weights times scale go to TOPS. */
// @ts-ignore: decorator
@inline
function tops(nq: i32, mass: bool, most: bool, from: usize, ld: usize, few: i32, scales: usize, params: usize, bytes: usize, to: usize): void {
  const magic = v128.load(MAGIC);
  const from1 = rowOf(1, few, from, ld);
  const from2 = rowOf(2, few, from, ld);
  const from3 = nq > 3 ? rowOf(3, few, from, ld) : from;
  // Queries that are not there add nothing.
  const none = f32x4.splat(0);
  const u0 = v128.load32_splat(params, 4);
  const u1 = few > 1 ? v128.load32_splat(params, 36) : none;
  const u2 = few > 2 ? v128.load32_splat(params, 68) : none;
  const u3 = nq > 3 && few > 3 ? v128.load32_splat(params, 100) : none;
  const d0 = v128.load32_splat(params, 12);
  const d1 = few > 1 ? v128.load32_splat(params, 44) : none;
  const d2 = few > 2 ? v128.load32_splat(params, 76) : none;
  const d3 = nq > 3 && few > 3 ? v128.load32_splat(params, 108) : none;
  const offset = OFFSETS + (most ? 0 : nq > 3 ? 32 : 16);
  let top0 = none;
  let top1 = none;
  let top2 = none;
  let top3 = none;
  let c: usize = 0;
  if (mass)
    for (; c + 16 < bytes; c += 32) {
      let s = v128.load(scales + c);
      let w = v128.load(from + c);
      top0 = f32x4.pmax(top0, f32x4.mul(w, s));
      let sum = units(w, u0, d0, magic);
      w = v128.load(from1 + c);
      top1 = f32x4.pmax(top1, f32x4.mul(w, s));
      sum = join(most, sum, units(w, u1, d1, magic));
      w = v128.load(from2 + c);
      top2 = f32x4.pmax(top2, f32x4.mul(w, s));
      sum = join(most, sum, units(w, u2, d2, magic));
      if (nq > 3) {
        w = v128.load(from3 + c);
        top3 = f32x4.pmax(top3, f32x4.mul(w, s));
        sum = join(most, sum, units(w, u3, d3, magic));
      }
      const low = i32x4.add(sum, v128.load(offset));
      s = v128.load(scales + c, 16);
      w = v128.load(from + c, 16);
      top0 = f32x4.pmax(top0, f32x4.mul(w, s));
      sum = units(w, u0, d0, magic);
      w = v128.load(from1 + c, 16);
      top1 = f32x4.pmax(top1, f32x4.mul(w, s));
      sum = join(most, sum, units(w, u1, d1, magic));
      w = v128.load(from2 + c, 16);
      top2 = f32x4.pmax(top2, f32x4.mul(w, s));
      sum = join(most, sum, units(w, u2, d2, magic));
      if (nq > 3) {
        w = v128.load(from3 + c, 16);
        top3 = f32x4.pmax(top3, f32x4.mul(w, s));
        sum = join(most, sum, units(w, u3, d3, magic));
      }
      sum = i16x8.narrow_i32x4_u(low, i32x4.add(sum, v128.load(offset)));
      const held = v128.load(to);
      v128.store(to, most ? i16x8.max_u(held, sum) : i16x8.add_sat_u(held, sum));
      to += 16;
    }
  for (; c < bytes; c += 16) {
    const s = v128.load(scales + c);
    let w = v128.load(from + c);
    top0 = f32x4.pmax(top0, f32x4.mul(w, s));
    let sum = mass ? units(w, u0, d0, magic) : s;
    w = v128.load(from1 + c);
    top1 = f32x4.pmax(top1, f32x4.mul(w, s));
    if (mass) sum = join(most, sum, units(w, u1, d1, magic));
    w = v128.load(from2 + c);
    top2 = f32x4.pmax(top2, f32x4.mul(w, s));
    if (mass) sum = join(most, sum, units(w, u2, d2, magic));
    if (nq > 3) {
      w = v128.load(from3 + c);
      top3 = f32x4.pmax(top3, f32x4.mul(w, s));
      if (mass) sum = join(most, sum, units(w, u3, d3, magic));
    }
    if (mass) {
      sum = join(most, v128.load16x4_u(to), i32x4.add(sum, v128.load(offset)));
      v128.store64_lane(to, i16x8.narrow_i32x4_u(sum, sum), 0);
      to += 8;
    }
  }
  v128.store(TOPS, top0);
  v128.store(TOPS, top1, 16);
  v128.store(TOPS, top2, 32);
  if (nq > 3) v128.store(TOPS, top3, 48);
}
const TOPS: usize = memory.data(64, 16);

// @ts-ignore: decorator
@inline
function weights(
  nq: i32,
  spread: bool,
  few: i32,
  from: usize,
  ld: usize,
  blocks: i32,
  scales: usize,
  params: usize,
  to: usize,
  massAt: usize,
  most: bool,
): void {
  const bytes = <usize>blocks << 4;
  if (massAt == 0) tops(nq, false, false, from, ld, few, scales, params, bytes, 0);
  else if (most) tops(nq, true, true, from, ld, few, scales, params, bytes, massAt);
  else tops(nq, true, false, from, ld, few, scales, params, bytes, massAt);
  const magic = v128.load(MAGIC);
  const low = v128.load(spread ? PICK : LOW);
  const i0 = inverseOf(v128.load(TOPS), params);
  const i1 = few > 1 ? inverseOf(v128.load(TOPS, 16), params + 32) : i0;
  const i2 = few > 2 ? inverseOf(v128.load(TOPS, 32), params + 64) : i0;
  const i3 = nq > 3 && few > 3 ? inverseOf(v128.load(TOPS, 48), params + 96) : i0;
  const d0 = load<usize>(params, 28);
  const d1 = few > 1 ? load<usize>(params, 60) : d0;
  const d2 = few > 2 ? load<usize>(params, 92) : d0;
  const d3 = nq > 3 && few > 3 ? load<usize>(params, 124) : d0;
  const from1 = rowOf(1, few, from, ld);
  const from2 = rowOf(2, few, from, ld);
  const from3 = nq > 3 ? rowOf(3, few, from, ld) : from;
  for (let c: usize = 0; c < bytes; c += 16) {
    const s = v128.load(scales + c);
    const z0 = integers(from + c, s, i0, d0 + c, magic);
    const z1 = integers(from1 + c, s, i1, d1 + c, magic);
    const z2 = integers(from2 + c, s, i2, d2 + c, magic);
    const z3 = nq > 3 ? integers(from3 + c, s, i3, d3 + c, magic) : z2;
    if (spread) {
      v128.store(to, lookUp(z0, low));
      v128.store(to, lookUp(z1, low), 16);
      v128.store(to, lookUp(z2, low), 32);
      if (nq > 3) v128.store(to, lookUp(z3, low), 48);
      to += 64;
    } else {
      const x01 = i16x8.narrow_i32x4_s(v128.and(z0, low), v128.and(z1, low));
      const x23 = i16x8.narrow_i32x4_s(v128.and(z2, low), v128.and(z3, low));
      v128.store(to, i8x16.narrow_i16x8_u(x01, x23));
      to += 16;
    }
  }
  if (!spread && blocks & 1) v128.store(to, i32x4.splat(0));
}

/**
 * Weights f32 at `from`, `ld` bytes a query, times value scales as integers up to COARSE of the largest, dithered; to: [block][4 queries][4 cells],
 * an odd number of blocks followed by zeros. massAt: u16 [cells], or 0. `few`: queries, 1 to 4; whatever stands for those beyond means nothing.
 */
export function weightsOf(
  few: i32,
  from: usize,
  ld: usize,
  blocks: i32,
  scales: usize,
  params: usize,
  to: usize,
  massAt: usize,
  most: bool,
): void {
  weights(4, false, few, from, ld, blocks, scales, params, to, massAt, most);
}
/** The same of 3 or 4 queries, spread for packed-values.ts: to [block][4 queries] 16 bytes. */
export function spreadWeightsOf3(from: usize, ld: usize, blocks: i32, scales: usize, params: usize, to: usize, massAt: usize, most: bool): void {
  weights(3, true, 3, from, ld, blocks, scales, params, to, massAt, most);
}
export function spreadWeightsOf4(from: usize, ld: usize, blocks: i32, scales: usize, params: usize, to: usize, massAt: usize, most: bool): void {
  weights(4, true, 4, from, ld, blocks, scales, params, to, massAt, most);
}
