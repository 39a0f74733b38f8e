import type { BlockId, Ptr } from '../core/arena.ts';
import type { RecordKernels } from '../kernels/kernels.ts';
import type { ExactPart } from './exact-part.ts';
import type { SegmentBlock, SegmentReader } from './segments.ts';

/** What of a cache lies elsewhere where its kernels run on a GPU. */
export interface Fetchable {
  readonly context: { readonly kernels: Pick<RecordKernels, 'arena' | 'fetch'> };
  readonly layers: number;
  readonly tracksMass: boolean;
  readonly blocks: readonly (readonly SegmentBlock[])[];
  readonly exact: ExactPart;
  reader(block: SegmentBlock): SegmentReader;
}
interface Range {
  readonly at: Ptr;
  readonly bytes: number;
}

/** Before plans are made: brings the attention mass of all tokens of these caches to the host, in one go. They share their kernels. */
export async function fetchMass(...caches: readonly Fetchable[]): Promise<void> {
  const fetch = caches[0]?.context.kernels.fetch;
  const ranges = caches.flatMap((cache) => (cache.tracksMass ? massRanges(cache) : []));
  if (ranges.length > 0) await fetch?.(ranges);
}

/** `cache.finish()`, wherever the attention mass lies: what a waiting plan moves is moved before it is fetched. */
export async function fetchAndFinish(cache: Fetchable & { applyNow(): void; finish(): void }): Promise<void> {
  cache.applyNow();
  await fetchMass(cache);
  cache.finish();
}

/**
 * Before a state is read (`hot`, `block`): brings what has changed since it was last brought.
 * @param held blocks whose stored bytes the host has; added to
 */
export async function fetchState(cache: Fetchable, held: Set<BlockId>): Promise<void> {
  const { arena, fetch } = cache.context.kernels;
  if (!fetch) return;
  const ranges = cache.tracksMass ? massRanges(cache) : [];
  const changed: BlockId[] = [];
  for (let layer = 0; layer < cache.layers; layer++) {
    if (cache.exact.holds(layer))
      ranges.push({ at: cache.exact.ref(layer).ptr, bytes: cache.exact.bytesOf(layer) });
    for (const block of cache.blocks[layer]!) {
      if (held.has(block.id)) continue;
      ranges.push({ at: arena.ptr(block.id), bytes: cache.reader(block).storedBytes });
      changed.push(block.id);
    }
  }
  await fetch(ranges);
  for (const id of changed) held.add(id);
}

function massRanges(cache: Fetchable): Range[] {
  const { arena } = cache.context.kernels;
  const ranges: Range[] = [];
  for (let layer = 0; layer < cache.layers; layer++) {
    if (cache.exact.holds(layer)) {
      const { ptr, count } = cache.exact.masses(layer);
      ranges.push({ at: ptr, bytes: count * 2 });
    }
    for (const block of cache.blocks[layer]!) {
      const stored = cache.reader(block).storedBytes;
      ranges.push({ at: arena.ptr(block.id) + stored, bytes: arena.size(block.id) - stored });
    }
  }
  return ranges;
}
