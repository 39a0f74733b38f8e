import { InvalidInputError } from '../core/errors.ts';
import {
  type Bits,
  CODEBOOK_UNIT,
  CODEBOOKS,
  DROP,
  halfBlockBytes,
  pad4,
  recordFixedBytes,
  TIERS,
} from './layout.ts';

/**
 * Scalar arithmetic of the cache kernels, in float32 steps (`f`), so that vector implementations can give the same bits:
 * every operation below is one IEEE float32 operation, in the order written.
 */
const f = Math.fround;

const float = new Float32Array(1);
const word = new Int32Array(float.buffer);
const floatBits = (x: number): number => {
  float[0] = x;
  return word[0]!;
};
const bitsFloat = (b: number): number => {
  word[0] = b;
  return float[0]!;
};

/** float32 -> float16 bits, to nearest even; saturates at 65504 (NaN too), so that no infinity enters the cache. */
export function toF16(x: number): number {
  const bits = floatBits(x);
  const sign = (bits >>> 16) & 0x8000;
  const a = Math.min(bits & 0x7fffffff, 0x477fe000);
  if (a < 0x38800000) return sign | (floatBits(bitsFloat(a) + 0.5) - 0x3f000000);
  return sign | ((a - 0x38000000 + 0xfff + ((a >>> 13) & 1)) >>> 13);
}

/** float16 bits -> float32, exact. Infinities do not occur: `toF16` saturates. */
export function fromF16(h: number): number {
  const a = bitsFloat((h & 0x7fff) << 13) * 2 ** 112;
  return h & 0x8000 ? -a : a;
}

/** To the nearest integer, ties to even; |x| < 2^22. */
export const nearest = (x: number): number => f(f(x) + 12582912) - 12582912;

/** Sixteen partial sums (by channel mod 16) as four. */
const fold = (s: ArrayLike<number>): number[] =>
  [0, 1, 2, 3].map((l) => f(f(s[l]! + s[l + 4]!) + f(s[l + 8]! + s[l + 12]!)));

/** Sum of four partial sums, in the order of a vector's reduction. */
export const lanes = (l: ArrayLike<number>): number => f(f(l[0]! + l[1]!) + f(l[2]! + l[3]!));

const LOG2E = f(Math.LOG2E);
/** ln 2 in two parts; the first has 9 significant bits, so that k * LN2_HIGH is exact. */
const LN2_HIGH = f(0.693359375);
const LN2_LOW = f(-2.1219444e-4);
const EXP_POLY = [
  1.98756915e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1,
].map(f);
/** Below this exp is 0: softmax weights under 1.7e-38 do not exist. */
export const EXP_FLOOR = -87;

/** exp(x) for x <= 0, within 1.5e-7 relative (polynomial of Cephes' expf). */
export function expNonPositive(x: number): number {
  if (!(x >= EXP_FLOOR)) return 0;
  const k = nearest(f(x * LOG2E));
  const r = f(f(x - f(k * LN2_HIGH)) - f(k * LN2_LOW));
  const [a, b, c, d, e, g] = EXP_POLY as [number, number, number, number, number, number];
  const square = f(r * r);
  let y = f(f(f(f(a * r) + b) * square) + f(f(c * r) + d));
  y = f(f(y * square) + f(f(e * r) + g));
  y = f(f(y * square) + f(r + 1));
  return f(y * bitsFloat((k + 127) << 23));
}

/** Largest integer of a quantised query or weight: products with 7-bit levels over 512 channels stay within int32. */
export const FINE = 32767;
/** Vectors whose squares sum to less are held as zero. */
export const TINY = f(1e-30);

type PackedBits = 1 | 2 | 3 | 4;
/** Twice the midpoints between the positive levels: integers. */
export const THRESHOLDS: Readonly<Record<PackedBits, readonly number[]>> = Object.fromEntries(
  ([1, 2, 3, 4] as const).map((bits) => {
    const positive = CODEBOOKS[bits].slice(1 << (bits - 1));
    return [bits, positive.slice(1).map((level, i) => level + positive[i]!)];
  }),
) as unknown as Record<PackedBits, readonly number[]>;

/** The integer level of a code byte. */
export const levelOf = (bits: Bits, code: number): number =>
  bits === 8 ? (code << 24) >> 24 : CODEBOOKS[bits as PackedBits][code]!;

/**
 * Quantiser U: nearest levels of x / rms(x), and the scale s = |x|^2 / <x, levels>, which keeps <decoded, x> = |x|^2.
 * x float32 [headDim], codes u8 [headDim] out. @returns the scale's float16 bits, 0 for a zero vector.
 */
export function quantise(bits: 1 | 2 | 3 | 4 | 8, x: Float32Array, codes: Uint8Array): number {
  const n = x.length;
  const squares = new Float32Array(16);
  const products = new Float32Array(16);
  let largest = 0;
  for (let i = 0; i < n; i++) {
    squares[i & 15] = squares[i & 15]! + f(x[i]! * x[i]!);
    largest = Math.max(largest, Math.abs(x[i]!));
  }
  const xx = lanes(fold(squares));
  if (!(xx >= TINY && xx < Infinity)) {
    codes.fill(0);
    return 0;
  }
  if (bits === 8) {
    const inverse = f(127 / largest);
    for (let i = 0; i < n; i++) codes[i] = nearest(f(x[i]! * inverse));
  } else {
    const half = 1 << (bits - 1);
    const thresholds = THRESHOLDS[bits];
    const inverse = f(f(2 * CODEBOOK_UNIT[bits]) / f(Math.sqrt(f(xx / n))));
    for (let i = 0; i < n; i++) {
      const a = f(Math.abs(x[i]!) * inverse);
      let above = 0;
      for (const t of thresholds) if (a > t) above++;
      codes[i] = x[i]! > 0 ? half + above : half - 1 - above;
    }
  }
  for (let i = 0; i < n; i++) products[i & 15] = products[i & 15]! + f(x[i]! * levelOf(bits, codes[i]!));
  return toF16(f(xx / lanes(fold(products))));
}

/** One tier's cells within a record; addresses are byte offsets from the record's start, 0 where there is no scale. */
export interface TierGroup {
  readonly id: number;
  readonly kBits: Bits;
  readonly vBits: Bits;
  /** Tokens, and cells with padding. */
  readonly n: number;
  readonly n4: number;
  /** Index of the first cell within the record. */
  readonly cell: number;
  readonly kScale: number;
  readonly vScale: number;
  readonly k: number;
  readonly v: number;
}

export const TIER_MAP_AT = 16;
export const meanAt = (tokens: number): number => 16 + ((Math.ceil(tokens / 2) + 15) & ~15);

/** The groups of a record whose tokens fall into tiers as `counts[tierId]`, in stored order. */
export function tierGroups(counts: ArrayLike<number>, tokens: number, headDim: number): TierGroup[] {
  const groups: TierGroup[] = [];
  let at = recordFixedBytes(tokens, headDim);
  let cell = 0;
  for (const { id, kBits, vBits } of TIERS) {
    const n = counts[id] ?? 0;
    if (n === 0) continue;
    const n4 = pad4(n);
    const scaleBytes = (n4 * 2 + 15) & ~15;
    const kScale = kBits <= 8 ? at : 0;
    if (kScale) at += scaleBytes;
    const vScale = vBits <= 8 ? at : 0;
    if (vScale) at += scaleBytes;
    const k = at;
    at += (n4 / 4) * halfBlockBytes(kBits, headDim);
    const v = at;
    at += (n4 / 4) * halfBlockBytes(vBits, headDim);
    groups.push({ id, kBits, vBits, n, n4, cell, kScale, vScale, k, v });
    cell += n4;
  }
  return groups;
}

/** Tokens by tier id; dropped ones are not counted, as in a record's header. */
export function countTiers(tiers: Uint8Array): Uint8Array {
  const counts = new Uint8Array(16);
  for (const id of tiers) if (id !== DROP) counts[id]!++;
  return counts;
}

/** Position of a packed code within its half block: byte, bit and, for 3 bits, the second place of the high bit. */
export function codeByte(half: 'k' | 'v', token: number, channel: number): number {
  const within = channel & 3;
  return half === 'k' ? token * 4 + within : within * 4 + token;
}

/** Reads or writes one code of a half block that starts at `at`. */
export function readCode(
  u8: Uint8Array,
  at: number,
  half: 'k' | 'v',
  bits: Bits,
  headDim: number,
  token: number,
  channel: number,
): number {
  const chunk = channel >> 2;
  const byte = codeByte(half, token, channel);
  if (bits === 8) return u8[at + chunk * 16 + byte]!;
  if (bits === 3) {
    const high = at + Math.ceil(headDim / 16) * 16;
    return (
      readCode(u8, at, half, 2, headDim, token, channel) |
      (readCode(u8, high, half, 1, headDim, token, channel) << 2)
    );
  }
  const perVector = 8 / bits;
  const vector = Math.floor(chunk / perVector);
  return (u8[at + vector * 16 + byte]! >> ((chunk % perVector) * bits)) & ((1 << bits) - 1);
}

/** The block must have been zeroed. */
export function writeCode(
  u8: Uint8Array,
  at: number,
  half: 'k' | 'v',
  bits: Bits,
  headDim: number,
  token: number,
  channel: number,
  code: number,
): void {
  const chunk = channel >> 2;
  const byte = codeByte(half, token, channel);
  if (bits === 8) {
    u8[at + chunk * 16 + byte] = code;
  } else if (bits === 3) {
    writeCode(u8, at, half, 2, headDim, token, channel, code & 3);
    writeCode(u8, at + Math.ceil(headDim / 16) * 16, half, 1, headDim, token, channel, code >> 2);
  } else {
    const perVector = 8 / bits;
    u8[at + Math.floor(chunk / perVector) * 16 + byte]! |= code << ((chunk % perVector) * bits);
  }
}

/** @throws InvalidInputError if a token's new tier is finer than its old one: the bits are gone. */
export function checkNeverFiner(u8: Uint8Array, record: number, tokens: number, tiers: number): void {
  for (let t = 0; t < tokens; t++) {
    const before = (u8[record + TIER_MAP_AT + (t >> 1)]! >> ((t & 1) * 4)) & 15;
    if (u8[tiers + t]! < before)
      throw new InvalidInputError(
        `token ${t} of a record cannot go from tier ${before} to ${u8[tiers + t]}`,
        'tiers',
        {
          token: t,
          before,
          after: u8[tiers + t],
        },
      );
  }
}
