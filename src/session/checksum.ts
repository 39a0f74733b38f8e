/*
 * xxHash32 (Yann Collet, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md): 32-bit multiplications only, which JavaScript
 * has (Math.imul), several times the speed of a table-driven CRC there. Each step is a bijection of its accumulator, so that a change within
 * one 32-bit word is always detected; others slip through once in 2^32.
 */
const P1 = 0x9e3779b1 | 0;
const P2 = 0x85ebca77 | 0;
const P3 = 0xc2b2ae3d | 0;
const P4 = 0x27d4eb2f | 0;
const P5 = 0x165667b1 | 0;

const rotl = (x: number, r: number): number => (x << r) | (x >>> (32 - r));

/** xxHash32 of the bytes, as an unsigned integer. Little-endian hosts only, as all JavaScript engines in use are. */
export function checksum(bytes: Uint8Array, seed = 0): number {
  // The words are read through an Int32Array, which must be aligned.
  const data = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
  const length = data.byteLength;
  const words = new Int32Array(data.buffer, data.byteOffset, length >>> 2);
  let h: number;
  let i = 0;
  if (length >= 16) {
    const lanes = Int32Array.of(seed + P1 + P2, seed + P2, seed, seed - P1);
    for (const end = words.length & ~3; i < end; i += PIECE)
      addWords(lanes, words, i, Math.min(i + PIECE, end));
    i = words.length & ~3;
    h = (rotl(lanes[0]!, 1) + rotl(lanes[1]!, 7) + rotl(lanes[2]!, 12) + rotl(lanes[3]!, 18)) | 0;
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

/** Words that the loop takes at a time: a function that is called often is compiled once and well, one long loop while it runs. */
const PIECE = 256;

/** Takes words [from, to), a multiple of four, into the accumulators. */
function addWords(lanes: Int32Array, words: Int32Array, from: number, to: number): void {
  let a = lanes[0]!;
  let b = lanes[1]!;
  let c = lanes[2]!;
  let d = lanes[3]!;
  for (let i = from; i < to; i += 4) {
    a = Math.imul(rotl((a + Math.imul(words[i]!, P2)) | 0, 13), P1);
    b = Math.imul(rotl((b + Math.imul(words[i + 1]!, P2)) | 0, 13), P1);
    c = Math.imul(rotl((c + Math.imul(words[i + 2]!, P2)) | 0, 13), P1);
    d = Math.imul(rotl((d + Math.imul(words[i + 3]!, P2)) | 0, 13), P1);
  }
  lanes[0] = a;
  lanes[1] = b;
  lanes[2] = c;
  lanes[3] = d;
}
