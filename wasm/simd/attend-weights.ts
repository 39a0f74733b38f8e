import { largestMass, ldScores, params, PIECE, scales, scores, tile, weights } from './attend-tile';
import { FINE, largestLane, MAGIC, MAGIC_BITS, pad4, TINY } from './half';

/** Weights of a piece of cells for values that are floats or have more than 4 bits, and their mass (few-weights.ts has the others). */

/** Mass of one piece, as sums of MAGIC's bits and integers, modulo 2^32. */
const MASS: usize = memory.data(640, 16);

/** Weights of n cells, f32 [cell][4 queries]; n need not be a multiple of 4. */
export function floatWeights(cell: i32, n: i32, mass: bool): void {
  const magic = v128.load(MAGIC);
  if (mass) clearMass(<usize>pad4(n) << 2);
  for (let i = 0; i < tile; i++) {
    let from = scores + <usize>i * ldScores + (<usize>cell << 2);
    let to = weights + <usize>(i >> 2) * (PIECE * 16) + (<usize>(i & 3) << 2);
    const toMass = v128.load32_splat(params + (<usize>i << 5), 4);
    const dither = v128.load32_splat(params + (<usize>i << 5), 12);
    for (let c = 0; c < n; c += 4) {
      const w = v128.load(from);
      v128.store32_lane(to, w, 0);
      v128.store32_lane(to, w, 1, 16);
      v128.store32_lane(to, w, 2, 32);
      v128.store32_lane(to, w, 3, 48);
      if (mass) countMass(MASS + (<usize>c << 2), w, toMass, dither, magic);
      from += 16;
      to += 64;
    }
  }
}

/** The largest weight times value scale of a query; its weights count as mass on the way. */
// @ts-ignore: decorator
@inline
function largestWeight(from: usize, bytes: usize, mass: bool, toMass: v128, dither: v128, magic: v128): f32 {
  let top = f32x4.splat(0);
  if (mass) {
    for (let c: usize = 0; c < bytes; c += 16) {
      const w = v128.load(from + c);
      top = f32x4.pmax(top, f32x4.mul(w, v128.load(scales + c)));
      countMass(MASS + c, w, toMass, dither, magic);
    }
  } else {
    for (let c: usize = 0; c < bytes; c += 16)
      top = f32x4.pmax(top, f32x4.mul(v128.load(from + c), v128.load(scales + c)));
  }
  return largestLane(top);
}

/** Weights times value scales as 15-bit integers of the group's largest, [block][4 queries][0, 2, 1, 3]; params: [8] their step. */
export function integerWeights(cell: i32, blocks: i32, mass: bool): void {
  const magic = v128.load(MAGIC);
  const bytes = <usize>blocks << 4;
  if (mass) clearMass(bytes);
  for (let i = 0; i < tile; i++) {
    const from = scores + <usize>i * ldScores + (<usize>cell << 2);
    let to = weights + <usize>(i >> 2) * (PIECE * 8) + (<usize>(i & 3) << 3);
    const toMass = v128.load32_splat(params + (<usize>i << 5), 4);
    const dither = v128.load32_splat(params + (<usize>i << 5), 12);
    const largest = largestWeight(from, bytes, mass, toMass, dither, magic);
    const fine = largest >= TINY;
    const inverse = f32x4.splat(fine ? FINE / largest : 0);
    store<f32>(params + (<usize>i << 5), fine ? largest / FINE : 0, 8);
    for (let c: usize = 0; c < bytes; c += 16) {
      const w = f32x4.mul(f32x4.mul(v128.load(from + c), v128.load(scales + c)), inverse);
      const x = f32x4.add(w, magic);
      v128.store64_lane(to, v128.shuffle<i16>(x, x, 0, 4, 2, 6, 0, 4, 2, 6), 0);
      to += 32;
    }
  }
}

/** Not memory.fill, which calls out of the module. */
// @ts-ignore: decorator
@inline
function clearMass(bytes: usize): void {
  for (let c: usize = 0; c < bytes; c += 16) v128.store(MASS + c, i32x4.splat(0));
}
/** Units of a weight, with MAGIC's bits: summed, or the largest. */
// @ts-ignore: decorator
@inline
function countMass(at: usize, weight: v128, toMass: v128, dither: v128, magic: v128): void {
  const units = f32x4.add(f32x4.add(f32x4.mul(weight, toMass), dither), magic);
  const held = v128.load(at);
  v128.store(at, largestMass ? i32x4.max_s(held, units) : i32x4.add(held, units));
}

/** Adds a piece's mass of the tile's queries to the cells' u16, saturating; or raises them to it. */
export function addMass(to: usize, cells: i32): void {
  const offset = i32x4.splat(largestMass ? -MAGIC_BITS : -tile * MAGIC_BITS);
  for (let c: usize = 0; c < <usize>cells << 1; c += 8) {
    const held = v128.load16x4_u(to + c);
    const units = i32x4.add(v128.load(MASS + (c << 1)), offset);
    const sum = largestMass ? i32x4.max_s(held, units) : i32x4.add(held, units);
    v128.store64_lane(to + c, i16x8.narrow_i32x4_u(sum, sum), 0);
  }
}
