import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Arena, align, type GrowableMemory } from '../../src/core/arena.ts';
import { MemoryLimitError } from '../../src/core/errors.ts';

const memory = (maxBytes: number): GrowableMemory => {
  const state = { buffer: new ArrayBuffer(0), maxBytes };
  return Object.assign(state, {
    ensure(bytes: number) {
      if (bytes > maxBytes) throw new MemoryLimitError(bytes, maxBytes, 'test memory');
      if (bytes <= state.buffer.byteLength) return;
      const grown = new ArrayBuffer(bytes);
      new Uint8Array(grown).set(new Uint8Array(state.buffer));
      state.buffer = grown;
    },
  });
};

describe('Arena', () => {
  it.each([
    ['moved first', false],
    ['reused first', true],
  ])(
    'keeps every live block whole through allocations, frees and compactions; garbage is %s',
    (_, reuses) => {
      fc.assert(
        fc.property(
          fc.array(fc.tuple(fc.boolean(), fc.integer({ min: 1, max: 900 })), { maxLength: 200 }),
          (steps) => {
            const own = memory(16_384);
            const arena = new Arena(reuses ? Object.assign(own, { moved: () => {} }) : own, 64);
            const live = new Map<number, { fill: number; bytes: number }>();
            let fill = 1;
            for (const [free, n] of steps) {
              if (n % 5 === 0) arena.recycle();
              const ids = [...live.keys()];
              if (free && ids.length > 0) {
                const id = ids[n % ids.length]!;
                arena.free(id);
                live.delete(id);
              } else if (align(n) <= arena.availableBytes) {
                const id = arena.alloc(n);
                expect(arena.bytes(id).every((b) => b === 0)).toBe(true);
                fill = (fill % 250) + 1;
                arena.bytes(id).fill(fill);
                live.set(id, { fill, bytes: align(n) });
              } else expect(() => arena.alloc(n)).toThrow(MemoryLimitError);
              const taken = [...live].map(([id, b]) => {
                expect(arena.ptr(id) % 16).toBe(0);
                expect(arena.bytes(id).length).toBe(b.bytes);
                expect(arena.bytes(id).every((x) => x === b.fill)).toBe(true);
                return b.bytes;
              });
              expect(arena.liveBytes).toBe(taken.reduce((a, b) => a + b, 0));
            }
          },
        ),
        { numRuns: 60, seed: 7 },
      );
    },
  );

  it('reclaims garbage before it grows a memory that never shrinks', () => {
    const m = memory(1 << 20);
    const arena = new Arena(m, 0);
    const keep = arena.alloc(1024);
    for (let i = 0; i < 200; i++) {
      const a = arena.alloc(4096);
      const b = arena.alloc(4096);
      arena.free(a);
      arena.free(b);
    }
    arena.free(keep);
    expect(m.buffer.byteLength).toBeLessThan(20_000);
  });

  it('gives back the end of a block, at the top at once and elsewhere with the next compaction', () => {
    const arena = new Arena(memory(65536), 0);
    const a = arena.alloc(256);
    const b = arena.alloc(256);
    arena.bytes(a).fill(1);
    arena.bytes(b).fill(2);
    arena.shrink(a, 100);
    expect(arena.size(a)).toBe(112);
    expect(arena.liveBytes).toBe(112 + 256);
    arena.shrink(b, 16);
    expect(arena.ptr(arena.alloc(16))).toBe(256 + 16);
    expect(() => arena.shrink(a, 200)).toThrow(/112 bytes cannot shrink to 208/);
    arena.compact();
    expect(arena.ptr(b)).toBe(112);
    expect(arena.bytes(a).every((x) => x === 1)).toBe(true);
    expect(arena.bytes(b).every((x) => x === 2)).toBe(true);
  });

  it('refuses static memory once blocks lie above it', () => {
    const arena = new Arena(memory(4096), 0);
    arena.allocStatic(100);
    arena.alloc(16);
    expect(() => arena.allocStatic(16)).toThrow(/before any block/);
  });
});

it('where blocks are not to be moved, uses again what was freed: neighbours as one, not before it may', () => {
  const own = Object.assign(memory(1 << 20), { moved: () => {} });
  const arena = new Arena(own, 0);
  arena.reserve(4096);
  const [a, b, c] = [64, 32, 48, 16].map((bytes) => arena.alloc(bytes)) as [number, number, number];
  const [first, end] = [arena.ptr(a), arena.ptr(c) + 48 + 16];
  arena.free(b);
  arena.free(a);
  expect(arena.ptr(arena.alloc(80))).toBe(end);
  arena.recycle();
  const again = arena.alloc(80);
  expect(arena.ptr(again)).toBe(first);
  expect(arena.ptr(arena.alloc(16))).toBe(first + 80);
  expect(arena.compactions).toBe(0);
});
