import { MemoryLimitError } from './errors.ts';

/** A byte offset into the kernels' linear memory. */
export type Ptr = number;
/** Names a movable block; its address changes when the arena compacts, the handle does not. */
export type BlockId = number;

/** What the arena needs from a linear memory: a WebAssembly.Memory, or a plain buffer for the reference. */
export interface GrowableMemory {
  /** The current buffer. Growing may detach it: never keep a view across an allocation. */
  readonly buffer: ArrayBuffer;
  /** Grows to at least `bytes`. @throws MemoryLimitError past `maxBytes`. */
  ensure(bytes: number): void;
  readonly maxBytes: number;
  /** Where the bytes lie elsewhere too (on a GPU), that place follows: a block was zeroed, or all live blocks move down, in address order. */
  zeroed?(at: Ptr, bytes: number): void;
  moved?(moves: readonly Move[]): void;
}
export interface Move {
  readonly from: Ptr;
  readonly to: Ptr;
  readonly bytes: number;
}

export const ALIGNMENT = 16;
export const align = (bytes: number, to = ALIGNMENT): number => Math.ceil(bytes / to) * to;

interface Block {
  offset: number;
  bytes: number;
}

/**
 * The sole allocator of kernel memory. Static allocations (weights, workspaces) lie at the bottom and never
 * move; movable blocks (cache records, exact parts) lie above, allocated at the end and compacted
 * downwards when the end is reached, so that no fragmentation is ever counted as lost.
 * All sizes are rounded up to 16 bytes and counted so.
 */
export class Arena {
  readonly memory: GrowableMemory;
  readonly #floor: number;
  #base: number;
  #top: number;
  /** Nothing was ever written from here on: a new memory is zero, and writing zeros again would only touch its pages. */
  #fresh: number;
  #live = 0;
  #blocks = new Map<BlockId, Block>();
  #nextId = 1;
  #compactions = 0;

  constructor(memory: GrowableMemory, base: number) {
    this.memory = memory;
    this.#floor = align(base);
    this.#base = this.#floor;
    this.#top = this.#base;
    this.#fresh = this.#floor;
  }

  /** Forgets all static memory, to load again from the start: the memory itself is kept and used anew. */
  reset(): void {
    if (this.#blocks.size > 0) throw new Error('blocks are still alive');
    this.#base = this.#floor;
    this.#top = this.#floor;
  }

  /** Bytes below the movable region: the module's own data, weights, workspaces. */
  get staticBytes(): number {
    return this.#base;
  }
  /** Bytes of live movable blocks. */
  get liveBytes(): number {
    return this.#live;
  }
  /** Bytes that could still be allocated, after compacting and growing to the limit. */
  get availableBytes(): number {
    return this.memory.maxBytes - this.#base - this.#live;
  }
  get compactions(): number {
    return this.#compactions;
  }

  /** Fixed memory, zeroed. Only before the first movable block, since it lies below all of them. */
  allocStatic(bytes: number): Ptr {
    if (this.#blocks.size > 0) throw new Error('static memory must be allocated before any block');
    const size = align(bytes);
    const ptr = this.#base;
    if (ptr + size > this.memory.maxBytes)
      throw new MemoryLimitError(size, this.memory.maxBytes - ptr, 'static kernel memory');
    this.memory.ensure(ptr + size);
    this.#clear(ptr, size);
    this.#base = ptr + size;
    this.#top = this.#base;
    return ptr;
  }

  /** A zeroed movable block. @throws MemoryLimitError when it cannot fit even after compaction. */
  alloc(bytes: number, what = 'a cache block'): BlockId {
    const size = align(bytes);
    if (size > this.availableBytes) throw new MemoryLimitError(size, this.availableBytes, what);
    const garbage = this.#top - this.#base - this.#live;
    const end = this.#top + size;
    // Growing is for good (a WASM memory never shrinks), so garbage is reclaimed first once it is worth a move.
    if (
      end > this.memory.maxBytes ||
      (end > this.memory.buffer.byteLength && garbage > 0 && garbage >= Math.max(size, this.#live >> 3))
    )
      this.compact();
    this.memory.ensure(this.#top + size);
    const id = this.#nextId++;
    this.#blocks.set(id, { offset: this.#top, bytes: size });
    this.#clear(this.#top, size);
    this.memory.zeroed?.(this.#top, size);
    this.#top += size;
    this.#live += size;
    return id;
  }

  /** Grows the memory for blocks of so many bytes to come, as far as the limit allows. */
  reserve(bytes: number): void {
    this.memory.ensure(Math.min(this.#top + bytes, this.memory.maxBytes));
  }

  /** The block's address now. Valid until the next `alloc` or `compact`. */
  ptr(id: BlockId): Ptr {
    return this.#get(id).offset;
  }
  size(id: BlockId): number {
    return this.#get(id).bytes;
  }
  bytes(id: BlockId): Uint8Array {
    const { offset, bytes } = this.#get(id);
    return new Uint8Array(this.memory.buffer, offset, bytes);
  }

  free(id: BlockId): void {
    const block = this.#get(id);
    this.#live -= block.bytes;
    this.#blocks.delete(id);
    if (block.offset + block.bytes === this.#top) this.#top = block.offset;
    if (this.#blocks.size === 0) this.#top = this.#base;
  }

  /** Gives back a block's end. */
  shrink(id: BlockId, bytes: number): void {
    const block = this.#get(id);
    const size = align(bytes);
    if (size > block.bytes) throw new Error(`a block of ${block.bytes} bytes cannot shrink to ${size}`);
    if (block.offset + block.bytes === this.#top) this.#top = block.offset + size;
    this.#live -= block.bytes - size;
    block.bytes = size;
  }

  /** Moves every live block down over the garbage, in address order. */
  compact(): void {
    const all = new Uint8Array(this.memory.buffer);
    let to = this.#base;
    const moves: Move[] = [];
    for (const block of [...this.#blocks.values()].sort((a, b) => a.offset - b.offset)) {
      moves.push({ from: block.offset, to, bytes: block.bytes });
      if (block.offset !== to) all.copyWithin(to, block.offset, block.offset + block.bytes);
      block.offset = to;
      to += block.bytes;
    }
    this.memory.moved?.(moves);
    this.#top = to;
    this.#compactions++;
  }

  #clear(at: Ptr, bytes: number): void {
    const used = Math.min(at + bytes, this.#fresh) - at;
    if (used > 0) new Uint8Array(this.memory.buffer, at, used).fill(0);
    this.#fresh = Math.max(this.#fresh, at + bytes);
  }

  #get(id: BlockId): Block {
    const block = this.#blocks.get(id);
    if (!block) throw new Error(`no such block: ${id}`);
    return block;
  }
}
