import type { GrowableMemory } from '../core/arena.ts';
import { MemoryLimitError } from '../core/errors.ts';

const PAGE = 65536;
/** Pages the modules ask for at instantiation (scripts/build-wasm.ts: --initialMemory). */
const INITIAL_PAGES = 2;
/** Growing detaches the buffer and costs a system call: 1 MiB at a time. */
const STEP_PAGES = 16;

/** A WebAssembly memory with a maximum. It grows by pages and never shrinks. */
export interface WasmMemory extends GrowableMemory {
  readonly memory: WebAssembly.Memory;
}

/** @param maxBytes the limit, rounded down to whole pages of 64 KiB */
export function wasmMemory(maxBytes: number): WasmMemory {
  const maximum = Math.floor(maxBytes / PAGE);
  if (maximum < INITIAL_PAGES) throw new MemoryLimitError(INITIAL_PAGES * PAGE, maxBytes, 'kernel memory');
  const memory = new WebAssembly.Memory({ initial: INITIAL_PAGES, maximum });
  return {
    memory,
    maxBytes: maximum * PAGE,
    get buffer() {
      return memory.buffer;
    },
    ensure(bytes) {
      const held = memory.buffer.byteLength;
      if (bytes <= held) return;
      if (bytes > maximum * PAGE) throw new MemoryLimitError(bytes, maximum * PAGE, 'kernel memory');
      try {
        const needed = Math.ceil((bytes - held) / PAGE);
        memory.grow(Math.min(Math.max(needed, STEP_PAGES), maximum - held / PAGE));
      } catch {
        // The host itself refused: its own limit lies below ours.
        throw new MemoryLimitError(bytes, held, 'kernel memory');
      }
    },
  };
}

/** A plain buffer for the reference; it grows by pages too, so that both count alike. */
export function plainMemory(maxBytes: number): GrowableMemory {
  const limit = Math.floor(maxBytes / PAGE) * PAGE;
  const buffer = new ArrayBuffer(0, { maxByteLength: limit });
  return {
    buffer,
    maxBytes: limit,
    ensure(bytes) {
      if (bytes > limit) throw new MemoryLimitError(bytes, limit, 'kernel memory');
      if (bytes > buffer.byteLength) buffer.resize(Math.ceil(bytes / PAGE) * PAGE);
    },
  };
}
