import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { fromF16 } from '../../src/kernels/cache-math.ts';
import type { ExactRef } from '../../src/kernels/kernels.ts';
import { exactBytes, recordBytes, TIER_IDS, TIERS } from '../../src/kernels/layout.ts';
import { f32At, normals, put } from './cache-cases.ts';
import { CACHE_IMPLEMENTATIONS } from './cache-implementations.ts';

const TOKENS = 48;
const DIM = 64;

/**
 * What the study that the quantiser comes from decodes for these vectors: its own program, `Quant('lm64u', rot='had')` of engine.py (with numpy in torch's place), on
 * the keys (less their mean over the segment, in float16) and the values below; float16 in base64, by bits.
 */
const STUDY = JSON.parse(readFileSync(new URL('study-vectors.json', import.meta.url), 'utf8')) as Record<
  'keys' | 'values',
  Record<string, string>
>;
const offset = normals(DIM, 31, 2);
const KEYS = normals(TOKENS * DIM, 32).map((x, i) => x + offset[i % DIM]!);
const VALUES = normals(TOKENS * DIM, 33);

function decodedBy(half: 'keys' | 'values', bits: number): Float32Array {
  const bytes = Buffer.from(STUDY[half][bits]!, 'base64');
  return Float32Array.from({ length: TOKENS * DIM }, (_, i) => fromF16(bytes.readUInt16LE(i * 2)));
}

/** Distances over the vectors' power, keys less their mean: ours to the study's decoding, ours to the vectors, the study's to the vectors. */
function distances(ours: Float32Array, study: Float32Array, truth: Float32Array, half: 'keys' | 'values') {
  const mean = new Float64Array(DIM);
  if (half === 'keys') for (const [i, x] of truth.entries()) mean[i % DIM]! += x / TOKENS;
  let [apart, own, theirs, power] = [0, 0, 0, 0];
  truth.forEach((x, i) => {
    apart += (ours[i]! - study[i]!) ** 2;
    own += (ours[i]! - x) ** 2;
    theirs += (study[i]! - x) ** 2;
    power += (x - mean[i % DIM]!) ** 2;
  });
  return { apart: Math.sqrt(apart / power), own: own / power, theirs: theirs / power };
}

it.each(
  CACHE_IMPLEMENTATIONS.flatMap((implementation) =>
    TIERS.filter((t) => t.kBits <= 8 && !t.plain).map(
      ({ id, name }) => [name, implementation.name, id, implementation.make] as const,
    ),
  ),
)(
  "tier %s (%s) decodes what the study's own program does: values 5 % rms apart at most, keys 12 %, the distortion at most 2 % larger",
  (_name, _implementation, id, make) => {
    const { arena, kernels } = make();
    const shape = { kvHeads: 1, headDim: DIM, capacity: TOKENS, bits: 32 as const, mass: false };
    const exact: ExactRef = { ptr: arena.ptr(arena.alloc(exactBytes(shape))), ...shape };
    const [k, v] = [put(arena, KEYS), put(arena, VALUES)];
    for (const at of [k, v]) kernels.hadamard(at, DIM, TOKENS, 1, DIM);
    kernels.appendExact(exact, 0, TOKENS, k, v, DIM);
    const counts = new Uint8Array(TIER_IDS);
    counts[id] = TOKENS;
    const record = arena.ptr(arena.alloc(recordBytes(TOKENS, counts, DIM)));
    kernels.encodeRecord(exact, 0, 0, TOKENS, put(arena, new Uint8Array(TOKENS).fill(id)), record, 0);
    kernels.decodeRecord(record, TOKENS, DIM, k, v);
    for (const at of [k, v]) kernels.hadamard(at, DIM, TOKENS, 1, DIM);
    const { kBits, vBits } = TIERS[id]!;
    for (const [half, at, bits, truth] of [
      ['keys', k, kBits, KEYS],
      ['values', v, vBits, VALUES],
    ] as const) {
      const d = distances(f32At(arena, at, TOKENS * DIM), decodedBy(half, bits), truth, half);
      // Codes at the edge of a level flip: levels are integers here, scales stand in steps of 2.2 %, and the keys' mean in 8 bits.
      expect(d.apart).toBeLessThan(half === 'keys' ? 0.12 : 0.05);
      expect(d.own / d.theirs).toBeLessThan(1.02);
    }
  },
);
