import { halfBlockBytes } from './groups';
import { lookUp } from './unpack';

/**
 * Tables from a nibble to the levels of CODEBOOKS (src/kernels/layout.ts), 16 bytes each. A nibble may hold more than one code:
 *   4 bits   the code
 *   3 bits   low bits of a code, then the high bits of two: first the table of the one, then of the other
 *   2 bits   two codes; 1 bit: four
 * Values: the levels. Keys: level + KEY_OFFSET, so that they are unsigned bytes of 7 bits.
 */
export const VALUES: usize = memory.data<i8>(
  [
    -61, -46, -36, -28, -21, -15, -9, -3, 3, 9, 15, 21, 28, 36, 46, 61,
    -62, -39, -22, -7, 7, 22, 39, 62, -62, -39, -22, -7, 7, 22, 39, 62,
    -62, -39, -22, -7, -62, -39, -22, -7, 7, 22, 39, 62, 7, 22, 39, 62,
    -40, -12, 12, 40, -40, -12, 12, 40, -40, -12, 12, 40, -40, -12, 12, 40,
    -40, -40, -40, -40, -12, -12, -12, -12, 12, 12, 12, 12, 40, 40, 40, 40,
    -40, 40, -40, 40, -40, 40, -40, 40, -40, 40, -40, 40, -40, 40, -40, 40,
    -40, -40, 40, 40, -40, -40, 40, 40, -40, -40, 40, 40, -40, -40, 40, 40,
    -40, -40, -40, -40, 40, 40, 40, 40, -40, -40, -40, -40, 40, 40, 40, 40,
    -40, -40, -40, -40, -40, -40, -40, -40, 40, 40, 40, 40, 40, 40, 40, 40,
  ],
  16,
);
export const KEY_OFFSET: i32 = 62;
export const KEYS: usize = memory.data<i8>(
  [
    1, 16, 26, 34, 41, 47, 53, 59, 65, 71, 77, 83, 90, 98, 108, 123,
    0, 23, 40, 55, 69, 84, 101, 124, 0, 23, 40, 55, 69, 84, 101, 124,
    0, 23, 40, 55, 0, 23, 40, 55, 69, 84, 101, 124, 69, 84, 101, 124,
    22, 50, 74, 102, 22, 50, 74, 102, 22, 50, 74, 102, 22, 50, 74, 102,
    22, 22, 22, 22, 50, 50, 50, 50, 74, 74, 74, 74, 102, 102, 102, 102,
  ],
  16,
);
export const NIBBLES: usize = memory.data<u8>([15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15], 16);
export const THREES: usize = memory.data<u8>([3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3], 16);
export const TWELVES: usize = memory.data<u8>([12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12], 16);

/** Where the tables of so many bits lie in KEYS and VALUES. */
// @ts-ignore: decorator
@inline
export function tablesOf(bits: i32): usize {
  return bits == 4 ? 0 : bits == 3 ? 16 : bits == 2 ? 48 : 80;
}

/**
 * Unpacks half blocks of 1 to 4 bits (keys 2 to 4) into a byte an element, 16 bytes a chunk: chunk c of block b at
 * `to + c * chunkStride + b * blockStride`. Chunks up to the next multiple of 8 may be written, those of later blocks last.
 */
export function unpackBytes(
  keys: bool,
  bits: i32,
  from: usize,
  blocks: i32,
  headDim: i32,
  to: usize,
  chunkStride: usize,
  blockStride: usize,
): void {
  const chunks = headDim >> 2;
  const at = (keys ? KEYS : VALUES) + tablesOf(bits);
  if (bits == 4) bytes4(at, from, blocks, chunks, to, chunkStride, blockStride);
  else if (bits == 3) bytes3(at, from, blocks, chunks, to, chunkStride, blockStride);
  else if (bits == 2) bytes2(at, from, blocks, chunks, to, chunkStride, blockStride);
  else bytes1(at, from, blocks, chunks, to, chunkStride, blockStride);
}

function bytes4(tables: usize, from: usize, blocks: i32, chunks: i32, to: usize, stride: usize, ldBlock: usize): void {
  const table = v128.load(tables);
  const mask = v128.load(NIBBLES);
  for (; blocks > 0; blocks--) {
    let p = to;
    for (let c = 0; c < chunks; c += 2) {
      const x = v128.load(from);
      v128.store(p, lookUp(table, v128.and(x, mask)));
      v128.store(p + stride, lookUp(table, v128.and(i16x8.shr_u(x, 4), mask)));
      from += 16;
      p += stride << 1;
    }
    to += ldBlock;
  }
}
function bytes2(tables: usize, from: usize, blocks: i32, chunks: i32, to: usize, stride: usize, ldBlock: usize): void {
  const first = v128.load(tables);
  const second = v128.load(tables, 16);
  const mask = v128.load(NIBBLES);
  for (; blocks > 0; blocks--) {
    let p = to;
    for (let c = 0; c < chunks; c += 4) {
      const x = v128.load(from);
      const low = v128.and(x, mask);
      const high = v128.and(i16x8.shr_u(x, 4), mask);
      v128.store(p, lookUp(first, low));
      v128.store(p + stride, lookUp(second, low));
      v128.store(p + stride * 2, lookUp(first, high));
      v128.store(p + stride * 3, lookUp(second, high));
      from += 16;
      p += stride << 2;
    }
    to += ldBlock;
  }
}
function bytes1(tables: usize, from: usize, blocks: i32, chunks: i32, to: usize, stride: usize, ldBlock: usize): void {
  const first = v128.load(tables);
  const second = v128.load(tables, 16);
  const third = v128.load(tables, 32);
  const fourth = v128.load(tables, 48);
  const mask = v128.load(NIBBLES);
  for (; blocks > 0; blocks--) {
    let p = to;
    for (let c = 0; c < chunks; c += 8) {
      const x = v128.load(from);
      let n = v128.and(x, mask);
      v128.store(p, lookUp(first, n));
      v128.store(p + stride, lookUp(second, n));
      v128.store(p + stride * 2, lookUp(third, n));
      v128.store(p + stride * 3, lookUp(fourth, n));
      p += stride << 2;
      n = v128.and(i16x8.shr_u(x, 4), mask);
      v128.store(p, lookUp(first, n));
      v128.store(p + stride, lookUp(second, n));
      v128.store(p + stride * 2, lookUp(third, n));
      v128.store(p + stride * 3, lookUp(fourth, n));
      p += stride << 2;
      from += 16;
    }
    to += ldBlock;
  }
}
/** Four chunks at a time: a vector of low bits, and half of one of high bits. */
function bytes3(tables: usize, from: usize, blocks: i32, chunks: i32, to: usize, stride: usize, ldBlock: usize): void {
  const first = v128.load(tables);
  const second = v128.load(tables, 16);
  const lowMask = v128.load(THREES);
  const highMask = v128.load(TWELVES);
  const bytes = <usize>halfBlockBytes(3, chunks << 2);
  const behind = <usize>((chunks + 3) >> 2) << 4;
  for (; blocks > 0; blocks--) {
    let p = to;
    let low = from;
    let high = from + behind;
    for (let c = 0; c < chunks; c += 4) {
      const x = v128.load(low);
      let y = v128.load(high);
      if (c & 4) {
        y = i16x8.shr_u(y, 4);
        high += 16;
      }
      const h = v128.and(i16x8.shl(y, 2), highMask);
      v128.store(p, lookUp(first, v128.or(v128.and(x, lowMask), h)));
      v128.store(p + stride, lookUp(second, v128.or(v128.and(i16x8.shr_u(x, 2), lowMask), h)));
      y = v128.and(y, highMask);
      v128.store(p + stride * 2, lookUp(first, v128.or(v128.and(i16x8.shr_u(x, 4), lowMask), y)));
      v128.store(p + stride * 3, lookUp(second, v128.or(v128.and(i16x8.shr_u(x, 6), lowMask), y)));
      low += 16;
      p += stride << 2;
    }
    from += bytes;
    to += ldBlock;
  }
}
