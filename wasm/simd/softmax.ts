import { lanes, largestLane, MAGIC } from './half';

const EXP: usize = memory.data<f32>(
  [
    -87, -87, -87, -87,
    1.4426950408889634, 1.4426950408889634, 1.4426950408889634, 1.4426950408889634,
    0.693359375, 0.693359375, 0.693359375, 0.693359375,
    -2.12194440e-4, -2.12194440e-4, -2.12194440e-4, -2.12194440e-4,
    1.9875691500e-4, 1.9875691500e-4, 1.9875691500e-4, 1.9875691500e-4,
    1.3981999507e-3, 1.3981999507e-3, 1.3981999507e-3, 1.3981999507e-3,
    8.3334519073e-3, 8.3334519073e-3, 8.3334519073e-3, 8.3334519073e-3,
    4.1665795894e-2, 4.1665795894e-2, 4.1665795894e-2, 4.1665795894e-2,
    1.6666665459e-1, 1.6666665459e-1, 1.6666665459e-1, 1.6666665459e-1,
    5.0000001201e-1, 5.0000001201e-1, 5.0000001201e-1, 5.0000001201e-1,
    1, 1, 1, 1,
  ],
  16,
);
const BIAS: usize = memory.data<i32>([127 << 23, 127 << 23, 127 << 23, 127 << 23], 16);

/**
 * Replaces `cells` scores (a multiple of 4; invisible ones are -Infinity) by exp(score - largest), which is 0 below exp(-87).
 * @returns their sum: by lanes over blocks of 128 cells, block sums by lanes, then the lanes.
 * exp: x = k ln 2 + r, the polynomial of Cephes' expf in r; 1.5e-7 relative.
 */
export function exponentials(scores: usize, cells: i32): f32 {
  const end = scores + (<usize>cells << 2);
  let top = f32x4.splat(-Infinity);
  for (let p = scores; p < end; p += 16) top = f32x4.pmax(top, v128.load(p));
  const largest = f32x4.splat(largestLane(top));
  const magic = v128.load(MAGIC);
  const one = v128.load(EXP, 160);
  let total = f32x4.splat(0);
  for (let p = scores; p < end; ) {
    const blockEnd = min(p + 512, end);
    let part = f32x4.splat(0);
    // Two vectors at a time, whose constants are loaded on the way: there are more than registers.
    for (; p + 16 < blockEnd; p += 32) {
      const x = f32x4.sub(v128.load(p), largest);
      const u = f32x4.sub(v128.load(p, 16), largest);
      let c = v128.load(EXP, 16);
      const m = f32x4.add(f32x4.mul(x, c), magic);
      const n = f32x4.add(f32x4.mul(u, c), magic);
      const k = f32x4.sub(m, magic);
      const l = f32x4.sub(n, magic);
      c = v128.load(EXP, 32);
      let r = f32x4.sub(x, f32x4.mul(k, c));
      let s = f32x4.sub(u, f32x4.mul(l, c));
      c = v128.load(EXP, 48);
      r = f32x4.sub(r, f32x4.mul(k, c));
      s = f32x4.sub(s, f32x4.mul(l, c));
      const y = exponential(r, m, one);
      const z = exponential(s, n, one);
      c = v128.load(EXP);
      const v = v128.and(y, f32x4.ge(x, c));
      const w = v128.and(z, f32x4.ge(u, c));
      v128.store(p, v);
      v128.store(p, w, 16);
      part = f32x4.add(f32x4.add(part, v), w);
    }
    if (p < blockEnd) {
      const x = f32x4.sub(v128.load(p), largest);
      const m = f32x4.add(f32x4.mul(x, v128.load(EXP, 16)), magic);
      const k = f32x4.sub(m, magic);
      const r = f32x4.sub(f32x4.sub(x, f32x4.mul(k, v128.load(EXP, 32))), f32x4.mul(k, v128.load(EXP, 48)));
      const y = v128.and(exponential(r, m, one), f32x4.ge(x, v128.load(EXP)));
      v128.store(p, y);
      part = f32x4.add(part, y);
      p += 16;
    }
    total = f32x4.add(total, part);
  }
  return lanes(total);
}

/** exp(r) * 2^k; `m`: k plus MAGIC. */
// @ts-ignore: decorator
@inline
function exponential(r: v128, m: v128, one: v128): v128 {
  // In pairs, not by Horner: the chain of dependent steps sets the pace.
  const square = f32x4.mul(r, r);
  let y = f32x4.add(
    f32x4.mul(f32x4.add(f32x4.mul(v128.load(EXP, 64), r), v128.load(EXP, 80)), square),
    f32x4.add(f32x4.mul(v128.load(EXP, 96), r), v128.load(EXP, 112)),
  );
  y = f32x4.add(f32x4.mul(y, square), f32x4.add(f32x4.mul(v128.load(EXP, 128), r), v128.load(EXP, 144)));
  y = f32x4.add(f32x4.mul(y, square), f32x4.add(r, one));
  return f32x4.mul(y, i32x4.add(i32x4.shl(m, 23), v128.load(BIAS)));
}
