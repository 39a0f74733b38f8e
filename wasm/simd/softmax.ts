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
  const floor = v128.load(EXP);
  const log2e = v128.load(EXP, 16);
  const high = v128.load(EXP, 32);
  const low = v128.load(EXP, 48);
  const p0 = v128.load(EXP, 64);
  const p1 = v128.load(EXP, 80);
  const p2 = v128.load(EXP, 96);
  const p3 = v128.load(EXP, 112);
  const p4 = v128.load(EXP, 128);
  const p5 = v128.load(EXP, 144);
  const one = v128.load(EXP, 160);
  const magic = v128.load(MAGIC);
  const bias = v128.load(BIAS);
  let total = f32x4.splat(0);
  for (let p = scores; p < end; ) {
    const blockEnd = min(p + 512, end);
    let part = f32x4.splat(0);
    for (; p < blockEnd; p += 16) {
      const x = f32x4.sub(v128.load(p), largest);
      const m = f32x4.add(f32x4.mul(x, log2e), magic);
      const k = f32x4.sub(m, magic);
      const r = f32x4.sub(f32x4.sub(x, f32x4.mul(k, high)), f32x4.mul(k, low));
      // In pairs, not by Horner: the chain of dependent steps sets the pace.
      const square = f32x4.mul(r, r);
      let y = f32x4.add(f32x4.mul(f32x4.add(f32x4.mul(p0, r), p1), square), f32x4.add(f32x4.mul(p2, r), p3));
      y = f32x4.add(f32x4.mul(y, square), f32x4.add(f32x4.mul(p4, r), p5));
      y = f32x4.add(f32x4.mul(y, square), f32x4.add(r, one));
      y = f32x4.mul(y, i32x4.add(i32x4.shl(m, 23), bias));
      y = v128.and(y, f32x4.ge(x, floor));
      v128.store(p, y);
      part = f32x4.add(part, y);
    }
    total = f32x4.add(total, part);
  }
  return lanes(total);
}
