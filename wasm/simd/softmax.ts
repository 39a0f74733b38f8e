import { lanes, largestLane, MAGIC } from './half';

/** Least exponent, then the coefficients of r^5 to r and 1. The TypeScript twin is src/kernels/cache-math.ts. */
const POWER: usize = memory.data<f32>(
  [
    -125, -125, -125, -125,
    1.326472731e-3, 1.326472731e-3, 1.326472731e-3, 1.326472731e-3,
    9.671512991e-3, 9.671512991e-3, 9.671512991e-3, 9.671512991e-3,
    5.550733581e-2, 5.550733581e-2, 5.550733581e-2, 5.550733581e-2,
    2.402224243e-1, 2.402224243e-1, 2.402224243e-1, 2.402224243e-1,
    6.931470037e-1, 6.931470037e-1, 6.931470037e-1, 6.931470037e-1,
    1, 1, 1, 1,
  ],
  16,
);

/**
 * Replaces `cells` scores (a multiple of 4; invisible ones are -Infinity) by 2^(score - largest), which is 0 below 2^-125.
 * @returns their sum: by lanes over blocks of 128 cells, block sums by lanes, then the lanes.
 * 2^x: x = k + r, a minimax polynomial in r; 2e-7 relative.
 */
export function powers(scores: usize, cells: i32): f32 {
  const end = scores + (<usize>cells << 2);
  let top = f32x4.splat(-Infinity);
  for (let p = scores; p < end; p += 16) top = f32x4.pmax(top, v128.load(p));
  const largest = f32x4.splat(largestLane(top));
  const magic = v128.load(MAGIC);
  let total = f32x4.splat(0);
  for (let p = scores; p < end; ) {
    const blockEnd = min(p + 512, end);
    let part = f32x4.splat(0);
    // Four vectors in step, so that none waits for its own last result; constants are loaded on the way, since they outnumber the registers.
    for (; p + 48 < blockEnd; p += 64) {
      const x0 = f32x4.sub(v128.load(p), largest);
      const x1 = f32x4.sub(v128.load(p, 16), largest);
      const x2 = f32x4.sub(v128.load(p, 32), largest);
      const x3 = f32x4.sub(v128.load(p, 48), largest);
      const m0 = f32x4.add(x0, magic);
      const m1 = f32x4.add(x1, magic);
      const m2 = f32x4.add(x2, magic);
      const m3 = f32x4.add(x3, magic);
      const r0 = f32x4.sub(x0, f32x4.sub(m0, magic));
      const r1 = f32x4.sub(x1, f32x4.sub(m1, magic));
      const r2 = f32x4.sub(x2, f32x4.sub(m2, magic));
      const r3 = f32x4.sub(x3, f32x4.sub(m3, magic));
      const s0 = f32x4.mul(r0, r0);
      const s1 = f32x4.mul(r1, r1);
      const s2 = f32x4.mul(r2, r2);
      const s3 = f32x4.mul(r3, r3);
      let c = v128.load(POWER, 16);
      let y0 = f32x4.mul(r0, c);
      let y1 = f32x4.mul(r1, c);
      let y2 = f32x4.mul(r2, c);
      let y3 = f32x4.mul(r3, c);
      c = v128.load(POWER, 32);
      y0 = f32x4.mul(f32x4.add(y0, c), s0);
      y1 = f32x4.mul(f32x4.add(y1, c), s1);
      y2 = f32x4.mul(f32x4.add(y2, c), s2);
      y3 = f32x4.mul(f32x4.add(y3, c), s3);
      c = v128.load(POWER, 48);
      let z0 = f32x4.mul(r0, c);
      let z1 = f32x4.mul(r1, c);
      let z2 = f32x4.mul(r2, c);
      let z3 = f32x4.mul(r3, c);
      c = v128.load(POWER, 64);
      y0 = f32x4.mul(f32x4.add(y0, f32x4.add(z0, c)), s0);
      y1 = f32x4.mul(f32x4.add(y1, f32x4.add(z1, c)), s1);
      y2 = f32x4.mul(f32x4.add(y2, f32x4.add(z2, c)), s2);
      y3 = f32x4.mul(f32x4.add(y3, f32x4.add(z3, c)), s3);
      c = v128.load(POWER, 80);
      z0 = f32x4.mul(r0, c);
      z1 = f32x4.mul(r1, c);
      z2 = f32x4.mul(r2, c);
      z3 = f32x4.mul(r3, c);
      c = v128.load(POWER, 96);
      y0 = f32x4.add(y0, f32x4.add(z0, c));
      y1 = f32x4.add(y1, f32x4.add(z1, c));
      y2 = f32x4.add(y2, f32x4.add(z2, c));
      y3 = f32x4.add(y3, f32x4.add(z3, c));
      c = v128.load(POWER);
      // The low bits of m hold k, and nothing else is left of it behind the shift.
      y0 = v128.and(i32x4.add(y0, i32x4.shl(m0, 23)), f32x4.ge(x0, c));
      y1 = v128.and(i32x4.add(y1, i32x4.shl(m1, 23)), f32x4.ge(x1, c));
      y2 = v128.and(i32x4.add(y2, i32x4.shl(m2, 23)), f32x4.ge(x2, c));
      y3 = v128.and(i32x4.add(y3, i32x4.shl(m3, 23)), f32x4.ge(x3, c));
      v128.store(p, y0);
      v128.store(p, y1, 16);
      v128.store(p, y2, 32);
      v128.store(p, y3, 48);
      part = f32x4.add(part, y0);
      part = f32x4.add(part, y1);
      part = f32x4.add(part, y2);
      part = f32x4.add(part, y3);
    }
    for (; p < blockEnd; p += 16) {
      const x0 = f32x4.sub(v128.load(p), largest);
      const m0 = f32x4.add(x0, magic);
      const r0 = f32x4.sub(x0, f32x4.sub(m0, magic));
      const s0 = f32x4.mul(r0, r0);
      let c = v128.load(POWER, 16);
      let y0 = f32x4.mul(r0, c);
      c = v128.load(POWER, 32);
      y0 = f32x4.mul(f32x4.add(y0, c), s0);
      c = v128.load(POWER, 48);
      let z0 = f32x4.mul(r0, c);
      c = v128.load(POWER, 64);
      y0 = f32x4.mul(f32x4.add(y0, f32x4.add(z0, c)), s0);
      c = v128.load(POWER, 80);
      z0 = f32x4.mul(r0, c);
      c = v128.load(POWER, 96);
      y0 = f32x4.add(y0, f32x4.add(z0, c));
      c = v128.load(POWER);
      y0 = v128.and(i32x4.add(y0, i32x4.shl(m0, 23)), f32x4.ge(x0, c));
      v128.store(p, y0);
      part = f32x4.add(part, y0);
    }
    total = f32x4.add(total, part);
  }
  return lanes(total);
}
