/**
 * f32 rows. Four lanes over the channels, lane j sums channels j, j + 4, ...; the dot is (l0 + l1) + (l2 + l3), then the
 * channels past the last multiple of 4 are added in order.
 */
export function matmulF32(x: usize, rows: i32, weight: usize, n: i32, k: i32, out: usize, ldOut: i32): void {
  const ld = <usize>k << 2;
  const outStride = <usize>ldOut << 2;
  const whole = <usize>(k & ~3) << 2;
  let row = 0;
  for (; row + 2 <= n; row += 2) {
    let from = x;
    let to = out;
    let left = rows;
    for (; left >= 4; left -= 4) {
      fourByTwo(from, ld, weight, whole, to, outStride);
      from += ld << 2;
      to += outStride << 2;
    }
    for (; left > 0; left--) {
      oneByTwo(from, ld, weight, whole, to);
      from += ld;
      to += outStride;
    }
    weight += ld << 1;
    out += 8;
  }
  if (row < n) {
    for (; rows > 0; rows--) {
      let s = f32x4.splat(0);
      for (let i: usize = 0; i < whole; i += 16)
        s = f32x4.add(s, f32x4.mul(v128.load(x + i), v128.load(weight + i)));
      f32.store(out, finish(s, x, weight, whole, ld));
      x += ld;
      out += outStride;
    }
  }
}

function oneByTwo(x: usize, ld: usize, weight: usize, whole: usize, out: usize): void {
  const second = weight + ld;
  let a = f32x4.splat(0);
  let b = f32x4.splat(0);
  for (let i: usize = 0; i < whole; i += 16) {
    const v = v128.load(x + i);
    a = f32x4.add(a, f32x4.mul(v, v128.load(weight + i)));
    b = f32x4.add(b, f32x4.mul(v, v128.load(second + i)));
  }
  f32.store(out, finish(a, x, weight, whole, ld));
  f32.store(out, finish(b, x, second, whole, ld), 4);
}

function fourByTwo(x: usize, ld: usize, weight: usize, whole: usize, out: usize, outStride: usize): void {
  const second = weight + ld;
  const x1 = x + ld;
  const x2 = x1 + ld;
  const x3 = x2 + ld;
  let a0 = f32x4.splat(0);
  let b0 = f32x4.splat(0);
  let a1 = f32x4.splat(0);
  let b1 = f32x4.splat(0);
  let a2 = f32x4.splat(0);
  let b2 = f32x4.splat(0);
  let a3 = f32x4.splat(0);
  let b3 = f32x4.splat(0);
  for (let i: usize = 0; i < whole; i += 16) {
    const v = v128.load(weight + i);
    const w = v128.load(second + i);
    let p = v128.load(x + i);
    a0 = f32x4.add(a0, f32x4.mul(p, v));
    b0 = f32x4.add(b0, f32x4.mul(p, w));
    p = v128.load(x1 + i);
    a1 = f32x4.add(a1, f32x4.mul(p, v));
    b1 = f32x4.add(b1, f32x4.mul(p, w));
    p = v128.load(x2 + i);
    a2 = f32x4.add(a2, f32x4.mul(p, v));
    b2 = f32x4.add(b2, f32x4.mul(p, w));
    p = v128.load(x3 + i);
    a3 = f32x4.add(a3, f32x4.mul(p, v));
    b3 = f32x4.add(b3, f32x4.mul(p, w));
  }
  f32.store(out, finish(a0, x, weight, whole, ld));
  f32.store(out, finish(b0, x, second, whole, ld), 4);
  out += outStride;
  f32.store(out, finish(a1, x1, weight, whole, ld));
  f32.store(out, finish(b1, x1, second, whole, ld), 4);
  out += outStride;
  f32.store(out, finish(a2, x2, weight, whole, ld));
  f32.store(out, finish(b2, x2, second, whole, ld), 4);
  out += outStride;
  f32.store(out, finish(a3, x3, weight, whole, ld));
  f32.store(out, finish(b3, x3, second, whole, ld), 4);
}

// @ts-ignore: decorator
@inline
function finish(s: v128, x: usize, weight: usize, from: usize, end: usize): f32 {
  let sum =
    f32x4.extract_lane(s, 0) + f32x4.extract_lane(s, 1) + (f32x4.extract_lane(s, 2) + f32x4.extract_lane(s, 3));
  for (let i = from; i < end; i += 4) sum += f32.load(x + i) * f32.load(weight + i);
  return sum;
}
