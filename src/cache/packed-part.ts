import { type Arena, align, type BlockId, type Ptr } from '../core/arena.ts';
import type { ExactRef, RecordKernels } from '../kernels/kernels.ts';
import { countTiers, segmentHeaderBytes } from '../kernels/layout.ts';
import type { Pieces } from './persist.ts';
import { layOut, type SegmentBlock, SegmentReader, type SegmentSpan, writeHeader } from './segments.ts';

export interface PackedShape {
  readonly layers: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Whether cells carry attention mass. */
  readonly mass: boolean;
}

/** Tiers that one segment of one layer gets: [kvHeads][tokens], at `from` of `tiers`. */
export interface SegmentTiers {
  readonly tiers: Uint8Array;
  readonly from: number;
}

/** The epochs' segments of every layer: one arena block each, as layout.ts says. Which tiers they get, and when, is the cache's affair. */
export class PackedPart {
  /** [layer][segment] */
  readonly blocks: SegmentBlock[][];
  /** Bytes held now. */
  bytes = 0;
  readonly #kernels: RecordKernels;
  readonly #arena: Arena;
  readonly #shape: PackedShape;
  /** Static: at least kvHeads * 128 bytes of tier ids, where kernels read them. */
  readonly #tierScratch: Ptr;
  /** [layer] Addresses of the blocks as of `#compactions`; undefined: not asked for since a block changed. */
  readonly #ptrs: (readonly Ptr[] | undefined)[] = [];
  #compactions = 0;

  constructor(kernels: RecordKernels, shape: PackedShape, tierScratch: Ptr) {
    this.#kernels = kernels;
    this.#arena = kernels.arena;
    this.#shape = shape;
    this.#tierScratch = tierScratch;
    this.blocks = Array.from({ length: shape.layers }, () => []);
  }

  reader(block: SegmentBlock): SegmentReader {
    return new SegmentReader(this.#arena.bytes(block.id), this.#shape.kvHeads, this.#shape.headDim);
  }
  /** Addresses of a layer's blocks, valid until the next change of any block. Kept, since every token asks for those of every layer. */
  ptrs(layer: number): readonly Ptr[] {
    if (this.#compactions !== this.#arena.compactions) {
      this.#compactions = this.#arena.compactions;
      this.#ptrs.length = 0;
    }
    this.#ptrs[layer] ??= this.blocks[layer]!.map(({ id }) => this.#arena.ptr(id));
    return this.#ptrs[layer];
  }
  /** The masses of a layer's blocks, each behind what is stored of it. */
  masses(layer: number): Pieces {
    const { buffer } = this.#arena.memory;
    const words = new Uint32Array(buffer, 0, buffer.byteLength >> 2);
    const blocks = this.blocks[layer]!;
    const at = this.ptrs(layer);
    const ranges = new Int32Array(2 * blocks.length);
    for (let s = 0; s < blocks.length; s++) {
      // As SegmentReader's storedBytes.
      ranges[2 * s] = at[s]! + words[(at[s]! >> 2) + 2]!;
      ranges[2 * s + 1] = at[s]! + this.#arena.size(blocks[s]!.id);
    }
    return { memory: new Uint8Array(buffer), ranges };
  }
  bytesOf(layer: number, segment: number): number {
    const block = this.blocks[layer]![segment];
    return block ? this.#arena.size(block.id) : 0;
  }
  /** Bytes that a segment takes under these tiers. */
  bytesFor(span: SegmentSpan, target: SegmentTiers): number {
    return align(this.#place(span, target).totalBytes);
  }

  /**
   * Makes a layer's next segment of the exact part's tokens behind the sinks.
   * @param exactRef asked once the segment's block is there: making room may move the exact part
   */
  encode(
    layer: number,
    span: SegmentSpan,
    target: SegmentTiers,
    version: number,
    exactRef: () => ExactRef,
    sinks: number,
  ): void {
    const { id, ptr, recordAt, massAt } = this.#open(span, target);
    const exact = exactRef();
    for (let h = 0; h < this.#shape.kvHeads; h++) {
      if (recordAt[h] === 0) continue;
      this.#kernels.encodeRecord(
        exact,
        h,
        sinks,
        span.tokens,
        this.#tierScratch + h * span.tokens,
        ptr + recordAt[h]!,
        this.#shape.mass ? ptr + massAt[h]! : 0,
      );
    }
    this.#push(layer, { id, version });
  }

  /** Rewrites one segment of one layer under new tiers. Mass moves along if it is tracked. */
  recode(layer: number, segment: number, span: SegmentSpan, target: SegmentTiers, version: number): void {
    const old = this.blocks[layer]![segment]!;
    const { id, ptr, recordAt, massAt } = this.#open(span, target);
    const reader = this.reader(old);
    const source = this.#arena.ptr(old.id);
    for (let h = 0; h < this.#shape.kvHeads; h++) {
      // Both are empty then: nothing dropped comes back.
      if (reader.recordAt(h) === 0 || recordAt[h] === 0) continue;
      this.#kernels.recodeRecord(
        source + reader.recordAt(h),
        span.tokens,
        this.#shape.headDim,
        this.#tierScratch + h * span.tokens,
        ptr + recordAt[h]!,
        this.#shape.mass ? source + reader.massAt(h) : 0,
        this.#shape.mass ? ptr + massAt[h]! : 0,
      );
    }
    this.blocks[layer]![segment] = { id: this.#replace(old.id, id), version };
    this.#ptrs[layer] = undefined;
  }

  /**
   * Puts a new block in the place of an old one. Where it fits into the old one's memory it is copied there: blocks that stay in place need no
   * compaction. Not where memory is a GPU's: there an id tells what the host has fetched.
   * @returns the id that holds it
   */
  #replace(old: BlockId, id: BlockId): BlockId {
    const held = this.#arena.size(old);
    const size = this.#arena.size(id);
    // The new block was added when it was opened.
    this.bytes -= held;
    if (size > held || this.#kernels.fetch) {
      this.#arena.free(old);
      return id;
    }
    this.#kernels.copyBytes(this.#arena.ptr(id), this.#arena.ptr(old), size);
    this.#arena.free(id);
    this.#arena.shrink(old, size);
    return old;
  }

  /** Takes over a layer's next block, which was made elsewhere. */
  adopt(layer: number, id: BlockId, version: number): void {
    this.#push(layer, { id, version });
    this.bytes += this.#arena.size(id);
  }
  #push(layer: number, block: SegmentBlock): void {
    this.blocks[layer]!.push(block);
    this.#ptrs[layer] = undefined;
  }

  /** Multiplies a layer's masses by numerator / 65536. */
  decay(layer: number, numerator: number): void {
    for (const block of this.blocks[layer]!) {
      const stored = this.reader(block).storedBytes;
      const bytes = this.#arena.size(block.id) - stored;
      this.#kernels.decayMass(this.#arena.ptr(block.id) + stored, bytes / 2, numerator);
    }
  }

  dispose(): void {
    for (const blocks of this.blocks) for (const { id } of blocks) this.#arena.free(id);
    this.bytes = 0;
  }

  /** Allocates a segment's block, writes its header and hands its tiers to the kernels. */
  #open(span: SegmentSpan, { tiers, from }: SegmentTiers) {
    const place = this.#place(span, { tiers, from });
    const id = this.#arena.alloc(place.totalBytes, 'a cache segment');
    this.bytes += this.#arena.size(id);
    const ptr = this.#arena.ptr(id);
    writeHeader(this.#arena.bytes(id), span, place);
    this.#kernels.hostWrote(ptr, segmentHeaderBytes(this.#shape.kvHeads));
    const count = this.#shape.kvHeads * span.tokens;
    const scratch = new Uint8Array(this.#arena.memory.buffer, this.#tierScratch, count);
    scratch.set(tiers.subarray(from, from + count));
    return { id, ptr, recordAt: place.recordAt, massAt: place.massAt };
  }

  /** How a segment lies in memory under these tiers. */
  #place(span: SegmentSpan, { tiers, from }: SegmentTiers): ReturnType<typeof layOut> {
    const { kvHeads, headDim, mass } = this.#shape;
    const counts: Uint8Array[] = [];
    for (let h = 0; h < kvHeads; h++) counts.push(countTiers(tiers, from + h * span.tokens, span.tokens));
    return layOut(span, counts, headDim, mass);
  }
}
