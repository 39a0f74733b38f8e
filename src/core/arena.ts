import { MemoryLimitError } from './errors.ts';
import { Holes } from './holes.ts';

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
 * downwards when the end is reached, so that no fragmentation is ever counted as lost. Where moving them costs more than room (on a GPU, whose
 * host holds the addresses, too), what was freed is used again first, once the memory's owner calls `recycle`.
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
  readonly #holes: Holes | undefined;
  /** Not yet to be used again. */
  readonly #freed: Block[] = [];

  constructor(memory: GrowableMemory, base: number) {
    this.memory = memory;
    this.#floor = align(base);
    this.#base = this.#floor;
    this.#top = this.#base;
    this.#fresh = this.#floor;
    this.#holes = memory.moved && new Holes();
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
    const hole = this.#holes?.take(size);
    if (hole !== undefined) return this.#place(hole, size);
    const garbage = this.#top - this.#base - this.#live;
    const end = this.#top + size;
    // Growing is for good (a WASM memory never shrinks), so garbage is reclaimed first once it is worth a move.
    if (
      end > this.memory.maxBytes ||
      (end > this.memory.buffer.byteLength &&
        garbage > 0 &&
        garbage >= Math.max(size, this.#live >> (this.#holes ? 1 : 3)))
    )
      this.compact();
    this.memory.ensure(this.#top + size);
    this.#top += size;
    return this.#place(this.#top - size, size);
  }
  #place(offset: number, bytes: number): BlockId {
    const id = this.#nextId++;
    this.#blocks.set(id, { offset, bytes });
    this.#clear(offset, bytes);
    this.memory.zeroed?.(offset, bytes);
    this.#live += bytes;
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
    this.#released(block.offset, block.bytes);
    if (this.#blocks.size > 0) return;
    this.#top = this.#base;
    this.#forget();
  }
  #forget(): void {
    this.#holes?.clear();
    this.#freed.length = 0;
  }

  /** Gives back a block's end. */
  shrink(id: BlockId, bytes: number): void {
    const block = this.#get(id);
    const size = align(bytes);
    if (size > block.bytes) throw new Error(`a block of ${block.bytes} bytes cannot shrink to ${size}`);
    if (size === block.bytes) return;
    this.#released(block.offset + size, block.bytes - size);
    this.#live -= block.bytes - size;
    block.bytes = size;
  }
  #released(offset: number, bytes: number): void {
    if (this.#holes) this.#freed.push({ offset, bytes });
    else if (offset + bytes === this.#top) this.#top = offset;
  }
  /** What was freed may be used again: nothing that waits to be done reads it any longer. */
  recycle(): void {
    if (!this.#holes) return;
    for (const { offset, bytes } of this.#freed.splice(0)) {
      const from = this.#holes.add(offset, bytes);
      if (offset + bytes !== this.#top) continue;
      this.#holes.drop(from);
      this.#top = from;
    }
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
    this.#forget();
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
