import type { HotViews } from '../cache/persist.ts';
import { CorruptDataError } from '../core/errors.ts';
import type { EngineCache } from '../engine/types.ts';
import { MAX_EXACT_PIECES } from './limits.ts';
import { BlobReader, type RowAllocator, type RowBuffer, RowKind, RowStream } from './row.ts';
import type { ExactPiece, StateRecord } from './state.ts';
import type { SessionStore } from './store/session-store.ts';

/** Per layer the planes of its exact tokens (HotViews.planes). */
type Planes = readonly (readonly Uint8Array[])[];

/** Positions below which no layer holds an exact token any more, the pinned first ones apart. */
export function exactFrom(cache: EngineCache): number {
  let from = cache.position;
  for (let layer = 0; layer < cache.layers; layer++) from = Math.min(from, cache.exactFrom(layer));
  return Math.max(from, cache.pinned);
}

/** Pieces of tokens, pinned ones apart, of which some layer holds one from `needed` on. */
export const piecesFrom = ({ pinned, pieces }: StateRecord['exact'], needed: number): ExactPiece[] =>
  pieces.filter(({ from, to }) => from >= pinned && to > needed);

/**
 * Stores the exact tokens that are not stored yet. What a token's keys and values are never changes while it is exact, so that its piece serves all states
 * until it is compressed in every layer.
 */
export function writeExact(
  store: SessionStore,
  rows: RowAllocator,
  buffer: RowBuffer,
  cache: EngineCache,
  hot: readonly HotViews[],
  stored: StateRecord | undefined,
): StateRecord['exact'] {
  const { pinned, position } = cache;
  const needed = exactFrom(cache);
  const first = stored?.exact.pieces.filter(({ to }) => to <= pinned) ?? [];
  let recent = stored ? piecesFrom(stored.exact, needed) : [];
  if (recent.length >= MAX_EXACT_PIECES) recent = [];
  const planes = hot.map((views) => views.planes);
  const write = (from: number, to: number): ExactPiece[] =>
    from < to ? [writePiece(store, rows, buffer, cache, planes, from, to)] : [];
  return {
    stride: cache.exactStride,
    planes: planes[0]?.length ?? 0,
    pinned,
    pieces: [
      ...first,
      ...write(first.at(-1)?.to ?? 0, Math.min(pinned, position)),
      ...recent,
      ...write(recent.at(-1)?.to ?? needed, position),
    ],
  };
}

/** Stores the exact tokens at [from, to), which lie on one side of the last pinned one. */
export function writePiece(
  store: SessionStore,
  rows: RowAllocator,
  buffer: RowBuffer,
  cache: EngineCache,
  planes: Planes,
  from: number,
  to: number,
): ExactPiece {
  const { pinned, exactStride } = cache;
  const stream = new RowStream(store, rows, RowKind.exact, buffer);
  const starts = Uint32Array.from(planes, (_, layer) =>
    from < pinned ? from : Math.min(to, Math.max(from, cache.exactFrom(layer))),
  );
  stream.push(new Uint8Array(starts.buffer));
  for (const [layer, ofLayer] of planes.entries()) {
    const start = starts[layer]!;
    const slot = from < pinned ? start : pinned + start - cache.exactFrom(layer);
    for (const plane of ofLayer)
      stream.push(plane.subarray(slot * exactStride, (slot + to - start) * exactStride));
  }
  return { refs: stream.end(), from, to };
}

/** Puts the exact tokens of a layer together again. */
export class ExactReader {
  readonly #exact: StateRecord['exact'];
  readonly #position: number;
  readonly #layers: number;
  /** One row of each piece is held: layers are asked for in order. */
  readonly #blobs: readonly BlobReader[];
  /** First position of each layer, by piece. */
  readonly #starts: readonly Uint32Array[];
  readonly #bytes: number;

  constructor(store: SessionStore, { exact, header, hot }: StateRecord) {
    this.#exact = exact;
    this.#position = header.position;
    this.#layers = hot.sizes.length;
    this.#blobs = exact.pieces.map(({ refs }) => new BlobReader(store, refs, RowKind.exact));
    this.#starts = this.#blobs.map((blob) => {
      const bytes = blob.read(0, 4 * this.#layers);
      return new Uint32Array(bytes.buffer, bytes.byteOffset, this.#layers);
    });
    this.#bytes = this.#blobs.reduce((sum, blob) => sum + blob.byteLength, 0);
  }

  /** Of the planes of `slots` tokens. @throws CorruptDataError when so many are not stored */
  bytesOf(layer: number, slots: number): number {
    const { stride, planes } = this.#exact;
    if (slots * stride * planes > this.#bytes) throw this.#missing(layer, slots);
    return slots * stride * planes;
  }

  /** Fills `out` with the planes of `slots` tokens, one after the other. @throws CorruptDataError when some are not stored */
  readInto(layer: number, slots: number, out: Uint8Array): void {
    const { stride, planes, pinned, pieces } = this.#exact;
    const first = Math.min(pinned, this.#position);
    const recent = this.#position - (slots - first);
    let filled = 0;
    for (const [i, { from, to }] of pieces.entries()) {
      const start = this.#starts[i]![layer]!;
      const begin = from < pinned ? start : Math.max(start, recent);
      const end = Math.min(to, this.#position);
      if (begin >= end) continue;
      const slot = from < pinned ? begin : first + begin - recent;
      if (slot !== filled) throw this.#missing(layer, slots);
      const size = (to - start) * stride;
      const at = this.#layerAt(i, layer);
      for (let plane = 0; plane < planes; plane++) {
        const to = (plane * slots + slot) * stride;
        this.#blobs[i]!.readInto(
          at + plane * size + (begin - start) * stride,
          out.subarray(to, to + (end - begin) * stride),
        );
      }
      filled += end - begin;
    }
    if (filled !== slots) throw this.#missing(layer, slots);
  }

  release(): void {
    for (const blob of this.#blobs) blob.release();
  }

  #layerAt(piece: number, layer: number): number {
    const { stride, planes, pieces } = this.#exact;
    let at = 4 * this.#layers;
    for (let below = 0; below < layer; below++)
      at += (pieces[piece]!.to - this.#starts[piece]![below]!) * stride * planes;
    return at;
  }

  #missing(layer: number, slots: number): CorruptDataError {
    return new CorruptDataError(`not all of the ${slots} exact tokens of layer ${layer} are stored`);
  }
}
