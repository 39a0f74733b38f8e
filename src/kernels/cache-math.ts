import { InvalidInputError } from '../core/errors.ts';
import {
  type Bits,
  CODEBOOK_UNIT,
  CODEBOOKS,
  DROP,
  halfBlockBytes,
  pad4,
  recordParts,
  SCALE_STEPS,
  SCALE_TABLE,
  scaleBytes,
  TIERS,
  type Tier,
  UNIT_INVERSE,
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

/** The float16 bits of the smallest finite value that is not below x >= 0. */
export function toF16Up(x: number): number {
  const h = toF16(x);
  return h < 0x7bff && fromF16(h) < x ? h + 1 : h;
}

/** To the nearest integer, ties to even; |x| < 2^22. */
export const nearest = (x: number): number => f(f(x) + 12582912) - 12582912;

/** Sixteen partial sums (by channel mod 16) as four. */
const fold = (s: ArrayLike<number>): number[] =>
  [0, 1, 2, 3].map((l) => f(f(s[l]! + s[l + 4]!) + f(s[l + 8]! + s[l + 12]!)));

/** Sum of four partial sums, in the order of a vector's reduction. */
export const lanes = (l: ArrayLike<number>): number => f(f(l[0]! + l[1]!) + f(l[2]! + l[3]!));

export const LOG2E = f(Math.LOG2E);
/** 2^r = 1 + r (a + b r + c r^2 + d r^3 + e r^4) for |r| <= 1/2: the minimax polynomial of relative error, from e to a. */
const POWER_POLY = [1.326472731e-3, 9.671512991e-3, 5.550733581e-2, 2.402224243e-1, 6.931470037e-1].map(f);
/** Below this a power of 2 is 0: softmax weights under 2.4e-38 do not exist. */
const LEAST_POWER = -125;

/** 2^x for x <= 0, within 2e-7 relative. */
export function powerOf2(x: number): number {
  if (!(x >= LEAST_POWER)) return 0;
  const k = nearest(x);
  const r = f(x - k);
  const square = f(r * r);
  const [e, d, c, b, a] = POWER_POLY as [number, number, number, number, number];
  let y = f(f(f(e * r) + d) * square);
  y = f(f(y + f(f(c * r) + b)) * square);
  y = f(y + f(f(a * r) + 1));
  return f(y * bitsFloat((k + 127) << 23));
}

/** Largest integer of a quantised query or weight: products with 7-bit levels over 512 channels stay within int32. */
export const FINE = 32767;
/** Of a weight that meets values of 1 to 4 bits. */
export const COARSE = 127;
/** Of a query that meets keys of 2 to 4 bits: kernels sum two pairs of products, each at most 2 * 63 * 124, as 16-bit integers. */
export const COARSE_QUERY = 63;
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
export function levelOf({ plain }: Tier, bits: Bits, code: number): number {
  if (bits === 8) return (code << 24) >> 24;
  return plain ? code - 8 : CODEBOOKS[bits as PackedBits][code]!;
}

/** Where the nearest scale changes within an octave: float32 of 2^((j + 1/2) / SCALE_STEPS). */
export const SCALE_EDGES: Float32Array = Float32Array.from(
  { length: SCALE_STEPS },
  (_, j) => 2 ** ((j + 0.5) / SCALE_STEPS),
);
/** Below this times the base a vector is held as zero. */
export const LEAST_SCALE = f(SCALE_TABLE[1]! / 2);

/** The nearest code of one standard deviation under `base`, both float32; saturates. */
export function scaleCode(deviation: number, base: number): number {
  const ratio = base > 0 ? f(deviation / base) : 0;
  if (!(ratio >= LEAST_SCALE)) return 0;
  if (ratio >= 1) return 255;
  const bits = floatBits(ratio);
  const mantissa = bitsFloat((bits & 0x7fffff) | 0x3f800000);
  let step = 0;
  for (const edge of SCALE_EDGES) if (mantissa >= edge) step++;
  return Math.max(255 + SCALE_STEPS * ((bits >>> 23) - 127) + step, 1);
}
/** The scale that a code of `bits` stands for. */
export const scaleOf = (bits: PackedBits, code: number, base: number): number =>
  f(f(base * SCALE_TABLE[code]!) * UNIT_INVERSE[bits]);

/** Sum of squares, in the order of a vector's reduction. */
export function sumOfSquares(x: Float32Array): number {
  const squares = new Float32Array(16);
  for (let i = 0; i < x.length; i++) squares[i & 15] = squares[i & 15]! + f(x[i]! * x[i]!);
  return lanes(fold(squares));
}
/** The f16 bits of the base for vectors of n channels whose largest sum of squares is `squares`. */
export const baseOf = (squares: number, n: number): number =>
  squares >= TINY && squares < Infinity ? toF16Up(f(2 * f(Math.sqrt(f(squares / n))))) : 0;

/**
 * Quantiser U: nearest levels of x / rms(x), and the scale s = |x|^2 / <x, levels>, which keeps <decoded, x> = |x|^2.
 * x float32 [headDim], codes u8 [headDim] out. `base` float32; 8 bits need none.
 * @returns 8 bits: the scale's float16 bits; else its code. 0 for a zero vector.
 */
export function quantise(bits: 1 | 2 | 3 | 4 | 8, x: Float32Array, codes: Uint8Array, base: number): number {
  const n = x.length;
  const products = new Float32Array(16);
  let largest = 0;
  for (let i = 0; i < n; i++) largest = Math.max(largest, Math.abs(x[i]!));
  const xx = sumOfSquares(x);
  if (!(xx >= TINY && xx < Infinity)) {
    codes.fill(0);
    return 0;
  }
  const level = (code: number): number =>
    bits === 8 ? (code << 24) >> 24 : CODEBOOKS[bits as PackedBits][code]!;
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
  for (let i = 0; i < n; i++) products[i & 15] = products[i & 15]! + f(x[i]! * level(codes[i]!));
  const scale = f(xx / lanes(fold(products)));
  return bits === 8 ? toF16(scale) : scaleCode(f(scale * f(CODEBOOK_UNIT[bits])), base);
}

/**
 * GGML's q8_0 and q4_0 on channels of one group: q8_0 d = max|x| / 127; q4_0 d = (the x of largest magnitude) / -8, codes of 8 + x / d,
 * rounded half up. Codes are made with the unrounded d, as there.
 * @returns the float16 bits of d
 */
export function quantisePlain(bits: 4 | 8, x: Float32Array, codes: Uint8Array): number {
  let top = 0;
  for (const value of x) if (Math.abs(value) > Math.abs(top)) top = value;
  const d = bits === 8 ? f(Math.abs(top) / 127) : f(top / -8);
  const inverse = d === 0 ? 0 : f(1 / d);
  for (let i = 0; i < x.length; i++) {
    const y = f(x[i]! * inverse);
    // roundf, away from zero; the sum with a half is exact enough: |y| <= 127.
    if (bits === 8) codes[i] = y < 0 ? -Math.floor(f(0.5 - y)) : Math.floor(f(y + 0.5));
    else codes[i] = Math.min(15, Math.floor(f(y + 8.5)));
  }
  return toF16(d);
}

/** What a query head adds to p * mass before rounding: -1/2 .. 1/2, spread evenly over consecutive `index`es (position * heads + head). */
export const massDither = (index: number): number => f(f(Math.imul(index, 0x9e3779b9)) * 2 ** -32);

/**
 * What is added to a COARSE weight, in units of its step, before it is rounded, so that small weights count in the mean: -15/32 .. 15/32,
 * spread evenly over a record's cells, from a place that the query's `index` (position * heads + head) gives.
 */
export const weightDither = (index: number, cell: number): number =>
  f(massDither((Math.imul(index, 0x9e3779b9) >>> 26) + cell) * 0.9375);

/** One tier's cells within a record; addresses are byte offsets from the record's start. */
export interface TierGroup extends Tier {
  /** Tokens, and cells with padding. */
  readonly n: number;
  readonly n4: number;
  /** Index of the first cell within the record. */
  readonly cell: number;
  /** Where scales start, and bytes of a cell's (0: none). */
  readonly kScale: number;
  readonly vScale: number;
  readonly kScaleBytes: number;
  readonly vScaleBytes: number;
  readonly k: number;
  readonly v: number;
}

/** The groups of a record whose tokens fall into tiers as `counts[tierId]`, in stored order. */
export function tierGroups(counts: ArrayLike<number>, tokens: number, headDim: number): TierGroup[] {
  const groups: TierGroup[] = [];
  const parts = recordParts(tokens, counts, headDim);
  let scale = parts.scales;
  let at = parts.codes;
  let cell = 0;
  for (const tier of TIERS) {
    const n = counts[tier.id] ?? 0;
    if (n === 0) continue;
    const n4 = pad4(n);
    const kScaleBytes = scaleBytes(tier, tier.kBits, headDim);
    const vScaleBytes = scaleBytes(tier, tier.vBits, headDim);
    const kScale = scale;
    const vScale = kScale + n4 * kScaleBytes;
    scale = vScale + n4 * vScaleBytes;
    const k = at;
    const v = k + (n4 / 4) * halfBlockBytes(tier.kBits, headDim);
    at = v + (n4 / 4) * halfBlockBytes(tier.vBits, headDim);
    groups.push({ ...tier, n, n4, cell, kScale, vScale, kScaleBytes, vScaleBytes, k, v });
    cell += n4;
  }
  return groups;
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

/** @throws InvalidInputError if plain tiers stand beside others: a head's vectors are rotated or they are not. */
export function checkNotMixed(tiers: Uint8Array): void {
  let plain = 0;
  let kept = 0;
  for (const id of tiers) {
    if (id === DROP) continue;
    kept++;
    if (TIERS[id]!.plain) plain++;
  }
  if (plain > 0 && plain < kept)
    throw new InvalidInputError('tiers of rotated and of plain vectors cannot share a record', 'tiers');
}

/** @throws InvalidInputError if a token's new tier is finer than its old one, or one of them alone is plain: the bits are gone. */
export function checkNeverFiner(before: Uint8Array, after: Uint8Array): void {
  for (const [token, was] of before.entries()) {
    const now = after[token]!;
    const apart = was !== now && now !== DROP && (TIERS[was]?.plain || TIERS[now]?.plain);
    if (now < was || apart)
      throw new InvalidInputError(
        `token ${token} of a record cannot go from tier ${was} to ${now}`,
        'tiers',
        {
          token,
          before: was,
          after: now,
        },
      );
  }
}
