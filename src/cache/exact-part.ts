import { type Arena, align, type BlockId } from '../core/arena.ts';
import type { ExactRef, RecordKernels } from '../kernels/kernels.ts';
import { type ExactLayout, exactBytes, exactKAt, exactMassAt, exactVAt } from '../kernels/layout.ts';

/** The exact part grows by this many slots within an epoch. */
export const EXACT_STEP = 16;
export const stepped = (slots: number): number => Math.ceil(slots / EXACT_STEP) * EXACT_STEP;

/** Sinks, window and current epoch of every layer: one arena block a layer, as layout.ts says. */
export class ExactPart {
  readonly #arena: Arena;
  readonly #kernels: Pick<RecordKernels, 'copyBytes' | 'fetch'>;
  readonly #shape: Omit<ExactLayout, 'capacity'>;
  readonly #blocks: (BlockId | undefined)[];
  readonly #capacity: Int32Array;
  /** Bytes held now. */
  bytes = 0;

  constructor(
    kernels: Pick<RecordKernels, 'arena' | 'copyBytes' | 'fetch'>,
    layers: number,
    shape: Omit<ExactLayout, 'capacity'>,
  ) {
    this.#arena = kernels.arena;
    this.#kernels = kernels;
    this.#shape = shape;
    this.#blocks = new Array(layers).fill(undefined);
    this.#capacity = new Int32Array(layers);
  }

  #layout(capacity: number): ExactLayout {
    return { ...this.#shape, capacity };
  }
  /** Bytes that a layer takes for a capacity of `slots`. */
  bytesFor(slots: number): number {
    return align(exactBytes(this.#layout(slots)));
  }
  bytesOf(layer: number): number {
    const id = this.#blocks[layer];
    return id === undefined ? 0 : this.#arena.size(id);
  }
  ref(layer: number): ExactRef {
    return { ptr: this.#arena.ptr(this.#blocks[layer]!), ...this.#layout(this.#capacity[layer]!) };
  }
  /** Address of a kvHead's masses. */
  massPtr(layer: number, kvHead: number): number {
    return this.#arena.ptr(this.#blocks[layer]!) + exactMassAt(this.#layout(this.#capacity[layer]!), kvHead);
  }
  holds(layer: number): boolean {
    return this.#blocks[layer] !== undefined;
  }

  /** Gives a layer at least `capacity` slots, or exactly that many where it may shrink, keeping the first `used`; then the others are zero. */
  resize(layer: number, used: number, capacity: number, shrink = false): void {
    const before = this.#capacity[layer]!;
    if (shrink ? capacity === before && used === before : capacity <= before) return;
    const from = this.#layout(before);
    const to = this.#layout(capacity);
    // Not where memory is a GPU's, as in PackedPart.
    if (capacity <= before && !this.#kernels.fetch) {
      this.#shrink(layer, Math.min(used, capacity), from, to);
      return;
    }
    const id = this.#arena.alloc(exactBytes(to), 'the exact part of a cache');
    this.bytes += this.#arena.size(id);
    const old = this.#blocks[layer];
    if (old !== undefined) {
      const source = this.#arena.ptr(old);
      const target = this.#arena.ptr(id);
      const kept = Math.min(used, before, capacity);
      const copy = (a: number, b: number, bytes: number): void =>
        this.#kernels.copyBytes(source + a, target + b, bytes);
      const half = (kept * to.headDim * to.bits) / 8;
      for (let h = 0; h < to.kvHeads; h++) {
        copy(exactKAt(from, h), exactKAt(to, h), half);
        copy(exactVAt(from, h), exactVAt(to, h), half);
        if (to.mass) copy(exactMassAt(from, h), exactMassAt(to, h), kept * 2);
      }
      this.bytes -= this.#arena.size(old);
      this.#arena.free(old);
    }
    this.#blocks[layer] = id;
    this.#capacity[layer] = capacity;
  }

  /** Moves what is kept down within the layer's block, and gives back its end: no copy that stands beside it, and less that compaction must move. */
  #shrink(layer: number, kept: number, from: ExactLayout, to: ExactLayout): void {
    const id = this.#blocks[layer]!;
    const at = this.#arena.ptr(id);
    const bytes = this.#arena.bytes(id);
    // Parts lie in the same order, each not above where it lay, so that none is overwritten before it has moved. What is behind the kept ones is zero again.
    const move = (source: number, target: number, count: number, end: number): void => {
      if (source !== target) this.#kernels.copyBytes(at + source, at + target, count);
      bytes.fill(0, target + count, end);
    };
    const row = (to.headDim * to.bits) / 8;
    for (let h = 0; h < to.kvHeads; h++) {
      move(exactKAt(from, h), exactKAt(to, h), kept * row, exactVAt(to, h));
      move(exactVAt(from, h), exactVAt(to, h), kept * row, exactKAt(to, h + 1));
    }
    if (to.mass)
      for (let h = 0; h < to.kvHeads; h++)
        move(exactMassAt(from, h), exactMassAt(to, h), kept * 2, exactMassAt(to, h + 1));
    const held = this.#arena.size(id);
    this.#arena.shrink(id, exactBytes(to));
    this.bytes -= held - this.#arena.size(id);
    this.#capacity[layer] = to.capacity;
  }

  /** Views of the first `used` slots: per kvHead keys and values, then per kvHead their mass. */
  parts(layer: number, used: number): Uint8Array[] {
    const id = this.#blocks[layer];
    if (id === undefined) return [];
    const layout = this.#layout(this.#capacity[layer]!);
    const bytes = this.#arena.bytes(id);
    const half = (used * layout.headDim * layout.bits) / 8;
    const parts: Uint8Array[] = [];
    for (let h = 0; h < layout.kvHeads; h++)
      for (const at of [exactKAt(layout, h), exactVAt(layout, h)]) parts.push(bytes.subarray(at, at + half));
    if (layout.mass)
      for (let h = 0; h < layout.kvHeads; h++) {
        const at = exactMassAt(layout, h);
        parts.push(bytes.subarray(at, at + used * 2));
      }
    return parts;
  }

  /** Masses of a layer, padding included, for the decay. */
  masses(layer: number): { ptr: number; count: number } {
    const layout = this.#layout(this.#capacity[layer]!);
    const at = exactMassAt(layout, 0);
    return { ptr: this.massPtr(layer, 0), count: (exactBytes(layout) - at) / 2 };
  }

  dispose(): void {
    for (const id of this.#blocks) if (id !== undefined) this.#arena.free(id);
    this.#blocks.fill(undefined);
    this.bytes = 0;
  }
}
