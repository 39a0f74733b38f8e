/** Row-wise operations on f32; counts in elements. Tails past the last multiple of 4 use the same formulas on scalars. */

/** out = x * (1 / sqrt(mean(x^2) + eps)) * weight. Squares are summed in four lanes, (l0 + l1) + (l2 + l3), then the tail. */
export function rmsNorm(x: usize, weight: usize, rows: i32, dim: i32, eps: f32, out: usize): void {
  const whole = <usize>(dim & ~3) << 2;
  const bytes = <usize>dim << 2;
  for (; rows > 0; rows--) {
    let s = f32x4.splat(0);
    for (let i: usize = 0; i < whole; i += 16) {
      const v = v128.load(x + i);
      s = f32x4.add(s, f32x4.mul(v, v));
    }
    let sum =
      f32x4.extract_lane(s, 0) + f32x4.extract_lane(s, 1) + (f32x4.extract_lane(s, 2) + f32x4.extract_lane(s, 3));
    for (let i = whole; i < bytes; i += 4) sum += f32.load(x + i) * f32.load(x + i);
    const inverse: f32 = <f32>1 / sqrt<f32>(sum / <f32>dim + eps);
    const factor = f32x4.splat(inverse);
    for (let i: usize = 0; i < whole; i += 16)
      v128.store(out + i, f32x4.mul(f32x4.mul(v128.load(x + i), factor), v128.load(weight + i)));
    for (let i = whole; i < bytes; i += 4) f32.store(out + i, f32.load(x + i) * inverse * f32.load(weight + i));
    x += bytes;
    out += bytes;
  }
}

export function add(a: usize, b: usize, count: i32, out: usize): void {
  const whole = <usize>(count & ~3) << 2;
  let i: usize = 0;
  for (; i < whole; i += 16) v128.store(out + i, f32x4.add(v128.load(a + i), v128.load(b + i)));
  for (; i < <usize>count << 2; i += 4) f32.store(out + i, f32.load(a + i) + f32.load(b + i));
}

export function mul(a: usize, b: usize, count: i32, out: usize): void {
  const whole = <usize>(count & ~3) << 2;
  let i: usize = 0;
  for (; i < whole; i += 16) v128.store(out + i, f32x4.mul(v128.load(a + i), v128.load(b + i)));
  for (; i < <usize>count << 2; i += 4) f32.store(out + i, f32.load(a + i) * f32.load(b + i));
}

/**
 * exp by 2^n * p(r), |r| <= ln(2)/2: ln(2) in two parts, a polynomial of degree 6 (S. Moshier's expf coefficients, Cephes 1992).
 * Relative error below 2e-7 within -87..88, to which x is clamped. NaN stays NaN.
 */
// @ts-ignore: decorator
@inline
export function expLanes(x: v128): v128 {
  x = f32x4.min(f32x4.max(x, f32x4.splat(-87)), f32x4.splat(88));
  const n = f32x4.nearest(f32x4.mul(x, f32x4.splat(1.44269504088896341)));
  let r = f32x4.sub(x, f32x4.mul(n, f32x4.splat(0.693359375)));
  r = f32x4.sub(r, f32x4.mul(n, f32x4.splat(-2.12194440e-4)));
  let p = f32x4.add(f32x4.mul(f32x4.splat(1.9875691500e-4), r), f32x4.splat(1.3981999507e-3));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(8.3334519073e-3));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(4.1665795894e-2));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(1.6666665459e-1));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(5.0000001201e-1));
  p = f32x4.add(f32x4.add(f32x4.mul(p, f32x4.mul(r, r)), r), f32x4.splat(1));
  const power = i32x4.shl(i32x4.add(i32x4.trunc_sat_f32x4_s(n), i32x4.splat(127)), 23);
  return f32x4.mul(p, power);
}

// @ts-ignore: decorator
@inline
function sigmoidLanes(x: v128): v128 {
  const one = f32x4.splat(1);
  return f32x4.div(one, f32x4.add(one, expLanes(f32x4.neg(x))));
}

export function sigmoid(x: usize, count: i32, out: usize): void {
  const whole = <usize>(count & ~3) << 2;
  let i: usize = 0;
  for (; i < whole; i += 16) v128.store(out + i, sigmoidLanes(v128.load(x + i)));
  for (; i < <usize>count << 2; i += 4)
    f32.store(out + i, f32x4.extract_lane(sigmoidLanes(v128.load32_splat(x + i)), 0));
}

/** out = (gate * sigmoid(gate)) * up */
export function siluMul(gate: usize, up: usize, count: i32, out: usize): void {
  const whole = <usize>(count & ~3) << 2;
  let i: usize = 0;
  for (; i < whole; i += 16) {
    const g = v128.load(gate + i);
    v128.store(out + i, f32x4.mul(f32x4.mul(g, sigmoidLanes(g)), v128.load(up + i)));
  }
  for (; i < <usize>count << 2; i += 4) {
    const g = v128.load32_splat(gate + i);
    f32.store(out + i, f32x4.extract_lane(f32x4.mul(f32x4.mul(g, sigmoidLanes(g)), v128.load32_splat(up + i)), 0));
  }
}

/** Rotate-half rotary embedding in place; ldX in elements. */
export function rope(
  x: usize,
  ldX: i32,
  rows: i32,
  heads: i32,
  headDim: i32,
  cos: usize,
  sin: usize,
  position: i32,
): void {
  const half = <usize>(headDim >> 1) << 2;
  const whole = half & ~15;
  let c = cos + <usize>position * half;
  let s = sin + <usize>position * half;
  for (; rows > 0; rows--) {
    let at = x;
    for (let h = 0; h < heads; h++) {
      let i: usize = 0;
      for (; i < whole; i += 16) {
        const a = v128.load(at + i);
        const b = v128.load(at + half + i);
        const cosine = v128.load(c + i);
        const sine = v128.load(s + i);
        v128.store(at + i, f32x4.sub(f32x4.mul(a, cosine), f32x4.mul(b, sine)));
        v128.store(at + half + i, f32x4.add(f32x4.mul(b, cosine), f32x4.mul(a, sine)));
      }
      for (; i < half; i += 4) {
        const a = f32.load(at + i);
        const b = f32.load(at + half + i);
        f32.store(at + i, a * f32.load(c + i) - b * f32.load(s + i));
        f32.store(at + half + i, b * f32.load(c + i) + a * f32.load(s + i));
      }
      at += <usize>headDim << 2;
    }
    x += <usize>ldX << 2;
    c += half;
    s += half;
  }
}
