import { halfBlockBytes } from './groups';
import { fromF16 } from './half';

/** Levels of CODEBOOKS (src/kernels/layout.ts), 16 bytes for each of 1 to 4 bits; then those of plain 4-bit codes. */
const LEVELS: usize = memory.data<i8>(
  [
    -40, 40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    -40, -12, 12, 40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    -62, -39, -22, -7, 7, 22, 39, 62, 0, 0, 0, 0, 0, 0, 0, 0,
    -61, -46, -36, -28, -21, -15, -9, -3, 3, 9, 15, 21, 28, 36, 46, 61,
    -8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7,
  ],
  16,
);
const MASKS: usize = memory.data<u8>(
  [
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15,
  ],
  16,
);
// @ts-ignore: decorator
@inline
export function levelTable(bits: i32): v128 {
  return v128.load(LEVELS + (<usize>(bits - 1) << 4));
}
// @ts-ignore: decorator
@inline
export function codeMask(bits: i32): v128 {
  return v128.load(MASKS + (<usize>(bits - 1) << 4));
}
/** Table look-up; codes are below 16, where the relaxed and the strict instruction agree. */
// @ts-ignore: decorator
@inline
export function lookUp(table: v128, codes: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return i8x16.relaxed_swizzle(table, codes);
  return i8x16.swizzle(table, codes);
}

/** A chunk as two vectors of 16-bit levels: bytes 0 and 2 of each i32 lane, then bytes 1 and 3. */
// @ts-ignore: decorator
@inline
function put(to: usize, levels: v128): void {
  v128.store(to, i16x8.shr_s(i16x8.shl(levels, 8), 8));
  v128.store(to, i16x8.shr_s(levels, 8), 16);
}

/**
 * Unpacks half blocks of 1 to 8 bits into 16-bit levels, 32 bytes a chunk: chunk c of block b at
 * `to + c * chunkStride + b * blockStride`.
 */
export function unpackLevels(
  bits: i32,
  from: usize,
  blocks: i32,
  headDim: i32,
  to: usize,
  chunkStride: usize,
  blockStride: usize,
): void {
  const chunks = headDim >> 2;
  const bytes = <usize>halfBlockBytes(bits, headDim);
  for (let b = 0; b < blocks; b++) {
    if (bits == 4) unpack4(levelTable(4), from, chunks, to, chunkStride);
    else if (bits == 8) unpack8(from, chunks, to, chunkStride);
    else if (bits == 3) unpack3(from, chunks, to, chunkStride);
    else if (bits == 2) unpack2(from, chunks, to, chunkStride);
    else unpack1(from, chunks, to, chunkStride);
    from += bytes;
    to += blockStride;
  }
}

function unpack8(from: usize, chunks: i32, to: usize, stride: usize): void {
  for (; chunks > 0; chunks--) {
    put(to, v128.load(from));
    from += 16;
    to += stride;
  }
}
function unpack4(table: v128, from: usize, chunks: i32, to: usize, stride: usize): void {
  const mask = codeMask(4);
  for (; chunks > 1; chunks -= 2) {
    const x = v128.load(from);
    put(to, lookUp(table, v128.and(x, mask)));
    put(to + stride, lookUp(table, v128.and(i16x8.shr_u(x, 4), mask)));
    from += 16;
    to += stride << 1;
  }
  if (chunks) put(to, lookUp(table, v128.and(v128.load(from), mask)));
}
function unpack2(from: usize, chunks: i32, to: usize, stride: usize): void {
  const table = levelTable(2);
  const mask = codeMask(2);
  for (; chunks > 0; chunks -= 4) {
    const x = v128.load(from);
    put(to, lookUp(table, v128.and(x, mask)));
    if (chunks > 1) put(to + stride, lookUp(table, v128.and(i16x8.shr_u(x, 2), mask)));
    if (chunks > 2) put(to + stride * 2, lookUp(table, v128.and(i16x8.shr_u(x, 4), mask)));
    if (chunks > 3) put(to + stride * 3, lookUp(table, v128.and(i16x8.shr_u(x, 6), mask)));
    from += 16;
    to += stride << 2;
  }
}
function unpack1(from: usize, chunks: i32, to: usize, stride: usize): void {
  const table = levelTable(1);
  const mask = codeMask(1);
  for (; chunks > 0; chunks -= 8) {
    const x = v128.load(from);
    put(to, lookUp(table, v128.and(x, mask)));
    if (chunks > 1) put(to + stride, lookUp(table, v128.and(i16x8.shr_u(x, 1), mask)));
    if (chunks > 2) put(to + stride * 2, lookUp(table, v128.and(i16x8.shr_u(x, 2), mask)));
    if (chunks > 3) put(to + stride * 3, lookUp(table, v128.and(i16x8.shr_u(x, 3), mask)));
    if (chunks > 4) put(to + stride * 4, lookUp(table, v128.and(i16x8.shr_u(x, 4), mask)));
    if (chunks > 5) put(to + stride * 5, lookUp(table, v128.and(i16x8.shr_u(x, 5), mask)));
    if (chunks > 6) put(to + stride * 6, lookUp(table, v128.and(i16x8.shr_u(x, 6), mask)));
    if (chunks > 7) put(to + stride * 7, lookUp(table, v128.and(i16x8.shr_u(x, 7), mask)));
    from += 16;
    to += stride << 3;
  }
}
/** 8 chunks at a time: two vectors of low bits and one of high bits. */
function unpack3(from: usize, chunks: i32, to: usize, stride: usize): void {
  const table = levelTable(3);
  const low = codeMask(2);
  const high = codeMask(1);
  let highs = from + (<usize>((chunks + 3) >> 2) << 4);
  for (; chunks > 0; chunks -= 8) {
    const x = v128.load(from);
    const y = v128.load(highs);
    put(to, code3(table, x, y, low, high));
    if (chunks > 1) put(to + stride, code3(table, i16x8.shr_u(x, 2), i16x8.shr_u(y, 1), low, high));
    if (chunks > 2) put(to + stride * 2, code3(table, i16x8.shr_u(x, 4), i16x8.shr_u(y, 2), low, high));
    if (chunks > 3) put(to + stride * 3, code3(table, i16x8.shr_u(x, 6), i16x8.shr_u(y, 3), low, high));
    if (chunks > 4) {
      const z = v128.load(from, 16);
      put(to + stride * 4, code3(table, z, i16x8.shr_u(y, 4), low, high));
      if (chunks > 5) put(to + stride * 5, code3(table, i16x8.shr_u(z, 2), i16x8.shr_u(y, 5), low, high));
      if (chunks > 6) put(to + stride * 6, code3(table, i16x8.shr_u(z, 4), i16x8.shr_u(y, 6), low, high));
      if (chunks > 7) put(to + stride * 7, code3(table, i16x8.shr_u(z, 6), i16x8.shr_u(y, 7), low, high));
    }
    from += 32;
    highs += 16;
    to += stride << 3;
  }
}
// @ts-ignore: decorator
@inline
function code3(table: v128, x: v128, y: v128, low: v128, high: v128): v128 {
  return lookUp(table, v128.or(v128.and(x, low), i16x8.shl(v128.and(y, high), 2)));
}

/** Levels of one block as unpackLevels leaves them; headDim <= 512. */
const BLOCK: usize = memory.data(4096, 16);

function unpackPlain(bits: i32, from: usize, chunks: i32): void {
  if (bits == 8) unpack8(from, chunks, BLOCK, 32);
  else unpack4(levelTable(5), from, chunks, BLOCK, 32);
}

/**
 * Decodes n packed cells of at most 8 bits into rows [n][headDim] f32: scale * level, keys plus `mean`.
 * scales f32 [cells]; rows up to the next multiple of 4 are written.
 */
export function decodeRows(
  keys: bool,
  bits: i32,
  from: usize,
  n: i32,
  headDim: i32,
  scales: usize,
  mean: usize,
  to: usize,
): void {
  if (keys) decode(true, true, false, bits, from, n, headDim, scales, mean, to);
  else decode(false, false, false, bits, from, n, headDim, scales, 0, to);
}
/** The same for plain cells: scales binary16 [cells][32 channels], no mean. */
export function decodePlainRows(
  keys: bool,
  bits: i32,
  from: usize,
  n: i32,
  headDim: i32,
  scales: usize,
  to: usize,
): void {
  if (keys) decode(true, false, true, bits, from, n, headDim, scales, 0, to);
  else decode(false, false, true, bits, from, n, headDim, scales, 0, to);
}

// @ts-ignore: decorator
@inline
function decode(
  keys: bool,
  centred: bool,
  perGroup: bool,
  bits: i32,
  from: usize,
  n: i32,
  headDim: i32,
  scales: usize,
  mean: usize,
  to: usize,
): void {
  const ldScale = <usize>((headDim + 31) >> 5) << 1;
  const chunks = headDim >> 2;
  const bytes = <usize>halfBlockBytes(bits, headDim);
  const row = <usize>headDim << 2;
  for (let first = 0; first < n; first += 4) {
    if (perGroup) unpackPlain(bits, from, chunks);
    else unpackLevels(bits, from, 1, headDim, BLOCK, 32, 0);
    let s0 = v128.load32_splat(scales);
    let s1 = v128.load32_splat(scales, 4);
    let s2 = v128.load32_splat(scales, 8);
    let s3 = v128.load32_splat(scales, 12);
    let p = to;
    for (let c = 0; c < chunks; c++) {
      if (perGroup && (c & 7) == 0) {
        const at = scales + (<usize>(c >> 3) << 1);
        s0 = f32x4.splat(fromF16(load<u16>(at)));
        s1 = f32x4.splat(fromF16(load<u16>(at + ldScale)));
        s2 = f32x4.splat(fromF16(load<u16>(at + ldScale * 2)));
        s3 = f32x4.splat(fromF16(load<u16>(at + ldScale * 3)));
      }
      const even = v128.load(BLOCK + (<usize>c << 5));
      const odd = v128.load(BLOCK + (<usize>c << 5), 16);
      let m = f32x4.splat(0);
      let x0: v128;
      let x1: v128;
      let x2: v128;
      let x3: v128;
      if (keys) {
        // i32 lanes are tokens: bring each token's 4 channels together.
        const low = v128.shuffle<i16>(even, odd, 0, 8, 1, 9, 2, 10, 3, 11);
        const high = v128.shuffle<i16>(even, odd, 4, 12, 5, 13, 6, 14, 7, 15);
        x0 = i32x4.extend_low_i16x8_s(low);
        x1 = i32x4.extend_high_i16x8_s(low);
        x2 = i32x4.extend_low_i16x8_s(high);
        x3 = i32x4.extend_high_i16x8_s(high);
        if (centred) m = v128.load(mean + (<usize>c << 4));
      } else {
        // i32 lanes are channels already; elements 0, 2 and 1, 3 are tokens.
        x0 = i32x4.shr_s(i32x4.shl(even, 16), 16);
        x1 = i32x4.shr_s(i32x4.shl(odd, 16), 16);
        x2 = i32x4.shr_s(even, 16);
        x3 = i32x4.shr_s(odd, 16);
      }
      x0 = f32x4.mul(s0, f32x4.convert_i32x4_s(x0));
      x1 = f32x4.mul(s1, f32x4.convert_i32x4_s(x1));
      x2 = f32x4.mul(s2, f32x4.convert_i32x4_s(x2));
      x3 = f32x4.mul(s3, f32x4.convert_i32x4_s(x3));
      v128.store(p, centred ? f32x4.add(x0, m) : x0);
      v128.store(p + row, centred ? f32x4.add(x1, m) : x1);
      v128.store(p + row * 2, centred ? f32x4.add(x2, m) : x2);
      v128.store(p + row * 3, centred ? f32x4.add(x3, m) : x3);
      p += 16;
    }
    from += bytes;
    to += row << 2;
    scales += perGroup ? ldScale << 2 : 16;
  }
}
