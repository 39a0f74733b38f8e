import { EPOCH } from '../core/config.ts';
import type { EngineCache } from '../engine/types.ts';
import { LAZY_EPOCHS, REWRITE_EPOCHS } from './limits.ts';
import { MAX_PAYLOAD_BYTES, type RowAllocator, type RowBuffer, RowKind, RowStream } from './row.ts';
import {
  type BlockEntry,
  directoryBytes,
  type Extent,
  encodeDirectory,
  padded,
  type StateRecord,
} from './state.ts';
import type { SessionStore } from './store/session-store.ts';

/** What of a cache's blocks is stored, and which of them a commit writes: those that are new, and in turn some that plans have changed since. */
export class Blocks {
  readonly #cache: EngineCache;
  readonly #total: number;
  /** Stored extents that stay in force. */
  readonly kept: Extent[];
  /** Ranges to write: [first, count]. */
  readonly #write: [first: number, count: number][] = [];

  constructor(cache: EngineCache, stored: StateRecord | undefined) {
    this.#cache = cache;
    this.#total = blocksOf(cache);
    const extents = stored?.extents ?? [];
    this.kept = [...extents];
    const held = heldBy(extents);
    if (held < this.#total) this.#write.push([held, this.#total - held]);
    const [from, to] = this.#toRewrite(extents);
    if (from === to) return;
    const first = extents[from]!.first;
    this.#write.push([first, extents[to - 1]!.first + extents[to - 1]!.count - first]);
    this.kept.splice(from, to - from);
  }

  /**
   * Neighbouring extents that lag behind, the oldest first: a share of all stored bytes for each epoch whose segment is stored now in all layers, so that
   * every block has its turn within about REWRITE_EPOCHS.
   * @returns indices [from, to)
   */
  #toRewrite(extents: readonly Extent[]): [number, number] {
    const { layers, position } = this.#cache;
    const epochs = Math.floor(this.#total / layers) - Math.floor(heldBy(extents) / layers);
    if (epochs <= 0) return [0, 0];
    const lags = (extent: Extent): boolean =>
      position - extent.written >= LAZY_EPOCHS * EPOCH && this.#stale(extent);
    let from = -1;
    for (const [i, extent] of extents.entries())
      if ((from < 0 || extent.written < extents[from]!.written) && lags(extent)) from = i;
    if (from < 0) return [0, 0];
    const all = extents.reduce((sum, extent) => sum + bytesOf(extent), 0);
    let left = (all * epochs) / REWRITE_EPOCHS;
    let to = from;
    for (; to < extents.length && left > 0 && lags(extents[to]!); to++) left -= bytesOf(extents[to]!);
    return [from, to];
  }

  /** The position since which plans are missing in some extent that stays; Infinity: none is. */
  oldestStale(): number {
    let oldest = Number.POSITIVE_INFINITY;
    for (const extent of this.kept)
      if (extent.written < oldest && this.#stale(extent)) oldest = extent.written;
    return oldest;
  }

  /** @returns all extents in force, in the order of their blocks */
  write(store: SessionStore, rows: RowAllocator, buffer: RowBuffer): Extent[] {
    const extents = [...this.kept];
    for (const [first, count] of this.#write)
      for (const group of this.#groups(first, count)) {
        const stream = new RowStream(store, rows, RowKind.extent, buffer);
        stream.push(encodeDirectory(group.blocks));
        for (const { layer, segment, bytes } of group.blocks) {
          stream.push(this.#cache.blockView(layer, segment));
          if (padded(bytes) > bytes) stream.push(PADDING.subarray(0, padded(bytes) - bytes));
        }
        extents.push({
          refs: stream.end(),
          written: this.#cache.position,
          first: group.first,
          count: group.blocks.length,
        });
      }
    return extents.sort((a, b) => a.first - b.first);
  }

  /** Splits blocks into what fits a row each; a block larger than a row stands alone. */
  *#groups(first: number, count: number): Generator<{ first: number; blocks: BlockEntry[] }> {
    const { layers } = this.#cache;
    let blocks: BlockEntry[] = [];
    let bytes = directoryBytes(0);
    let begin = first;
    for (let i = first; i < first + count; i++) {
      const [layer, segment] = [i % layers, Math.floor(i / layers)];
      const size = this.#cache.blockBytes(layer, segment);
      const cost = directoryBytes(1) - directoryBytes(0) + padded(size);
      if (blocks.length > 0 && bytes + cost > MAX_PAYLOAD_BYTES) {
        yield { first: begin, blocks };
        blocks = [];
        bytes = directoryBytes(0);
        begin = i;
      }
      blocks.push({ layer, segment, version: this.#cache.blockVersion(layer, segment), bytes: size });
      bytes += cost;
    }
    if (blocks.length > 0) yield { first: begin, blocks };
  }

  #stale({ first, count, written }: Extent): boolean {
    const { layers } = this.#cache;
    for (let i = first; i < first + count; i++)
      if (this.#cache.blockVersion(i % layers, Math.floor(i / layers)) > written) return true;
    return false;
  }
}

/** Blocks that a cache holds now. */
export function blocksOf(cache: EngineCache): number {
  let blocks = 0;
  for (let layer = 0; layer < cache.layers; layer++) blocks += cache.segmentsOf(layer);
  return blocks;
}

/** Blocks that these extents hold. */
export const heldBy = (extents: readonly Extent[]): number => {
  const last = extents.at(-1);
  return last ? last.first + last.count : 0;
};

const PADDING = new Uint8Array(4);
const bytesOf = ({ refs }: Extent): number => refs.reduce((sum, ref) => sum + ref[2], 0);
