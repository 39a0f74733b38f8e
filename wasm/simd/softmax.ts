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
  let total = f32x4.splat(0);
  for (let p = scores; p < end; ) {
    const blockEnd = min(p + 512, end);
    let part = f32x4.splat(0);
    // Four vectors in step, so that none waits for its own last result; constants are loaded on the way, since they outnumber the registers.
    for (; p + 48 < blockEnd; p += 64) {
      let c = v128.load(EXP, 16);
      let x0 = f32x4.sub(v128.load(p), largest);
      let x1 = f32x4.sub(v128.load(p, 16), largest);
      let x2 = f32x4.sub(v128.load(p, 32), largest);
      let x3 = f32x4.sub(v128.load(p, 48), largest);
      const m0 = f32x4.add(f32x4.mul(x0, c), magic);
      const m1 = f32x4.add(f32x4.mul(x1, c), magic);
      const m2 = f32x4.add(f32x4.mul(x2, c), magic);
      const m3 = f32x4.add(f32x4.mul(x3, c), magic);
      const k0 = f32x4.sub(m0, magic);
      const k1 = f32x4.sub(m1, magic);
      const k2 = f32x4.sub(m2, magic);
      const k3 = f32x4.sub(m3, magic);
      c = v128.load(EXP, 32);
      x0 = f32x4.sub(x0, f32x4.mul(k0, c));
      x1 = f32x4.sub(x1, f32x4.mul(k1, c));
      x2 = f32x4.sub(x2, f32x4.mul(k2, c));
      x3 = f32x4.sub(x3, f32x4.mul(k3, c));
      c = v128.load(EXP, 48);
      x0 = f32x4.sub(x0, f32x4.mul(k0, c));
      x1 = f32x4.sub(x1, f32x4.mul(k1, c));
      x2 = f32x4.sub(x2, f32x4.mul(k2, c));
      x3 = f32x4.sub(x3, f32x4.mul(k3, c));
      c = v128.load(EXP, 64);
      let y0 = f32x4.mul(c, x0);
      let y1 = f32x4.mul(c, x1);
      let y2 = f32x4.mul(c, x2);
      let y3 = f32x4.mul(c, x3);
      c = v128.load(EXP, 80);
      y0 = f32x4.add(y0, c);
      y1 = f32x4.add(y1, c);
      y2 = f32x4.add(y2, c);
      y3 = f32x4.add(y3, c);
      const s0 = f32x4.mul(x0, x0);
      const s1 = f32x4.mul(x1, x1);
      const s2 = f32x4.mul(x2, x2);
      const s3 = f32x4.mul(x3, x3);
      c = v128.load(EXP, 96);
      let d = v128.load(EXP, 112);
      y0 = f32x4.add(f32x4.mul(y0, s0), f32x4.add(f32x4.mul(c, x0), d));
      y1 = f32x4.add(f32x4.mul(y1, s1), f32x4.add(f32x4.mul(c, x1), d));
      y2 = f32x4.add(f32x4.mul(y2, s2), f32x4.add(f32x4.mul(c, x2), d));
      y3 = f32x4.add(f32x4.mul(y3, s3), f32x4.add(f32x4.mul(c, x3), d));
      c = v128.load(EXP, 128);
      d = v128.load(EXP, 144);
      y0 = f32x4.add(f32x4.mul(y0, s0), f32x4.add(f32x4.mul(c, x0), d));
      y1 = f32x4.add(f32x4.mul(y1, s1), f32x4.add(f32x4.mul(c, x1), d));
      y2 = f32x4.add(f32x4.mul(y2, s2), f32x4.add(f32x4.mul(c, x2), d));
      y3 = f32x4.add(f32x4.mul(y3, s3), f32x4.add(f32x4.mul(c, x3), d));
      c = v128.load(EXP, 160);
      y0 = f32x4.add(f32x4.mul(y0, s0), f32x4.add(x0, c));
      y1 = f32x4.add(f32x4.mul(y1, s1), f32x4.add(x1, c));
      y2 = f32x4.add(f32x4.mul(y2, s2), f32x4.add(x2, c));
      y3 = f32x4.add(f32x4.mul(y3, s3), f32x4.add(x3, c));
      c = v128.load(BIAS);
      y0 = f32x4.mul(y0, i32x4.add(i32x4.shl(m0, 23), c));
      y1 = f32x4.mul(y1, i32x4.add(i32x4.shl(m1, 23), c));
      y2 = f32x4.mul(y2, i32x4.add(i32x4.shl(m2, 23), c));
      y3 = f32x4.mul(y3, i32x4.add(i32x4.shl(m3, 23), c));
      c = v128.load(EXP);
      y0 = v128.and(y0, f32x4.ge(f32x4.sub(v128.load(p), largest), c));
      y1 = v128.and(y1, f32x4.ge(f32x4.sub(v128.load(p, 16), largest), c));
      y2 = v128.and(y2, f32x4.ge(f32x4.sub(v128.load(p, 32), largest), c));
      y3 = v128.and(y3, f32x4.ge(f32x4.sub(v128.load(p, 48), largest), c));
      v128.store(p, y0);
      v128.store(p, y1, 16);
      v128.store(p, y2, 32);
      v128.store(p, y3, 48);
      part = f32x4.add(f32x4.add(f32x4.add(f32x4.add(part, y0), y1), y2), y3);
    }
    for (; p < blockEnd; p += 16) {
      const x = f32x4.sub(v128.load(p), largest);
      const m = f32x4.add(f32x4.mul(x, v128.load(EXP, 16)), magic);
      const k = f32x4.sub(m, magic);
      const r = f32x4.sub(f32x4.sub(x, f32x4.mul(k, v128.load(EXP, 32))), f32x4.mul(k, v128.load(EXP, 48)));
      const y = v128.and(exponential(r, m), f32x4.ge(x, v128.load(EXP)));
      v128.store(p, y);
      part = f32x4.add(part, y);
    }
    total = f32x4.add(total, part);
  }
  return lanes(total);
}

/** exp(r) * 2^k; `m`: k plus MAGIC. */
// @ts-ignore: decorator
@inline
function exponential(r: v128, m: v128): v128 {
  // In pairs, not by Horner: the chain of dependent steps sets the pace.
  const square = f32x4.mul(r, r);
  let y = f32x4.add(
    f32x4.mul(f32x4.add(f32x4.mul(v128.load(EXP, 64), r), v128.load(EXP, 80)), square),
    f32x4.add(f32x4.mul(v128.load(EXP, 96), r), v128.load(EXP, 112)),
  );
  y = f32x4.add(f32x4.mul(y, square), f32x4.add(f32x4.mul(v128.load(EXP, 128), r), v128.load(EXP, 144)));
  y = f32x4.add(f32x4.mul(y, square), f32x4.add(r, v128.load(EXP, 160)));
  return f32x4.mul(y, i32x4.add(i32x4.shl(m, 23), v128.load(BIAS)));
}
