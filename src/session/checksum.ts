/*
 * xxHash32 (Yann Collet, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md): 32-bit multiplications only, which JavaScript
 * has (Math.imul), several times the speed of a table-driven CRC there. Each step is a bijection of its accumulator, so that a change within
 * one 32-bit word is always detected; others slip through once in 2^32.
 */
const P1 = 0x9e3779b1;
const P2 = 0x85ebca77;
const P3 = 0xc2b2ae3d;
const P4 = 0x27d4eb2f;
const P5 = 0x165667b1;

const rotl = (x: number, r: number): number => (x << r) | (x >>> (32 - r));

/** xxHash32 of the bytes, as an unsigned integer. Little-endian hosts only, as all JavaScript engines in use are. */
export function checksum(bytes: Uint8Array, seed = 0): number {
  // The words are read through a Uint32Array, which must be aligned.
  const data = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
  const length = data.byteLength;
  const words = new Uint32Array(data.buffer, data.byteOffset, length >>> 2);
  let h: number;
  let i = 0;
  if (length >= 16) {
    let a = (seed + P1 + P2) | 0;
    let b = (seed + P2) | 0;
    let c = seed | 0;
    let d = (seed - P1) | 0;
    for (const end = words.length - 3; i < end; i += 4) {
      a = Math.imul(rotl((a + Math.imul(words[i]!, P2)) | 0, 13), P1);
      b = Math.imul(rotl((b + Math.imul(words[i + 1]!, P2)) | 0, 13), P1);
      c = Math.imul(rotl((c + Math.imul(words[i + 2]!, P2)) | 0, 13), P1);
      d = Math.imul(rotl((d + Math.imul(words[i + 3]!, P2)) | 0, 13), P1);
    }
    h = (rotl(a, 1) + rotl(b, 7) + rotl(c, 12) + rotl(d, 18)) | 0;
  } else {
    h = (seed + P5) | 0;
  }
  h = (h + length) | 0;
  for (; i < words.length; i++) h = Math.imul(rotl((h + Math.imul(words[i]!, P3)) | 0, 17), P4);
  for (let j = i * 4; j < length; j++) h = Math.imul(rotl((h + Math.imul(data[j]!, P5)) | 0, 11), P1);
  h = Math.imul(h ^ (h >>> 15), P2);
  h = Math.imul(h ^ (h >>> 13), P3);
  return (h ^ (h >>> 16)) >>> 0;
}
