import { release } from '../core/release.ts';
import type { EngineCache } from '../engine/types.ts';
import { exactFrom, piecesFrom, writePiece } from './exact-pieces.ts';
import { Blocks, blocksOf, heldBy } from './extents.ts';
import { FIRST_FREE_ROW } from './head.ts';
import { MAX_EXACT_PIECES, MAX_SPILL_TOKENS, SPILL_TOKENS } from './limits.ts';
import { MAX_PAYLOAD_BYTES, RowAllocator, RowBuffer } from './row.ts';
import { refsOf, type StateEntry, type StateRecord, type StateRows } from './state.ts';
import type { SessionStore } from './store/session-store.ts';

/*
 * An exact token never changes, and a block only where a plan changes it, which the journal tells. Both can be stored while the answer is still being
 * decoded, so that the commit at its end writes less. Nothing that is stored names them until then: after a crash their rows are spare rows.
 */

/** What is worth a transaction of its own: blocks that an epoch has made, or the exact tokens at [from, to). */
export type Spillable = 'blocks' | readonly [from: number, to: number];

/** @param stored what of `cache` is in the store, what was spilled since the last commit included; undefined: nothing */
export function spillable(cache: EngineCache, stored: StateRecord | undefined): Spillable | undefined {
  // Without a committed state there need not be a session yet, and rows without one are nobody's to clear away. From a GPU all would have to be fetched.
  if (!stored || stored.header.position < cache.pinned || cache.remote) return undefined;
  if (blocksDue(cache, stored)) return 'blocks';
  const needed = exactFrom(cache);
  const pieces = piecesFrom(stored.exact, needed);
  const from = pieces.at(-1)?.to ?? needed;
  // The commit adds one, and must not find so many that it writes them all again.
  if (cache.position - from < SPILL_TOKENS || pieces.length + 1 >= MAX_EXACT_PIECES) return undefined;
  return [from, Math.min(cache.position, from + MAX_SPILL_TOKENS)];
}

/** The blocks that an epoch makes, layer by layer: as soon as they fill a row, and the last ones. */
function blocksDue(cache: EngineCache, stored: StateRecord): boolean {
  const { layers } = cache;
  const total = blocksOf(cache);
  const held = heldBy(stored.extents);
  if (total === held) return false;
  if (total % layers === 0) return true;
  let bytes = 0;
  for (let i = held; i < total; i++) bytes += cache.blockBytes(i % layers, Math.floor(i / layers));
  return bytes >= MAX_PAYLOAD_BYTES;
}

export interface SpillResult {
  /** For the next commit, or spill: `stored` and what is new. */
  readonly stored: StateRecord;
  readonly rows: number;
  readonly bytes: number;
}

/**
 * One transaction. If anything throws, the store holds what it held before.
 *
 * @param states those that the stored head names: none of their rows is overwritten
 * @param pinned other rows that stay as they are: of the commit that `stored` began with, and what somebody reads
 */
export function spill(
  store: SessionStore,
  states: readonly StateEntry[],
  cache: EngineCache,
  stored: StateRecord,
  what: Spillable,
  pinned: Iterable<number>,
  known: StateRows,
): SpillResult {
  const before = { ...store.counters };
  const buffer = new RowBuffer();
  const next = store.transaction((): StateRecord => {
    const used = new Set(pinned);
    for (const [row] of refsOf(stored)) used.add(row);
    for (const entry of states) for (const [row] of known.of(store, entry) ?? entry.refs) used.add(row);
    const rows = new RowAllocator(store.ids(), used, FIRST_FREE_ROW);
    if (what === 'blocks')
      return { ...stored, extents: new Blocks(cache, stored).write(store, rows, buffer) };
    const planes = Array.from({ length: cache.layers }, (_, layer) => cache.hotViews(layer).planes);
    const piece = writePiece(store, rows, buffer, cache, planes, ...what);
    // A long answer's first pieces are compressed before its commit, and their rows the next to be overwritten.
    const needed = exactFrom(cache);
    const kept = stored.exact.pieces.filter(({ to }) => to <= cache.pinned || to > needed);
    return { ...stored, exact: { ...stored.exact, pieces: [...kept, piece] } };
  });
  // Several in each answer.
  release(buffer.bytes);
  return {
    stored: next,
    rows: store.counters.rowsWritten - before.rowsWritten,
    bytes: store.counters.bytesWritten - before.bytesWritten,
  };
}
