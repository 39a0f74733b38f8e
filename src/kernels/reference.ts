import { Arena } from '../core/arena.ts';
import type { Kernels } from './kernels.ts';
import { plainMemory } from './memory.ts';
import { cacheReference } from './reference-cache.ts';
import { denseReference } from './reference-dense.ts';

/** The kernels in plain TypeScript: they define the truth, slowly. */
export function createReferenceKernels({ maxBytes }: { maxBytes: number }): Kernels {
  // Address 0 is left free: it stands for "none" in the interface.
  const arena = new Arena(plainMemory(maxBytes), 16);
  return {
    name: 'reference',
    numerics: 'reference/3',
    variant: 'scalar',
    arena,
    ...denseReference(arena),
    ...cacheReference(arena),
  };
}
