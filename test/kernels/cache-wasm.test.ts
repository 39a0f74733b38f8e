import { describe, expect, it } from 'vitest';
import { exactMassAt } from '../../src/kernels/layout.ts';
import { massesOf, runAttend } from './attend-truth.ts';
import { ATTEND_CASES, buildCache, type CacheCase, f32At, normals, put, u8At } from './cache-cases.ts';
import { CACHE_REFERENCE, CACHE_WASM, type CacheImplementation } from './cache-implementations.ts';

/** Everything a case leaves: segment blocks with mass, outputs of both arithmetics, mass of the exact part. */
function run({ make }: CacheImplementation, c: CacheCase) {
  const { arena, kernels } = make();
  const built = buildCache(kernels, arena, c, true);
  const float = runAttend(kernels, arena, c, built, { arithmetic: 'float' });
  const integer = runAttend(kernels, arena, c, built, { arithmetic: 'integer', mass: true });
  return {
    blocks: built.blocks.map((at, i) => u8At(arena, at, built.blockBytes[i]!).slice()),
    float: new Uint32Array(float.buffer),
    integer: new Uint32Array(integer.buffer),
    masses: massesOf(arena, c, built, (h) => exactMassAt(built.exact, h)),
  };
}

describe.each(CACHE_WASM)('$name', (wasm) => {
  it.each(ATTEND_CASES)('$name: records, attention and mass equal the reference bit for bit', (c) => {
    expect(run(wasm, c)).toEqual(run(CACHE_REFERENCE, c));
  });

  it('rotates to the bits of the reference, every block size', () => {
    const [ours, reference] = [wasm.make(), CACHE_REFERENCE.make()];
    for (const headDim of [4, 8, 12, 16, 32, 48, 64, 80, 128, 256]) {
      const x = normals(2 * 3 * headDim, headDim);
      const rotated = [ours, reference].map(({ arena, kernels }) => {
        const at = put(arena, x);
        kernels.hadamard(at, 3 * headDim, 2, 3, headDim);
        return new Uint32Array(f32At(arena, at, x.length).slice().buffer);
      });
      expect(rotated[0]).toEqual(rotated[1]);
    }
  });

  it('refuses a workspace that is too small, and says how much it needs', () => {
    const c = ATTEND_CASES.find((x) => x.name === 'tier 4,4')!;
    const { arena, kernels } = wasm.make();
    const built = buildCache(kernels, arena, c, false);
    expect(() =>
      runAttend(kernels, arena, c, built, { arithmetic: 'integer', workspaceBytes: 20_000 }),
    ).toThrow(/workspace of \d+ bytes, not 20000/);
  });

  it('refuses head dimensions that are no multiple of 4 or above 512', () => {
    const { kernels } = wasm.make();
    for (const headDim of [6, 516]) expect(() => kernels.hadamard(0, 8, 1, 1, headDim)).toThrow(/headDim/);
  });
});
