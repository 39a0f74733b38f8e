import { halfBlockBytes } from './groups';
import { loadFloats } from './half';

/** Levels of CODEBOOKS (src/kernels/layout.ts), 16 bytes for each of 1 to 4 bits. */
const LEVELS: usize = memory.data<i8>(
  [
    -40, 40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    -40, -12, 12, 40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    -62, -39, -22, -7, 7, 22, 39, 62, 0, 0, 0, 0, 0, 0, 0, 0,
    -61, -46, -36, -28, -21, -15, -9, -3, 3, 9, 15, 21, 28, 36, 46, 61,
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
    if (bits == 4) unpack4(from, chunks, to, chunkStride);
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
function unpack4(from: usize, chunks: i32, to: usize, stride: usize): void {
  const table = levelTable(4);
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
  for (let c = 0; c < chunks; c++) {
    const x = v128.load(from + (<usize>(c >> 3) << 4));
    put(to, lookUp(table, v128.and(i16x8.shr_u(x, c & 7), mask)));
    to += stride;
  }
}
function unpack3(from: usize, chunks: i32, to: usize, stride: usize): void {
  const table = levelTable(3);
  const low = codeMask(2);
  const high = i8x16.splat(4);
  const highs = from + (<usize>((chunks + 3) >> 2) << 4);
  for (let c = 0; c < chunks; c++) {
    const x = i16x8.shr_u(v128.load(from + (<usize>(c >> 2) << 4)), (c & 3) << 1);
    const y = i16x8.shl(i16x8.shr_u(v128.load(highs + (<usize>(c >> 3) << 4)), c & 7), 2);
    put(to, lookUp(table, v128.or(v128.and(x, low), v128.and(y, high))));
    to += stride;
  }
}

/** Levels of one block as unpackLevels leaves them; headDim <= 512. */
const BLOCK: usize = memory.data(4096, 16);

/**
 * Keys of up to 128 cells as float vectors [block][channel], 4 tokens a vector. Packed: scale * level + mean, scales f32 [cells].
 * Floats: cells n .. of the last block are not read and become 0.
 */
export function unpackKeysFloat(
  bits: i32,
  from: usize,
  n: i32,
  headDim: i32,
  scales: usize,
  mean: usize,
  to: usize,
): void {
  const chunks = headDim >> 2;
  const bytes = <usize>halfBlockBytes(bits, headDim);
  for (let first = 0; first < n; first += 4) {
    if (bits <= 8) {
      unpackLevels(bits, from, 1, headDim, BLOCK, 32, 0);
      const scale = v128.load(scales + (<usize>first << 2));
      for (let c = 0; c < chunks; c++) {
        const even = v128.load(BLOCK + (<usize>c << 5));
        const odd = v128.load(BLOCK + (<usize>c << 5), 16);
        const m = mean + (<usize>c << 4);
        v128.store(to, keyOf(i32x4.shr_s(i32x4.shl(even, 16), 16), scale, m));
        v128.store(to, keyOf(i32x4.shr_s(i32x4.shl(odd, 16), 16), scale, m + 4), 16);
        v128.store(to, keyOf(i32x4.shr_s(even, 16), scale, m + 8), 32);
        v128.store(to, keyOf(i32x4.shr_s(odd, 16), scale, m + 12), 48);
        to += 64;
      }
    } else {
      const row = bytes >> 2;
      const left = n - first;
      const step = <usize>bits >> 1;
      let p = from;
      for (let c = 0; c < chunks; c++) {
        const a = loadFloats(p, bits);
        const b = left > 1 ? loadFloats(p + row, bits) : i32x4.splat(0);
        const d = left > 2 ? loadFloats(p + row * 2, bits) : i32x4.splat(0);
        const e = left > 3 ? loadFloats(p + row * 3, bits) : i32x4.splat(0);
        const ab = v128.shuffle<f32>(a, b, 0, 4, 1, 5);
        const de = v128.shuffle<f32>(d, e, 0, 4, 1, 5);
        v128.store(to, v128.shuffle<f32>(ab, de, 0, 1, 4, 5));
        v128.store(to, v128.shuffle<f32>(ab, de, 2, 3, 6, 7), 16);
        const abHigh = v128.shuffle<f32>(a, b, 2, 6, 3, 7);
        const deHigh = v128.shuffle<f32>(d, e, 2, 6, 3, 7);
        v128.store(to, v128.shuffle<f32>(abHigh, deHigh, 0, 1, 4, 5), 32);
        v128.store(to, v128.shuffle<f32>(abHigh, deHigh, 2, 3, 6, 7), 48);
        p += step;
        to += 64;
      }
    }
    from += bytes;
  }
}
// @ts-ignore: decorator
@inline
function keyOf(level: v128, scale: v128, mean: usize): v128 {
  return f32x4.add(f32x4.mul(scale, f32x4.convert_i32x4_s(level)), v128.load32_splat(mean));
}

/** Values of n cells as float vectors [chunk][n], 4 channels a vector. Packed: scale * level (then n is a multiple of 4). */
export function unpackValuesFloat(bits: i32, from: usize, n: i32, headDim: i32, scales: usize, to: usize): void {
  const chunks = headDim >> 2;
  const ld = <usize>n << 4;
  if (bits > 8) {
    const step = <usize>bits >> 1;
    for (let t = 0; t < n; t++) {
      let p = to;
      for (let c = 0; c < chunks; c++) {
        v128.store(p, loadFloats(from, bits));
        from += step;
        p += ld;
      }
      to += 16;
    }
    return;
  }
  const bytes = <usize>halfBlockBytes(bits, headDim);
  for (let first = 0; first < n; first += 4) {
    unpackLevels(bits, from, 1, headDim, BLOCK, 32, 0);
    const s0 = v128.load32_splat(scales);
    const s1 = v128.load32_splat(scales, 4);
    const s2 = v128.load32_splat(scales, 8);
    const s3 = v128.load32_splat(scales, 12);
    let p = to;
    for (let c = 0; c < chunks; c++) {
      const even = v128.load(BLOCK + (<usize>c << 5));
      const odd = v128.load(BLOCK + (<usize>c << 5), 16);
      v128.store(p, f32x4.mul(s0, f32x4.convert_i32x4_s(i32x4.shr_s(i32x4.shl(even, 16), 16))));
      v128.store(p, f32x4.mul(s1, f32x4.convert_i32x4_s(i32x4.shr_s(i32x4.shl(odd, 16), 16))), 16);
      v128.store(p, f32x4.mul(s2, f32x4.convert_i32x4_s(i32x4.shr_s(even, 16))), 32);
      v128.store(p, f32x4.mul(s3, f32x4.convert_i32x4_s(i32x4.shr_s(odd, 16))), 48);
      p += ld;
    }
    from += bytes;
    to += 64;
    scales += 16;
  }
}
