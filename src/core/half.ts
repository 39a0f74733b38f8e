/** IEEE binary16 and bfloat16 in plain arithmetic: the same bits on every host, whether or not it has Float16Array. */

const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

/** The float32 that a binary16 bit pattern stands for. Exact. */
export function halfToFloat(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const mantissa = half & 1023;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  if (exponent === 31) return mantissa ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1024 + mantissa) * 2 ** (exponent - 25);
}

/** The nearest binary16 of a float32, ties to even; overflow gives infinity. */
export function floatToHalf(value: number): number {
  f32[0] = value;
  const bits = u32[0]!;
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {
    // Below the normal range a code is a multiple of 2^-24; the product is exact, so rounding it once is enough.
    const units = Math.abs(f32[0]!) * 2 ** 24;
    const down = Math.floor(units);
    const rest = units - down;
    return sign | (rest > 0.5 || (rest === 0.5 && down & 1) ? down + 1 : down);
  }
  const rounded = magnitude + 0xfff + ((magnitude >>> 13) & 1);
  return sign | ((rounded - 0x38000000) >>> 13);
}

/** The upper 16 bits of the least bfloat16 >= value, for a finite value >= 0. */
export function bfloatAtLeast(value: number): number {
  f32[0] = value;
  if (f32[0]! < value) u32[0] = u32[0]! + 1;
  return (u32[0]! + 0xffff) >>> 16;
}

export function bfloatToFloat(bits: number): number {
  u32[0] = bits << 16;
  return f32[0]!;
}
