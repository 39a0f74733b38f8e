import type { PlanJournalEntry } from '../cache/persist.ts';
import { EPOCH } from '../core/config.ts';
import type { EngineCache } from '../engine/types.ts';
import { FIRST_FREE_ROW, type Head, writeHead } from './head.ts';
import {
  CHECKPOINT_QUOTA_BYTES,
  CHECKPOINT_TURNS,
  COMMIT_ROWS,
  LAZY_EPOCHS,
  MAX_COMMIT_FACTOR,
  MAX_LAG_EPOCHS,
  SPARE_ROWS,
} from './limits.ts';
import { anchors } from './log.ts';
import { MAX_PAYLOAD_BYTES, RowAllocator, RowKind, type RowRef, RowStream } from './row.ts';
import {
  type BlockEntry,
  directoryBytes,
  type Extent,
  encodeDirectory,
  encodeState,
  type JournalPack,
  padded,
  type Run,
  readState,
  refsOf,
  type StateEntry,
  type StateRecord,
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
 * One transaction: the log, the cache's hot parts, the blocks that are new, either changed blocks or the plans that changed them, the state that
 * names all these rows, and the head. Older states stay where somebody may return to them; rows that nothing refers to any more
 * are overwritten by the next commits. If anything throws, the store holds what it held before.
 *
 * @param head the session as it is to be; `states` names the older states that are still true for this log
 * @param stored what of `cache` is in the store; undefined: nothing
 * @param pinned rows that somebody reads: they stay as they are
 */
export function commit(
  store: SessionStore,
  head: Head,
  cache: EngineCache,
  stored: StateRecord | undefined,
  pinned: Iterable<number> = [],
): CommitResult {
  const pending = cache.completePlan();
  const before = { ...store.counters };
  const epochs = Math.floor((cache.position - (stored?.header.position ?? 0)) / EPOCH);
  const budget = COMMIT_ROWS * Math.min(Math.max(1, epochs), MAX_COMMIT_FACTOR);
  const result = store.transaction(() => {
    const blocks = new Blocks(cache, stored);
    const mandatory = hotRows(cache) + blocks.rowsFor(blocks.fresh) + OTHER_ROWS;
    const layers = new Set(blocks.layersToRewrite(budget - mandatory));
    const untouched = blocks.withoutLayers(layers);
    const kept = keepStates(store, head, cache.position, untouched);
    // Rows that `stored` alone refers to are not overwritten yet: only the next commit's transaction finds them free.
    const used = new Set([...kept.used, ...pinned]);
    for (const ref of stored ? refsOf(stored) : []) used.add(ref[0]);
    const rows = new RowAllocator(store.ids(), used, FIRST_FREE_ROW);

    const hot = writeHot(store, rows, cache);
    const rewritten = blocks.all.filter(([layer]) => layers.has(layer));
    const extents = [
      ...untouched,
      ...writeExtents(store, rows, cache, rewritten, true),
      ...writeExtents(
        store,
        rows,
        cache,
        blocks.fresh.filter(([layer]) => !layers.has(layer)),
        false,
      ),
    ];
    const oldest = Math.min(blocks.oldestStale(layers), pending?.position ?? Number.POSITIVE_INFINITY);
    const journal = writeJournal(store, rows, cache, stored, oldest);

    const record: StateRecord = { header: cache.header, hot, extents, journal };
    const stream = new RowStream(store, rows, RowKind.state);
    stream.push(encodeState(record));
    const entry: StateEntry = { refs: stream.end(), position: cache.position };
    const next: Head = { ...head, states: [...kept.states, entry] };
    writeHead(store, next);
    const left = budget - (store.counters.rowsWritten - before.rowsWritten);
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

/** Rows besides hot parts and blocks: two copies of the head, the state, the newest plans. */
const OTHER_ROWS = 4;

/** Older states that are kept, and all rows that they refer to. `current`: the extents that the new state goes on using. */
function keepStates(
  store: SessionStore,
  head: Head,
  position: number,
  current: readonly Extent[],
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
    const refs = tryRefs(store, state);
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

/** Undefined for a state that is damaged: it is of no use, and its rows are given up. */
function tryRefs(store: SessionStore, state: StateEntry): RowRef[] | undefined {
  try {
    return [...state.refs, ...refsOf(readState(store, state))];
  } catch {
    return undefined;
  }
}

function hotRows(cache: EngineCache): number {
  let bytes = 0;
  for (let layer = 0; layer < cache.layers; layer++) bytes += cache.hotBytes(layer);
  return Math.ceil(bytes / MAX_PAYLOAD_BYTES);
}

function writeHot(store: SessionStore, rows: RowAllocator, cache: EngineCache): StateRecord['hot'] {
  const stream = new RowStream(store, rows, RowKind.hot);
  const sizes: number[] = [];
  for (let layer = 0; layer < cache.layers; layer++) {
    const bytes = cache.hot(layer);
    sizes.push(bytes.byteLength);
    stream.push(bytes);
  }
  return { refs: stream.end(), sizes };
}

type BlockId = readonly [layer: number, segment: number];

/** What of a cache's blocks is stored, what is new, and what has changed since. */
class Blocks {
  #cache: EngineCache;
  #extents: readonly Extent[];
  /** Not stored in any version. */
  readonly fresh: BlockId[] = [];

  constructor(cache: EngineCache, stored: StateRecord | undefined) {
    this.#cache = cache;
    this.#extents = stored?.extents ?? [];
    const held = new Array<number>(cache.layers).fill(0);
    for (const { runs } of this.#extents) for (const [layer, , count] of runs) held[layer]! += count;
    for (let layer = 0; layer < cache.layers; layer++)
      for (let segment = held[layer]!; segment < cache.segmentsOf(layer); segment++)
        this.fresh.push([layer, segment]);
  }

  get all(): BlockId[] {
    const all: BlockId[] = [];
    for (let layer = 0; layer < this.#cache.layers; layer++)
      for (let segment = 0; segment < this.#cache.segmentsOf(layer); segment++) all.push([layer, segment]);
    return all;
  }

  /** Rows that the blocks take when written one after the other. */
  rowsFor(blocks: readonly BlockId[]): number {
    let rows = 0;
    for (const group of groups(this.#cache, blocks, false))
      rows += Math.max(1, Math.ceil(group.bytes / MAX_PAYLOAD_BYTES));
    return rows;
  }

  /**
   * Layers whose stored blocks lag behind or lie scattered, the oldest first, as many as fit into `budget` rows;
   * beyond MAX_LAG_EPOCHS one in any case.
   */
  layersToRewrite(budget: number): number[] {
    const position = this.#cache.position;
    const oldest = new Map<number, number>();
    const scattered = new Map<number, number>();
    for (const extent of this.#extents)
      for (const run of extent.runs) {
        const layer = run[0];
        scattered.set(layer, (scattered.get(layer) ?? 0) + 1);
        if (this.#stale(extent, run))
          oldest.set(layer, Math.min(oldest.get(layer) ?? position, extent.written));
      }
    const layers: number[] = [];
    let left = budget;
    const candidates = [...scattered.keys()].sort(
      (a, b) =>
        (oldest.get(a) ?? position) - (oldest.get(b) ?? position) || scattered.get(b)! - scattered.get(a)!,
    );
    for (const layer of candidates) {
      const lag = (position - (oldest.get(layer) ?? position)) / EPOCH;
      const rows = this.rowsFor(this.all.filter((block) => block[0] === layer));
      const untidy = scattered.get(layer)! > 2 * rows + LAZY_EPOCHS;
      if (lag < LAZY_EPOCHS && !untidy) continue;
      if (rows > left && !(lag >= MAX_LAG_EPOCHS && layers.length === 0)) continue;
      layers.push(layer);
      left -= rows;
    }
    return layers;
  }

  /** The stored extents without the runs of these layers; an extent without runs is let go. */
  withoutLayers(layers: ReadonlySet<number>): Extent[] {
    return this.#extents
      .map((extent) => ({ ...extent, runs: extent.runs.filter(([layer]) => !layers.has(layer)) }))
      .filter((extent) => extent.runs.length > 0);
  }

  /** The position since which plans are missing in some stored block outside these layers; Infinity: none is. */
  oldestStale(layers: ReadonlySet<number>): number {
    let oldest = Number.POSITIVE_INFINITY;
    for (const extent of this.#extents)
      for (const run of extent.runs)
        if (!layers.has(run[0]) && extent.written < oldest && this.#stale(extent, run))
          oldest = extent.written;
    return oldest;
  }

  #stale(extent: Extent, [layer, first, count]: Run): boolean {
    for (let segment = first; segment < first + count; segment++)
      if (this.#cache.blockVersion(layer, segment) > extent.written) return true;
    return false;
  }
}

/** Splits blocks, in order, into what fits a row each; a block larger than a row stands alone. */
function* groups(
  cache: EngineCache,
  blocks: readonly BlockId[],
  layerByLayer: boolean,
): Generator<{ blocks: BlockEntry[]; bytes: number }> {
  let group: BlockEntry[] = [];
  let bytes = directoryBytes(0);
  for (const [layer, segment] of blocks) {
    const size = cache.blockBytes(layer, segment);
    const cost = directoryBytes(1) - directoryBytes(0) + padded(size);
    if (
      group.length > 0 &&
      (bytes + cost > MAX_PAYLOAD_BYTES || (layerByLayer && group[0]!.layer !== layer))
    ) {
      yield { blocks: group, bytes };
      group = [];
      bytes = directoryBytes(0);
    }
    group.push({ layer, segment, version: cache.blockVersion(layer, segment), bytes: size });
    bytes += cost;
  }
  if (group.length > 0) yield { blocks: group, bytes };
}

function writeExtents(
  store: SessionStore,
  rows: RowAllocator,
  cache: EngineCache,
  blocks: readonly BlockId[],
  layerByLayer: boolean,
): Extent[] {
  const extents: Extent[] = [];
  for (const group of groups(cache, blocks, layerByLayer)) {
    const stream = new RowStream(store, rows, RowKind.extent);
    stream.push(encodeDirectory(group.blocks));
    for (const { layer, segment, bytes } of group.blocks) {
      stream.push(cache.block(layer, segment));
      stream.push(new Uint8Array(padded(bytes) - bytes));
    }
    extents.push({ refs: stream.end(), written: cache.position, runs: runsOf(group.blocks) });
  }
  return extents;
}

function runsOf(blocks: readonly BlockEntry[]): Run[] {
  const runs: [number, number, number][] = [];
  for (const { layer, segment } of blocks) {
    const last = runs.at(-1);
    if (last && last[0] === layer && last[1] + last[2] === segment) last[2]++;
    else runs.push([layer, segment, 1]);
  }
  return runs;
}

/** The packs that blocks written at `oldest` or later still need, the newest plans among them. A plan takes effect within an epoch. */
function writeJournal(
  store: SessionStore,
  rows: RowAllocator,
  cache: EngineCache,
  stored: StateRecord | undefined,
  oldest: number,
): JournalPack[] {
  const packs = (stored?.journal ?? []).filter(({ positions }) =>
    positions.some((position) => position + EPOCH > oldest),
  );
  const entries = cache.journal.filter(({ position }) => position + EPOCH > oldest);
  if (entries.length === 0) return packs;
  const stream = new RowStream(store, rows, RowKind.journal);
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
