import {
  chunks, headDim, integer, ldBytes, ldInteger, ldSums, mean, params, qBytes, qFloat, qInteger, queryOffset,
  readsPacked, tile,
} from './attend-tile';
import { COARSE_QUERY, FINE, lanes, largestLane, MAGIC, MAGIC_BITS, TINY } from './half';
import { spread, spreadFine } from './packed-keys';
import { KEY_OFFSET } from './unpack-i8';

/** The tile's queries as attention takes them. */

/** Bytes of queries, spread, and 15-bit integers of 3; headDim <= 512. */
export const SPREAD: usize = memory.data(8192, 16);
export const SPREAD_FINE: usize = memory.data(12288, 16);
/** [4 queries] what packed scores' sums start from, their step, the mean's score: spread, 16 bytes each. */
export const FINISH: usize = memory.data(192, 16);

/**
 * Scaled queries: f32 [query][headDim]; 15-bit integers [4 queries][chunk][query][0, 2, 1, 3]; bytes [4 queries][chunk][query][4].
 * params: [0] and [16] the integers' steps, [20] less the sum of the latter times the offset of unpacked keys.
 */
export function loadQueries(q: usize, ldQ: i32, group: i32, first: i32, scale: f32): void {
  const by = f32x4.splat(scale);
  const magic = v128.load(MAGIC);
  const absolute = i32x4.splat(0x7fffffff);
  for (let i = 0; i < tile; i++) {
    const from = q + queryOffset(first + i, group, ldQ);
    const floats = qFloat + <usize>i * ldSums;
    let top = f32x4.splat(0);
    for (let c: usize = 0; c < ldSums; c += 16) {
      const x = f32x4.mul(v128.load(from + c), by);
      top = f32x4.pmax(top, v128.and(x, absolute));
      v128.store(floats + c, x);
    }
    if (!integer) continue;
    const largest = largestLane(top);
    const some = largest >= TINY;
    const at = params + (<usize>i << 5);
    store<f32>(at, some ? largest / FINE : 0);
    store<f32>(at, some ? largest / COARSE_QUERY : 0, 16);
    const fine = f32x4.splat(some ? FINE / largest : 0);
    const coarse = f32x4.splat(some ? COARSE_QUERY / largest : 0);
    let p = qInteger + <usize>(i >> 2) * ldInteger + (<usize>(i & 3) << 3);
    let b = qBytes + <usize>(i >> 2) * ldBytes + (<usize>(i & 3) << 2);
    let sum = i32x4.splat(0);
    for (let c: usize = 0; c < ldSums; c += 16) {
      const y = v128.load(floats + c);
      const x = f32x4.add(f32x4.mul(y, fine), magic);
      v128.store64_lane(p, v128.shuffle<i16>(x, x, 0, 4, 2, 6, 0, 4, 2, 6), 0);
      p += 32;
      const z = f32x4.add(f32x4.mul(y, coarse), magic);
      sum = i32x4.add(sum, z);
      storeLowBytes(b, z);
      b += 16;
    }
    if (chunks & 1) store<i32>(b, 0);
    const total =
      i32x4.extract_lane(sum, 0) + i32x4.extract_lane(sum, 1) + i32x4.extract_lane(sum, 2) + i32x4.extract_lane(sum, 3);
    store<i32>(at, (headDim * MAGIC_BITS - total) * KEY_OFFSET, 20);
  }
  if (integer && readsPacked()) {
    spread(qBytes, chunks, SPREAD);
    for (let i = 0; i < tile; i++) {
      const at = params + (<usize>i << 5);
      const to = FINISH + <usize>i * 48;
      v128.store(to, v128.load32_splat(at, 20));
      v128.store(to, v128.load32_splat(at, 16), 16);
    }
  }
  if (integer && tile == 3) spreadFine(qInteger, chunks, SPREAD_FINE);
}

/** The lowest byte of each i32 lane. */
// @ts-ignore: decorator
@inline
function storeLowBytes(at: usize, x: v128): void {
  v128.store32_lane(at, v128.shuffle<u8>(x, x, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12), 0);
}

/** params: [4] query . mean. */
export function queryMeans(): void {
  for (let i = 0; i < tile; i++) {
    const q = qFloat + <usize>i * ldSums;
    let sum = f32x4.splat(0);
    for (let c: usize = 0; c < ldSums; c += 16)
      sum = f32x4.add(sum, f32x4.mul(v128.load(q + c), v128.load(mean + c)));
    const score = lanes(sum);
    store<f32>(params + (<usize>i << 5), score, 4);
    if (readsPacked()) v128.store(FINISH + <usize>i * 48, f32x4.splat(score), 32);
  }
}
