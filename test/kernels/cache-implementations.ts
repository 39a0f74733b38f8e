import type { Arena } from '../../src/core/arena.ts';
import { type CacheKernels, cacheReference } from '../../src/kernels/reference-cache.ts';
import { wasmKernels } from '../helpers/kernels.ts';
import { plainArena } from '../helpers/plain-memory.ts';

export interface CacheImplementation {
  readonly name: string;
  /** Kernels over a fresh memory of BYTES, filled with a pattern that is NaN as f32 and as f16. */
  readonly make: () => { arena: Arena; kernels: CacheKernels };
}
const BYTES = 24e6;

export const CACHE_REFERENCE: CacheImplementation = {
  name: 'reference',
  make: () => {
    const arena = plainArena(BYTES);
    return { arena, kernels: cacheReference(arena) };
  },
};

export const CACHE_WASM: readonly CacheImplementation[] = (['relaxed', 'plain'] as const).map((variant) => ({
  name: `wasm, ${variant} SIMD`,
  make: () => {
    const kernels = wasmKernels(variant);
    kernels.arena.memory.ensure(BYTES);
    new Uint8Array(kernels.arena.memory.buffer).fill(0xff, kernels.arena.staticBytes);
    return { arena: kernels.arena, kernels };
  },
}));

export const CACHE_IMPLEMENTATIONS = [CACHE_REFERENCE, ...CACHE_WASM];
