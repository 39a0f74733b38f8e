import type { CacheConfig } from './policy.ts';

/**
 * How a cache leaves memory and returns, bit for bit. What is stored is what is resident: nothing is rounded.
 *
 * State = header + per layer a *hot* part (exact slots in use, and all mass) + per (layer, segment) a *block*
 * (records; changes only when a plan is applied). A plan is a pure function of stored bytes and the
 * recode that it causes is too, so a block may be stored as an older version plus the journal of
 * plans since: `restore` replays them in order. The plan of the newest epoch takes effect layer by layer (schedule.ts): what a layer still
 * waits for is read from the journal too.
 */
export interface CacheHeader {
  readonly layoutVersion: number;
  /** Kernels' numerics, weight fingerprint: a state is only continued under equal ones. */
  readonly numerics: string;
  readonly model: string;
  readonly config: CacheConfig;
  /** The head profile that plans used (Policy.profile): under another one the cache would go on differently. */
  readonly profile?: string;
  readonly position: number;
  /** Made by the epochs so far; the newest may not have reached every layer. */
  readonly segments: number;
  /** Segments that were closed since the conversation passed the trained length, in that order (gaps.ts); absent: none. */
  readonly closed?: readonly number[];
  /** Where messages begin (MessageMap.text); only where the configuration names quotas. */
  readonly messages?: string;
  readonly peakBytes: number;
  /** Tiers assigned after the first, summed over token-heads: for the report. */
  readonly recodes: number;
}

/** One plan: what changes after epoch `position`. Bytes: see journal.ts; independent of layout addresses. */
export interface PlanJournalEntry {
  readonly position: number;
  readonly bytes: Uint8Array;
}

/** Bytes in front of every hot part. */
export const HOT_HEADER_BYTES = 16;

/**
 * A hot part as views of the memory that holds it, valid until the cache moves on. Its exact tokens never change once they are there: whoever stores them
 * need not store them again.
 */
export interface HotViews {
  /** HOT_HEADER_BYTES; u32 at 0: exact tokens held. */
  readonly header: Uint8Array;
  /** Each holds `exactStride` bytes of every exact token: the `pinned` first ones, then those from `exactFrom` on. */
  readonly planes: readonly Uint8Array[];
  /** What changes with every token. */
  readonly rest: readonly Uint8Array[];
  /** More of it, in many small pieces. */
  readonly scattered?: Pieces;
}

/** Pieces of one memory, in order: no object each, since a long cache has thousands. */
export interface Pieces {
  readonly memory: Uint8Array;
  /** Where the first one begins and ends, the second one, ... */
  readonly ranges: Int32Array;
}

/** What of a hot part changes with every token, view by view. */
export function* changingParts({ rest, scattered }: HotViews): Generator<Uint8Array> {
  yield* rest;
  if (!scattered) return;
  const { memory, ranges } = scattered;
  for (let i = 0; i < ranges.length; i += 2) yield memory.subarray(ranges[i]!, ranges[i + 1]!);
}

/** One copy of all of it. */
export function joined(views: HotViews): Uint8Array {
  const parts = [views.header, ...views.planes, ...changingParts(views)];
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.byteLength, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.byteLength;
  }
  return out;
}

export interface PersistableCache {
  readonly header: CacheHeader;
  readonly layers: number;
  /** First positions that stay exact for good. */
  readonly pinned: number;
  /** Bytes of one exact token in one plane. */
  readonly exactStride: number;
  /** Positions from here on are exact in this layer; never falls. */
  exactFrom(layer: number): number;
  /** What `hot` copies, in its order. */
  hotViews(layer: number): HotViews;
  /** Copies; valid after the cache moves on. */
  hot(layer: number): Uint8Array;
  /** A view of what `block` copies; valid until the cache moves on. */
  blockView(layer: number, segment: number): Uint8Array;
  block(layer: number, segment: number): Uint8Array;
  /** Segments that the layer holds: all of the header's, or one less. */
  segmentsOf(layer: number): number;
  /** The position from which on the block is as it is: its version. A plan of epoch p writes blocks from p + 1 to p + 127. */
  blockVersion(layer: number, segment: number): number;
  /** Bytes `block` would return, without copying. */
  blockBytes(layer: number, segment: number): number;
  /** Makes the newest epoch's plan whole before a state is stored. @returns the plan if some layer still waits for it: it belongs to the state */
  completePlan(): PlanJournalEntry | undefined;
  /** Plans made since the last `clearJournal`, in order. */
  readonly journal: readonly PlanJournalEntry[];
  /** Called after a commit: what was applied before needs no journal any more unless the committer kept it. */
  clearJournal(): void;
}

/** What `restore` reads from. All synchronous, since Durable Object SQLite is; called layer by layer, so that never all bytes are held twice. */
export interface CacheStateReader {
  readonly header: CacheHeader;
  /** What all hot parts and blocks take together, where that is known. */
  readonly bytes?: number;
  /** Valid until the next call, of `block` too. */
  hot(layer: number): Uint8Array;
  block(layer: number, segment: number): { version: number; bytes: Uint8Array };
  /** All entries newer than the oldest block version, in order. */
  readonly journal: readonly PlanJournalEntry[];
}
