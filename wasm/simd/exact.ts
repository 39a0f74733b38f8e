import { storeHalves, toF16x4 } from './half';

const SIGNS: usize = memory.data<u32>([0, 0x80000000, 0, 0x80000000, 0, 0, 0x80000000, 0x80000000], 16);

/** Orthonormal Hadamard rotation in place, blocks of `size` (>= 4); steps in the reference's order. */
export function hadamard(x: usize, ldX: i32, rows: i32, width: i32, size: i32, norm: f32): void {
  const sign1 = v128.load(SIGNS);
  const sign2 = v128.load(SIGNS, 16);
  const scale = f32x4.splat(norm);
  const one = f32x4.splat(1);
  const bytes = <usize>size << 2;
  for (let row = 0; row < rows; row++) {
    const end = x + (<usize>width << 2);
    for (let block = x; block < end; block += bytes) {
      const blockEnd = block + bytes;
      for (let p = block; p < blockEnd; p += 16) {
        let v = v128.load(p);
        v = f32x4.add(
          v128.shuffle<f32>(v, v, 0, 0, 2, 2),
          v128.xor(v128.shuffle<f32>(v, v, 1, 1, 3, 3), sign1),
        );
        v = f32x4.add(
          v128.shuffle<f32>(v, v, 0, 1, 0, 1),
          v128.xor(v128.shuffle<f32>(v, v, 2, 3, 2, 3), sign2),
        );
        v128.store(p, v);
      }
      // Two steps at a time while two are left; the last pass scales.
      let step: usize = 16;
      for (; step << 1 < bytes; step <<= 2) twoSteps(block, blockEnd, step, (step << 2) == bytes ? scale : one);
      if (step < bytes) {
        for (let i = block; i < block + step; i += 16) {
          const a = v128.load(i);
          const b = v128.load(i + step);
          v128.store(i, f32x4.mul(f32x4.add(a, b), scale));
          v128.store(i + step, f32x4.mul(f32x4.sub(a, b), scale));
        }
      } else if (bytes == 16) v128.store(block, f32x4.mul(v128.load(block), scale));
    }
    x += <usize>ldX << 2;
  }
}

/** Steps `step` and 2 `step` (bytes) of every 4 `step`, then times `scale`. */
// @ts-ignore: decorator
@inline
function twoSteps(block: usize, end: usize, step: usize, scale: v128): void {
  for (let p = block; p < end; p += step << 2)
    for (let i: usize = p; i < p + step; i += 16) {
      const a = v128.load(i);
      const b = v128.load(i + step);
      const c = v128.load(i + step * 2);
      const d = v128.load(i + step * 3);
      const sum = f32x4.add(a, b);
      const difference = f32x4.sub(a, b);
      const sum2 = f32x4.add(c, d);
      const difference2 = f32x4.sub(c, d);
      v128.store(i, f32x4.mul(f32x4.add(sum, sum2), scale));
      v128.store(i + step, f32x4.mul(f32x4.add(difference, difference2), scale));
      v128.store(i + step * 2, f32x4.mul(f32x4.sub(sum, sum2), scale));
      v128.store(i + step * 3, f32x4.mul(f32x4.sub(difference, difference2), scale));
    }
}

/** One half: x f32 [rows][kvHeads][headDim], rows ldX apart -> [kvHeads] sections `ldHead` bytes apart, [rows][headDim]. */
export function appendHalf(
  x: usize,
  ldX: i32,
  rows: i32,
  kvHeads: i32,
  headDim: i32,
  bits: i32,
  to: usize,
  ldHead: usize,
): void {
  const rowBytes = <usize>(headDim * bits) >> 3;
  for (let row = 0; row < rows; row++) {
    let from = x;
    for (let h = 0; h < kvHeads; h++) {
      let p = to + <usize>h * ldHead;
      if (bits == 32) memory.copy(p, from, rowBytes);
      else
        for (let c: usize = 0; c < <usize>headDim << 2; c += 16) {
          storeHalves(p, toF16x4(v128.load(from + c)));
          p += 8;
        }
      from += <usize>headDim << 2;
    }
    x += <usize>ldX << 2;
    to += rowBytes;
  }
}

/** floor((m * numerator + 2^15) / 2^16) of count u16. */
export function decayMass(mass: usize, count: i32, numerator: u32): void {
  for (let i = 0; i < count; i++) {
    store<u16>(mass, <u16>((<u32>load<u16>(mass) * numerator + 0x8000) >> 16));
    mass += 2;
  }
}

/** Overlapping move to a lower address. */
export function moveBytes(to: usize, from: usize, bytes: usize): void {
  memory.copy(to, from, bytes);
}
