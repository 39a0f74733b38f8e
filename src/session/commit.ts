import { changingParts, type HotViews, type PlanJournalEntry } from '../cache/persist.ts';
import { EPOCH } from '../core/config.ts';
import type { EngineCache } from '../engine/types.ts';
import { writeExact } from './exact-pieces.ts';
import { Blocks } from './extents.ts';
import { FIRST_FREE_ROW, type Head, writeHead } from './head.ts';
import {
  CHECKPOINT_QUOTA_BYTES,
  CHECKPOINT_TURNS,
  COMMIT_ROWS,
  MAX_COMMIT_FACTOR,
  SPARE_ROWS,
} from './limits.ts';
import { anchors } from './log.ts';
import { RowAllocator, RowBuffer, RowKind, RowStream } from './row.ts';
import {
  type Extent,
  encodeState,
  type JournalPack,
  refsOf,
  STATE_VERSION,
  type StateEntry,
  type StateRecord,
  StateRows,
} from './state.ts';
import type { SessionStore } from './store/session-store.ts';

export interface CommitResult {
  readonly head: Head;
  /** What is stored of the cache now: the next commit writes only what differs from it. */
  readonly stored: StateRecord;
  /** Rows written or deleted, and bytes written. */
  readonly rows: number;
  readonly bytes: number;
}

/**
 * One transaction: the log, the exact tokens and blocks that are new, what changes with every token, either changed blocks or the plans that changed
 * them, the state that names all these rows, and the head. Older states stay where somebody may return to them; rows that nothing refers to any more
 * are overwritten by the next commits. If anything throws, the store holds what it held before.
 *
 * @param head the session as it is to be; `states` names the older states that are still true for this log
 * @param stored what of `cache` is in the store; undefined: nothing
 * @param pinned rows that somebody reads: they stay as they are
 * @param known remembers which rows older states need
 * @param spilled rows that were written since the last commit: they count into what this one may write and delete
 */
export function commit(
  store: SessionStore,
  head: Head,
  cache: EngineCache,
  stored: StateRecord | undefined,
  pinned: Iterable<number> = [],
  known: StateRows = new StateRows(),
  spilled = 0,
): CommitResult {
  const pending = cache.completePlan();
  const before = { ...store.counters };
  const epochs = Math.floor((cache.position - (stored?.header.position ?? 0)) / EPOCH);
  const budget = COMMIT_ROWS * Math.min(Math.max(1, epochs), MAX_COMMIT_FACTOR);
  const result = store.transaction(() => {
    const blocks = new Blocks(cache, stored);
    const kept = keepStates(store, head, cache.position, blocks.kept, known);
    // Rows that `stored` alone refers to are not overwritten yet: only the next commit's transaction finds them free.
    const used = new Set([...kept.used, ...pinned]);
    for (const ref of stored ? refsOf(stored) : []) used.add(ref[0]);
    const rows = new RowAllocator(store.ids(), used, FIRST_FREE_ROW);
    const buffer = new RowBuffer();

    const views = Array.from({ length: cache.layers }, (_, layer) => cache.hotViews(layer));
    const exact = writeExact(store, rows, buffer, cache, views, stored);
    const hot = writeHot(store, rows, buffer, views);
    const extents = blocks.write(store, rows, buffer);
    const oldest = Math.min(blocks.oldestStale(), pending?.position ?? Number.POSITIVE_INFINITY);
    const journal = writeJournal(store, rows, buffer, cache, stored, oldest);

    const record: StateRecord = {
      version: STATE_VERSION,
      header: cache.header,
      hot,
      exact,
      extents,
      journal,
    };
    const stream = new RowStream(store, rows, RowKind.state, buffer);
    stream.push(encodeState(record));
    const entry: StateEntry = { refs: stream.end(), position: cache.position };
    const next: Head = { ...head, states: [...kept.states, entry] };
    writeHead(store, next);
    const left = budget - spilled - (store.counters.rowsWritten - before.rowsWritten);
    const surplus = Math.min(rows.spare.length - SPARE_ROWS, left);
    if (surplus > 0) store.delete(rows.spare.slice(0, surplus));
    return { head: next, stored: record };
  });
  cache.clearJournal();
  return {
    ...result,
    rows: store.counters.rowsWritten - before.rowsWritten,
    bytes: store.counters.bytesWritten - before.bytesWritten,
  };
}

/** Older states that are kept, and all rows that they refer to. `current`: the extents that the new state goes on using. */
function keepStates(
  store: SessionStore,
  head: Head,
  position: number,
  current: readonly Extent[],
  known: StateRows,
): { states: StateEntry[]; used: Set<number> } {
  const wanted = new Set<StateEntry>();
  for (const anchor of anchors(head.log, CHECKPOINT_TURNS)) {
    const best = head.states.findLast((state) => state.position <= anchor);
    if (best && (position > anchor || position < best.position)) wanted.add(best);
  }
  // What the current state shares with a checkpoint costs the checkpoint nothing.
  const shared = new Set<number>();
  for (const extent of current) for (const ref of extent.refs) shared.add(ref[0]);
  const used = new Set<number>();
  const states: StateEntry[] = [];
  let quota = CHECKPOINT_QUOTA_BYTES;
  for (const state of [...wanted].sort((a, b) => b.position - a.position)) {
    const refs = known.of(store, state);
    if (!refs) continue;
    const cost = refs.reduce(
      (sum, [row, , bytes]) => sum + (shared.has(row) || used.has(row) ? 0 : bytes),
      0,
    );
    if (cost > quota) break;
    quota -= cost;
    for (const [row] of refs) used.add(row);
    states.unshift(state);
  }
  return { states, used };
}

function writeHot(
  store: SessionStore,
  rows: RowAllocator,
  buffer: RowBuffer,
  views: readonly HotViews[],
): StateRecord['hot'] {
  const stream = new RowStream(store, rows, RowKind.hot, buffer);
  const sizes: number[] = [];
  for (const view of views) {
    stream.push(view.header);
    let size = view.header.byteLength;
    for (const part of changingParts(view)) {
      stream.push(part);
      size += part.byteLength;
    }
    sizes.push(size);
  }
  return { refs: stream.end(), sizes };
}

/** The packs that blocks written at `oldest` or later still need, the newest plans among them. A plan takes effect within an epoch. */
function writeJournal(
  store: SessionStore,
  rows: RowAllocator,
  buffer: RowBuffer,
  cache: EngineCache,
  stored: StateRecord | undefined,
  oldest: number,
): JournalPack[] {
  const packs = (stored?.journal ?? []).filter(({ positions }) =>
    positions.some((position) => position + EPOCH > oldest),
  );
  const entries = cache.journal.filter(({ position }) => position + EPOCH > oldest);
  if (entries.length === 0) return packs;
  const stream = new RowStream(store, rows, RowKind.journal, buffer);
  stream.push(encodeJournal(entries));
  return [...packs, { refs: stream.end(), positions: entries.map(({ position }) => position) }];
}

/** For each entry u32 position, u32 bytes, the bytes. */
export function encodeJournal(entries: readonly PlanJournalEntry[]): Uint8Array {
  const out = new Uint8Array(entries.reduce((sum, { bytes }) => sum + 8 + bytes.byteLength, 0));
  const view = new DataView(out.buffer);
  let at = 0;
  for (const { position, bytes } of entries) {
    view.setUint32(at, position, true);
    view.setUint32(at + 4, bytes.byteLength, true);
    out.set(bytes, at + 8);
    at += 8 + bytes.byteLength;
  }
  return out;
}

export function decodeJournal(bytes: Uint8Array): PlanJournalEntry[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const entries: PlanJournalEntry[] = [];
  for (let at = 0; at < bytes.byteLength; ) {
    const size = view.getUint32(at + 4, true);
    entries.push({ position: view.getUint32(at, true), bytes: bytes.slice(at + 8, at + 8 + size) });
    at += 8 + size;
  }
  return entries;
}
