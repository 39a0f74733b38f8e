import { Arena, type GrowableMemory } from '../../src/core/arena.ts';
import { MemoryLimitError } from '../../src/core/errors.ts';

/** A fixed linear memory for tests, filled with a pattern that is NaN as f32 and f16, so that reads of unwritten bytes show. */
export function plainArena(bytes: number, base = 16): Arena {
  const buffer = new ArrayBuffer(bytes);
  new Uint8Array(buffer).fill(0xff);
  const memory: GrowableMemory = {
    buffer,
    maxBytes: bytes,
    ensure(needed) {
      if (needed > bytes) throw new MemoryLimitError(needed, bytes, 'test memory');
    },
  };
  return new Arena(memory, base);
}
