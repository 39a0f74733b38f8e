import { describe, expect, it } from 'vitest';
import type { Arena, Ptr } from '../../src/core/arena.ts';
import { fromF16, tierGroups, toF16 } from '../../src/kernels/cache-math.ts';
import type { ExactRef } from '../../src/kernels/kernels.ts';
import {
  DROP,
  exactBytes,
  exactKAt,
  exactMassAt,
  exactVAt,
  halfBlockBytes,
  recordBytes,
  recordCells,
  recordParts,
  recordTiers,
  SCALE_TABLE,
  TIERS,
  tierNamed,
} from '../../src/kernels/layout.ts';
import type { CacheKernels } from '../../src/kernels/reference-cache.ts';
import { f32At, normals, put, TIER_NAMES, u8At, u16At } from './cache-cases.ts';
import { CACHE_IMPLEMENTATIONS, type CacheImplementation } from './cache-implementations.ts';

const GUARD = 64;

interface Held {
  readonly arena: Arena;
  readonly kernels: CacheKernels;
  readonly exact: ExactRef;
  readonly k: Float32Array;
  readonly v: Float32Array;
}
type Make = CacheImplementation['make'];

/** An exact part of `tokens` slots after 3 others; keys have a mean, some vectors are zero or tiny. */
function hold(make: Make, tokens: number, headDim: number, bits: 16 | 32, kvHeads = 2): Held {
  const { arena, kernels } = make();
  const shape = { kvHeads, headDim, capacity: tokens + 8, bits, mass: true };
  const exact: ExactRef = { ptr: arena.ptr(arena.alloc(exactBytes(shape))), ...shape };
  const width = kvHeads * headDim;
  const offset = normals(width, 5, 2);
  const k = normals((tokens + 3) * width, 6).map((x, i) => x + offset[i % width]!);
  const v = normals((tokens + 3) * width, 7);
  if (tokens > 8) {
    v.fill(0, 5 * width, 6 * width);
    for (let i = 6 * width; i < 7 * width; i++) v[i] = v[i]! * 1e-5;
  }
  const [kAt, vAt] = [put(arena, k), put(arena, v)];
  kernels.appendExact(exact, 0, tokens + 3, kAt, vAt, width);
  for (let h = 0; h < kvHeads; h++)
    for (let s = 0; s < tokens + 3; s++)
      u16At(arena, exact.ptr + exactMassAt(exact, h), tokens + 3)[s] = 1000 * h + s;
  return { arena, kernels, exact, k, v };
}

const exactValues = ({ arena, exact }: Held, half: 'k' | 'v', kvHead: number, slot: number): Float32Array => {
  const at = exact.ptr + (half === 'k' ? exactKAt : exactVAt)(exact, kvHead);
  const n = exact.headDim;
  return exact.bits === 32
    ? f32At(arena, at + slot * n * 4, n)
    : Float32Array.from(new Uint16Array(arena.memory.buffer, at + slot * n * 2, n), fromF16);
};
const countsOf = (tiers: Uint8Array): Uint8Array => {
  const counts = new Uint8Array(16);
  for (const id of tiers) if (id !== DROP) counts[id]!++;
  return counts;
};

/** Encodes slots 3.. of kvHead 1 with guard bytes around the outputs. */
function encode(held: Held, tiers: Uint8Array): { record: Ptr; bytes: number; mass: Ptr; cells: number } {
  const { arena, kernels, exact } = held;
  const counts = countsOf(tiers);
  const bytes = recordBytes(tiers.length, counts, exact.headDim);
  const cells = recordCells(counts);
  const area = arena.ptr(arena.alloc(bytes + 2 * GUARD));
  const massArea = arena.ptr(arena.alloc(cells * 2 + 2 * GUARD));
  u8At(arena, area, bytes + 2 * GUARD).fill(0xa5);
  u8At(arena, massArea, cells * 2 + 2 * GUARD).fill(0xa5);
  const size = kernels.encodeRecord(
    exact,
    1,
    3,
    tiers.length,
    put(arena, tiers),
    area + GUARD,
    massArea + GUARD,
  );
  expect(size).toBe(bytes);
  for (const at of [area, area + GUARD + bytes, massArea, massArea + GUARD + cells * 2])
    expect([...u8At(arena, at, GUARD)]).toEqual(Array(GUARD).fill(0xa5));
  return { record: area + GUARD, bytes, mass: massArea + GUARD, cells };
}
function decode(held: Held, record: Ptr, tokens: number): { k: Float32Array; v: Float32Array } {
  const { arena, kernels, exact } = held;
  const n = tokens * exact.headDim;
  const [k, v] = [arena.ptr(arena.alloc(n * 4)), arena.ptr(arena.alloc(n * 4))];
  kernels.decodeRecord(record, tokens, exact.headDim, k, v);
  return { k: f32At(arena, k, n).slice(), v: f32At(arena, v, n).slice() };
}

/** Lloyd-Max levels of N(0,1) and their midpoints, by Lloyd's iteration over quantiles of the normal distribution. */
function lloydMax(bits: number): { levels: number[]; midpoints: number[] } {
  const count = 20000;
  const x = Float64Array.from({ length: count }, (_, i) => quantile((i + 0.5) / count));
  const k = 1 << bits;
  let levels = Array.from({ length: k }, (_, i) => quantile((i + 0.5) / k));
  const mid = () => levels.slice(1).map((c, i) => (c + levels[i]!) / 2);
  for (let round = 0; round < 300; round++) {
    const edges = mid();
    const sums = new Float64Array(k);
    const n = new Float64Array(k);
    let at = 0;
    for (const value of x) {
      while (at < k - 1 && value > edges[at]!) at++;
      sums[at]! += value;
      n[at]!++;
    }
    levels = levels.map((c, i) => (n[i] ? sums[i]! / n[i]! : c));
  }
  return { levels, midpoints: mid() };
}
/** Inverse of the normal distribution by bisection on a series for erf. */
function quantile(p: number): number {
  let [low, high] = [-7, 7];
  for (let i = 0; i < 50; i++) {
    const x = (low + high) / 2;
    if (normalCdf(x) < p) low = x;
    else high = x;
  }
  return (low + high) / 2;
}
function normalCdf(x: number): number {
  let [sum, term] = [x, x];
  for (let n = 1; Math.abs(term) > 1e-17 && n < 200; n++) {
    term *= (x * x) / (2 * n + 1);
    sum += term;
  }
  return 0.5 + (sum * Math.exp((-x * x) / 2)) / Math.sqrt(2 * Math.PI);
}
/** The study's quantiser `lm64u` on one vector: float levels, unbiased float16 scale. */
function studyQuantiser(x: Float32Array, levels: number[], midpoints: number[]): Float64Array {
  const rms = Math.sqrt(x.reduce((s, y) => s + y * y, 0) / x.length);
  const c = Float64Array.from(x, (y) => levels[midpoints.filter((m) => m < y / rms).length]!);
  const xx = x.reduce((s, y) => s + y * y, 0);
  const xc = x.reduce((s, y, i) => s + y * c[i]!, 0);
  const scale = fromF16(toF16(xx / xc));
  return c.map((level) => level * scale);
}

describe('float16', () => {
  it('converts to nearest even and back, saturating; all 63,488 finite values survive', () => {
    for (let h = 0; h < 65536; h++) {
      if ((h & 0x7c00) === 0x7c00) continue;
      expect(toF16(fromF16(h))).toBe(h);
    }
    expect(toF16(1 + 2 ** -11)).toBe(0x3c00);
    expect(toF16(1 + 3 * 2 ** -11)).toBe(0x3c02);
    expect(toF16(2 ** -25)).toBe(0);
    expect(toF16(1.5 * 2 ** -24)).toBe(2);
    for (const big of [65519, 65520, 1e30, Infinity]) expect(fromF16(toF16(-big))).toBe(-65504);
  });
});

describe.each(CACHE_IMPLEMENTATIONS)('records ($name)', ({ make }) => {
  const shapes = [
    [64, 60, 16],
    [64, 128, 16],
    [64, 1, 16],
    [16, 127, 32],
    [8, 5, 16],
    [12, 30, 32],
    [80, 17, 16],
  ] as const;

  it.each(shapes)(
    'headDim %i, %i tokens, f%i exact: halves hold what their tier says',
    (headDim, tokens, bits) => {
      for (const { id, kBits, vBits, plain } of TIERS) {
        if (plain) continue;
        const held = hold(make, tokens, headDim, bits);
        const { record } = encode(held, new Uint8Array(tokens).fill(id));
        const decoded = decode(held, record, tokens);
        for (const [half, b] of [
          ['k', kBits],
          ['v', vBits],
        ] as const) {
          let [error, power] = [0, 0];
          const mean = new Float64Array(headDim);
          if (half === 'k')
            for (let t = 0; t < tokens; t++)
              exactValues(held, 'k', 1, 3 + t).forEach((x, c) => {
                mean[c]! += x / tokens;
              });
          for (let t = 0; t < tokens; t++) {
            const x = exactValues(held, half, 1, 3 + t);
            for (let c = 0; c < headDim; c++) {
              const y = decoded[half][t * headDim + c]!;
              const expected = b === 32 ? x[c]! : b === 16 ? fromF16(toF16(x[c]!)) : undefined;
              if (expected !== undefined) expect(y).toBe(expected);
              error += (y - x[c]!) ** 2;
              power += (x[c]! - mean[c]!) ** 2;
            }
          }
          // Distortion of the unbiased quantiser on normal values (Max 1960: .0095, .0345, .1175, .3634), over 1 - D
          // for the unbiased scale; short vectors have heavier error.
          const bound = { 32: 0, 16: 1e-6, 8: 2e-4, 4: 0.0135, 3: 0.045, 2: 0.16, 1: 0.65 }[b];
          if (tokens > 1 || half === 'v') expect(error / power).toBeLessThanOrEqual(bound + 1e-12);
          else expect(error).toBeLessThan(2e-3);
        }
      }
    },
  );

  it('encodes as the study does: decoded vectors differ from float Lloyd-Max levels by 5 % rms at most (levels rounded to integers, so codes at the edge of a level flip), distortion by 0.8 % (scales stand in steps of 2.2 %)', () => {
    for (const bits of [4, 3, 2, 1] as const) {
      const { levels, midpoints } = lloydMax(bits);
      const tokens = 128;
      const held = hold(make, tokens, 64, 32);
      const id = TIERS.find((t) => t.vBits === bits)!.id;
      const { record } = encode(held, new Uint8Array(tokens).fill(id));
      const { v } = decode(held, record, tokens);
      let [ours, study, apart, all] = [0, 0, 0, 0];
      for (let t = 0; t < tokens; t++) {
        const x = exactValues(held, 'v', 1, 3 + t);
        const power = x.reduce((s, y) => s + y * y, 0);
        // The tiny vectors lie among float16's subnormal scales.
        if (power < 1) continue;
        const expected = studyQuantiser(x, levels, midpoints);
        for (let c = 0; c < 64; c++) {
          apart += (v[t * 64 + c]! - expected[c]!) ** 2;
          ours += (v[t * 64 + c]! - x[c]!) ** 2;
          study += (expected[c]! - x[c]!) ** 2;
        }
        all += power;
      }
      expect(Math.sqrt(apart / all)).toBeLessThan(0.05);
      expect(Math.abs(ours / study - 1)).toBeLessThan(0.008);
    }
  });

  it("is unbiased: <decoded, x> = |x|^2 within the scale's steps, 1.1 % (8 bits 0.06 %) for a vector and 0.2 % on average; keys after centring", () => {
    const held = hold(make, 128, 64, 16);
    for (const name of ['8,8', '8,4', '4,4', '3,3', '2,2', '2,1']) {
      const { record } = encode(held, new Uint8Array(128).fill(tierNamed(name)));
      const { k, v } = decode(held, record, 128);
      const mean = new Float64Array(64);
      for (let t = 0; t < 128; t++)
        exactValues(held, 'k', 1, 3 + t).forEach((x, c) => {
          mean[c]! += x / 128;
        });
      const { kBits, vBits } = TIERS[tierNamed(name)]!;
      let [keys, values, n] = [0, 0, 0];
      for (let t = 0; t < 128; t++) {
        const [xk, xv] = [exactValues(held, 'k', 1, 3 + t), exactValues(held, 'v', 1, 3 + t)];
        let [kx, kk, vx, vv] = [0, 0, 0, 0];
        for (let c = 0; c < 64; c++) {
          kx += (k[t * 64 + c]! - mean[c]!) * (xk[c]! - mean[c]!);
          kk += (xk[c]! - mean[c]!) ** 2;
          vx += v[t * 64 + c]! * xv[c]!;
          vv += xv[c]! ** 2;
        }
        // The mean's own rounding, half a step of 1/127, shows in 8 bits too.
        expect(Math.abs(kx / kk - 1)).toBeLessThan(kBits === 8 ? 0.01 : 0.02);
        if (vv > 1) {
          expect(Math.abs(vx / vv - 1)).toBeLessThan(vBits === 8 ? 6e-4 : 0.0112);
          keys += kx / kk;
          values += vx / vv;
          n++;
        }
        if (vv === 0) expect(v.subarray(t * 64, t * 64 + 64).every((y) => y === 0)).toBe(true);
      }
      expect(Math.abs(keys / n - 1)).toBeLessThan(0.002);
      expect(Math.abs(values / n - 1)).toBeLessThan(0.002);
    }
  });

  it('writes header, tier map, mean, mass and zero padding as layout.ts says, at any tier mix', () => {
    const tokens = 61;
    const held = hold(make, tokens, 16, 16);
    const tiers = Uint8Array.from({ length: tokens }, (_, t) => (t % 5 === 4 ? DROP : (t * 3) % 11));
    const { record, mass, cells } = encode(held, tiers);
    const counts = countsOf(tiers);
    const bytes = u8At(held.arena, record, recordBytes(tokens, counts, 16));
    const ids = [...TIERS.keys()].filter((id) => counts[id]! > 0);
    const word = (at: number) => bytes[at]! | (bytes[at + 1]! << 8);
    expect(word(0)).toBe(ids.reduce((mask, id) => mask | (1 << id), 0));
    expect([...bytes.subarray(8, 8 + ids.length)]).toEqual(ids.map((id) => counts[id]));
    // 11 counts after 8 bytes of header, padded to 4; 16 channels of mean; 31 bytes of map, padded to 4.
    expect([recordParts(tokens, counts, 16).mean, recordParts(tokens, counts, 16).map]).toEqual([20, 36]);
    expect(recordParts(tokens, counts, 16).scales).toBe(68);
    tiers.forEach((id, t) => {
      expect((bytes[36 + (t >> 1)]! >> ((t & 1) * 4)) & 15).toBe(id);
    });
    expect([bytes[19], bytes[67]]).toEqual([0, 0]);
    const read = new Uint8Array(tokens);
    recordTiers(bytes, 0, tokens, 16, read);
    expect(read).toEqual(tiers);
    // The mean in 8 bits under one float16 scale, within half a step.
    const step = fromF16(word(6));
    for (let c = 0; c < 16; c++) {
      let mean = 0;
      for (let t = 0; t < tokens; t++) mean += exactValues(held, 'k', 1, 3 + t)[c]! / tokens;
      expect(Math.abs(((bytes[20 + c]! << 24) >> 24) * step - mean)).toBeLessThan(step * 0.51);
    }
    // The bases: twice the largest rms, of values here; a step of float16 above at most.
    const rms = Array.from({ length: tokens }, (_, t) =>
      Math.sqrt(exactValues(held, 'v', 1, 3 + t).reduce((sum, x) => sum + x * x, 0) / 16),
    );
    expect(fromF16(word(4)) / (2 * Math.max(...rms))).toBeGreaterThanOrEqual(1 - 1e-6);
    expect(fromF16(word(4)) / (2 * Math.max(...rms))).toBeLessThan(1.001);
    const masses = u16At(held.arena, mass, cells);
    for (const g of tierGroups(counts, tokens, 16)) {
      const positions = [...tiers.keys()].filter((t) => tiers[t] === g.id);
      positions.forEach((t, i) => {
        expect(masses[g.cell + i]).toBe(1000 + 3 + t);
      });
      for (let i = g.n; i < g.n4; i++) {
        expect(masses[g.cell + i]).toBe(0);
        for (const [half, b] of [
          [g.k, g.kBits],
          [g.v, g.vBits],
        ] as const)
          if (b === 16 || b === 32)
            expect(
              bytes.subarray(half + (i * 16 * b) / 8, half + ((i + 1) * 16 * b) / 8).every((x) => x === 0),
            ).toBe(true);
        for (const [at, each] of [
          [g.kScale, g.kScaleBytes],
          [g.vScale, g.vScaleBytes],
        ] as const)
          expect(bytes.subarray(at + i * each, at + (i + 1) * each).every((x) => x === 0)).toBe(true);
      }
      expect(halfBlockBytes(g.kBits, 16) % 16).toBe(0);
    }
  });

  it('packs codes where layout.ts says: independent unpacking of every bit width gives the decoded values', () => {
    const headDim = 80;
    for (const { id, kBits, vBits } of TIERS.filter((t) => t.kBits <= 8 && !t.plain)) {
      const tokens = 6;
      const held = hold(make, tokens, headDim, 16);
      const { record, bytes } = encode(held, new Uint8Array(tokens).fill(id));
      const { v } = decode(held, record, tokens);
      const g = tierGroups(countsOf(new Uint8Array(tokens).fill(id)), tokens, headDim)[0]!;
      const u8 = u8At(held.arena, record, bytes);
      const signs = (b: number, code: number) => (b === 8 ? (code << 24) >> 24 : code - ((1 << b) - 1) / 2);
      for (let t = 0; t < tokens; t++)
        for (let c = 0; c < headDim; c++) {
          const block = g.v + (t >> 2) * halfBlockBytes(vBits, headDim);
          const chunk = c >> 2;
          const byte = (c & 3) * 4 + (t & 3);
          const plain = (b: number, base: number) =>
            (u8[base + Math.floor((chunk * b) / 8) * 16 + byte]! >> ((chunk * b) % 8)) & ((1 << b) - 1);
          const code =
            vBits === 3
              ? plain(2, block) | (plain(1, block + Math.ceil(headDim / 16) * 16) << 2)
              : plain(vBits, block);
          const y = v[t * headDim + c]!;
          if (y !== 0) expect(Math.sign(signs(vBits, code))).toBe(Math.sign(y));
        }
      expect(kBits).toBeLessThanOrEqual(8);
    }
  });

  it('recodes: unchanged halves keep their bits, others are encoded from their decoded values, the mean stays', () => {
    const tokens = 100;
    for (const [from, to] of [
      ['f32', 'f16'],
      ['f32', '8,4'],
      ['f16', '8,8'],
      ['f16', '4,4'],
      ['8,8', '8,4'],
      ['8,4', '4,4'],
      ['4,4', '4,2'],
      ['4,2', '3,2'],
      ['4,3', '3,3'],
      ['3,2', '2,2'],
      ['2,2', '2,1'],
    ]) {
      const held = hold(make, tokens, 64, 32);
      const { arena, kernels } = held;
      const before = new Uint8Array(tokens).fill(tierNamed(from!));
      before[7] = DROP;
      const after = before.map((id, t) =>
        id === DROP || t % 3 === 0 ? id : t % 7 === 1 ? DROP : tierNamed(to!),
      );
      const old = encode(held, before);
      const size = recordBytes(tokens, countsOf(after), 64);
      const area = arena.ptr(arena.alloc(size + 2 * GUARD));
      u8At(arena, area, size + 2 * GUARD).fill(0xa5);
      const cells = recordCells(countsOf(after));
      const massOut = arena.ptr(arena.alloc(cells * 2));
      const original = u8At(arena, old.record, old.bytes).slice();
      expect(
        kernels.recodeRecord(old.record, tokens, 64, put(arena, after), area + GUARD, old.mass, massOut),
      ).toBe(size);
      expect(u8At(arena, old.record, old.bytes)).toEqual(original);
      for (const at of [area, area + GUARD + size])
        expect([...u8At(arena, at, GUARD)]).toEqual(Array(GUARD).fill(0xa5));

      const was = decode(held, old.record, tokens);
      const now = decode(held, area + GUARD, tokens);
      const fixedOf = (record: Ptr, ids: Uint8Array) => [
        ...u8At(arena, record + 2, 6),
        ...u8At(arena, record + recordParts(tokens, countsOf(ids), 64).mean, 64),
      ];
      expect(fixedOf(area + GUARD, after)).toEqual(fixedOf(old.record, before));
      for (let t = 0; t < tokens; t++)
        for (const half of ['k', 'v'] as const) {
          const [x, y] = [was[half], now[half]].map((a) => a.subarray(t * 64, t * 64 + 64)) as [
            Float32Array,
            Float32Array,
          ];
          const bits = (id: number) => TIERS[id]![half === 'k' ? 'kBits' : 'vBits'];
          if (after[t] === DROP) expect(y.every((e) => e === 0)).toBe(true);
          else if (bits(before[t]!) === bits(after[t]!)) expect(y).toEqual(x);
          else if (bits(after[t]!) === 16) expect(y).toEqual(x.map((e) => fromF16(toF16(e))));
        }

      // The changed halves equal what encoding the decoded (centred) values gives: a second record of those values with a zero mean.
      const masses = u16At(arena, massOut, cells);
      for (const g of tierGroups(countsOf(after), tokens, 64)) {
        const positions = [...after.keys()].filter((t) => after[t] === g.id);
        positions.forEach((t, i) => {
          expect(masses[g.cell + i]).toBe(1000 + 3 + t);
        });
      }
    }
  });

  it('holds plain tiers as GGML does: codes within half a step of each 32 channels, no mean, no rotation needed', () => {
    for (const [name, headDim] of [
      ['q8_0', 64],
      ['q4_0', 64],
      ['q4_0', 80],
    ] as const) {
      const tokens = 30;
      const held = hold(make, tokens, headDim, 16);
      const tiers = new Uint8Array(tokens).fill(tierNamed(name));
      const { record, bytes } = encode(held, tiers);
      const groups = Math.ceil(headDim / 32);
      const codeBytes = (headDim / 4) * (name === 'q8_0' ? 16 : 8);
      // 12 bytes of header and count, no mean, no map.
      expect(bytes).toBe(Math.ceil((12 + 32 * 2 * groups * 2) / 16) * 16 + 8 * 2 * codeBytes);
      const decoded = decode(held, record, tokens);
      for (const half of ['k', 'v'] as const)
        for (let t = 0; t < tokens; t++) {
          const x = exactValues(held, half, 1, 3 + t);
          for (let c = 0; c < headDim; c += 32) {
            const part = x.subarray(c, c + 32);
            const top = part.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0);
            const step = Math.abs(top) / (name === 'q8_0' ? 127 : 8);
            part.forEach((value, i) => {
              const y = decoded[half][t * headDim + c + i]!;
              // q4_0 has no code for +8: the side that the largest does not lie on ends at 7.
              const reach = name === 'q4_0' && value * top < 0 && Math.abs(value) > 7.5 * step ? 1.005 : 0.54;
              expect(Math.abs(y - value)).toBeLessThanOrEqual(step * reach + 1e-5);
            });
          }
        }
    }
  });

  it('keeps plain tiers apart: no record mixes them with others, and no token goes from or to one', () => {
    const { kernels, arena, ...held } = hold(make, 8, 64, 16);
    const of = (...names: string[]) =>
      put(
        arena,
        Uint8Array.from({ length: 8 }, (_, t) => tierNamed(names[t % names.length]!)),
      );
    const out = arena.ptr(arena.alloc(8192));
    const mixed = of('q8_0', '4,4');
    expect(() => kernels.encodeRecord(held.exact, 1, 3, 8, mixed, out, 0)).toThrow(/share a record/);
    const next = arena.ptr(arena.alloc(8192));
    kernels.encodeRecord(held.exact, 1, 3, 8, of('f16'), out, 0);
    expect(() => kernels.recodeRecord(out, 8, 64, of('q8_0'), next, 0, 0)).toThrow(/from tier 1 to 11/);
    kernels.encodeRecord(held.exact, 1, 3, 8, of('q8_0'), out, 0);
    expect(() => kernels.recodeRecord(out, 8, 64, of('q4_0'), next, 0, 0)).toThrow(/from tier 11 to 12/);
    expect(kernels.recodeRecord(out, 8, 64, of('q8_0', 'drop'), next, 0, 0)).toBeGreaterThan(0);
  });

  it('writes nothing for a record without tokens', () => {
    const held = hold(make, 20, 64, 16);
    const dropped = new Uint8Array(20).fill(DROP);
    expect(encode(held, dropped).bytes).toBe(0);
    const { record } = encode(held, new Uint8Array(20).fill(tierNamed('4,4')));
    const out = held.arena.ptr(held.arena.alloc(64));
    expect(held.kernels.recodeRecord(record, 20, 64, put(held.arena, dropped), out, 0, 0)).toBe(0);
  });

  it('holds scales within 1.1 % of what they should be, over a range of 120; smaller vectors are nought', () => {
    const tokens = 128;
    const headDim = 64;
    const { arena, kernels } = make();
    const shape = { kvHeads: 1, headDim, capacity: tokens, bits: 32 as const, mass: false };
    const exact: ExactRef = { ptr: arena.ptr(arena.alloc(exactBytes(shape))), ...shape };
    // Each vector 6 % shorter than the one before: 128 of them span a factor of 1,700.
    const v = normals(tokens * headDim, 9).map((x, i) => x * 0.94 ** Math.floor(i / headDim));
    kernels.appendExact(exact, 0, tokens, put(arena, v), put(arena, v), headDim);
    for (const name of ['4,4', '3,3', '2,2', '2,1']) {
      const tiers = put(arena, new Uint8Array(tokens).fill(tierNamed(name)));
      const record = arena.ptr(arena.alloc(65536));
      kernels.encodeRecord(exact, 0, 0, tokens, tiers, record, 0);
      const [k, out] = [arena.ptr(arena.alloc(v.byteLength)), arena.ptr(arena.alloc(v.byteLength))];
      kernels.decodeRecord(record, tokens, headDim, k, out);
      for (let t = 0; t < tokens; t++) {
        const x = v.subarray(t * headDim, (t + 1) * headDim);
        const y = f32At(arena, out + t * headDim * 4, headDim);
        const ratio = x.reduce((s, a, c) => s + a * y[c]!, 0) / x.reduce((s, a) => s + a * a, 0);
        if (0.94 ** t > 1 / 40) expect(Math.abs(ratio - 1)).toBeLessThan(0.0111);
        if (0.94 ** t < 1 / 600) expect(y.every((value) => value === 0)).toBe(true);
      }
    }
    // Neighbouring codes stand 2.2 % apart.
    expect(SCALE_TABLE[255]! / SCALE_TABLE[254]!).toBeCloseTo(2 ** (1 / 32), 6);
  });

  it('recoding under the same tier map gives the same bytes', () => {
    const held = hold(make, 127, 16, 16);
    const tiers = Uint8Array.from({ length: 127 }, (_, t) => (t % 6 === 5 ? DROP : 1 + (t % 10)));
    const { record, bytes } = encode(held, tiers);
    const out = held.arena.ptr(held.arena.alloc(bytes));
    held.kernels.recodeRecord(record, 127, 16, put(held.arena, tiers), out, 0, 0);
    expect(u8At(held.arena, out, bytes)).toEqual(u8At(held.arena, record, bytes));
  });

  it('f16 record -> packed record equals packed encoding of the f16 exact part, bit for bit', () => {
    const held = hold(make, 60, 64, 16);
    for (const name of TIER_NAMES.slice(2).filter((n) => !TIERS[tierNamed(n)]!.plain)) {
      const tiers = new Uint8Array(60).fill(tierNamed(name));
      const direct = encode(held, tiers);
      const half = encode(held, new Uint8Array(60).fill(tierNamed('f16')));
      const out = held.arena.ptr(held.arena.alloc(direct.bytes));
      held.kernels.recodeRecord(half.record, 60, 64, put(held.arena, tiers), out, 0, 0);
      expect(u8At(held.arena, out, direct.bytes)).toEqual(u8At(held.arena, direct.record, direct.bytes));
    }
  });
});

describe.each(CACHE_IMPLEMENTATIONS)('exact part and rotation ($name)', ({ make }) => {
  it.each([16, 32] as const)(
    'f%i: appends at a slot, moves keys, values and mass down, leaves the rest',
    (bits) => {
      const held = hold(make, 20, 12, bits, 3);
      const { arena, kernels, exact, k, v } = held;
      const round = (x: number) => (bits === 16 ? fromF16(toF16(x)) : x);
      for (let h = 0; h < 3; h++)
        for (let s = 0; s < 23; s++)
          for (let c = 0; c < 12; c++) {
            expect(exactValues(held, 'k', h, s)[c]).toBe(round(k[(s * 3 + h) * 12 + c]!));
            expect(exactValues(held, 'v', h, s)[c]).toBe(round(v[(s * 3 + h) * 12 + c]!));
          }
      const before = [0, 1, 2].map((h) =>
        Array.from({ length: 28 }, (_, s) => [...exactValues(held, 'v', h, s)]),
      );
      kernels.moveExact(exact, 9, 2, 14);
      for (let h = 0; h < 3; h++) {
        const mass = u16At(arena, exact.ptr + exactMassAt(exact, h), 28);
        for (let s = 0; s < 28; s++) {
          const source = s >= 2 && s < 16 ? s + 7 : s;
          expect([...exactValues(held, 'v', h, s)]).toEqual(before[h]![source]);
          if (s < 23) expect(mass[s]).toBe(1000 * h + source);
        }
      }
    },
  );

  it('rotates each head by an orthonormal matrix that is its own inverse, within 1e-6', () => {
    for (const [headDim, size] of [
      [64, 64],
      [8, 8],
      [12, 4],
      [80, 16],
    ] as const) {
      const { arena, kernels } = make();
      const [rows, heads, ld] = [3, 2, 2 * headDim + 5];
      const x = normals(rows * ld, 3);
      const at = put(arena, x);
      kernels.hadamard(at, ld, rows, heads, headDim);
      const y = f32At(arena, at, rows * ld).slice();
      const parity = (n: number): number => (n ? (n & 1) ^ parity(n >> 1) : 0);
      for (let r = 0; r < rows; r++)
        for (let i = 0; i < ld; i++) {
          let expected = x[r * ld + i]!;
          if (i < heads * headDim) {
            const block = i - (i % size);
            expected = 0;
            for (let j = 0; j < size; j++)
              expected += ((parity((i % size) & j) ? -1 : 1) * x[r * ld + block + j]!) / Math.sqrt(size);
          }
          expect(Math.abs(y[r * ld + i]! - expected)).toBeLessThan(
            1e-6 * (i < heads * headDim ? 4 : 0) + 1e-12,
          );
        }
      kernels.hadamard(at, ld, rows, heads, headDim);
      f32At(arena, at, rows * ld).forEach((z, i) => {
        expect(Math.abs(z - x[i]!)).toBeLessThan(2e-6);
      });
    }
  });

  it('decays mass to the nearest of m * numerator / 2^16, over all 16 bits', () => {
    const { arena, kernels } = make();
    const values = Uint16Array.from({ length: 65536 + 4 }, (_, i) => i);
    for (const numerator of [0, 1, 52429, 65535, 65536]) {
      const at = put(arena, values);
      kernels.decayMass(at, 65536, numerator);
      const decayed = u16At(arena, at, values.length);
      const wrong = [...decayed.keys()].filter(
        (m) => decayed[m] !== (m < 65536 ? Math.round((m * numerator) / 65536) : m - 65536),
      );
      expect(wrong).toEqual([]);
    }
  });
});
