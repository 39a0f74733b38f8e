import type { CacheConfig, CacheReport } from '../cache/policy.ts';
import { AdkvcError, CorruptDataError } from '../core/errors.ts';
import type { ForeignPrefix } from './api.ts';
import type { Listing } from './directory.ts';
import type { Log } from './log.ts';
import { FRAME_BYTES, MAX_PAYLOAD_BYTES, RowKind, readRow, writeFramed } from './row.ts';
import type { StateEntry } from './state.ts';
import type { SessionStore } from './store/session-store.ts';

/**
 * The one mutable document of a session: who it is, the log, which states are kept. The log is the truth and everything
 * else can be made again from it, so the head is written twice, under fixed ids.
 */
export interface Head {
  readonly id: string;
  readonly createdAt: number;
  readonly lastUsedAt: number;
  /** Idle seconds until it is deleted; null: never. */
  readonly ttlSeconds: number | null;
  readonly implicit: boolean;
  readonly listing?: Listing;
  readonly cacheConfig: CacheConfig;
  readonly report: CacheReport | null;
  /** Whose ids and states these are; null before the first turn. */
  readonly engine: EngineIdentity | null;
  readonly log: Log;
  /** Whole states, oldest first; the last is the current one. */
  readonly states: readonly StateEntry[];
  readonly foreign?: ForeignPrefix;
}

export interface EngineIdentity {
  readonly model: string;
  readonly fingerprint: string;
  readonly numerics: string;
  readonly layoutVersion: number;
}

/** Rows of one copy of the head; the log of the longest context takes one or two. */
const HEAD_ROWS = 32;
const COPIES = 2;
/** Ids from here on are handed out to everything else. */
export const FIRST_FREE_ROW = HEAD_ROWS * COPIES;
/** In front of each part: u32 parts, u32 generation, so that parts of two commits are never joined. */
const PART_HEADER = 8;
const PART_BYTES = MAX_PAYLOAD_BYTES - PART_HEADER;

export const expiresAt = (head: Head): number | null =>
  head.ttlSeconds === null ? null : head.lastUsedAt + head.ttlSeconds * 1000;

/** Without a foreign prefix that is cut when only the first `tokens` ids stay. */
export function headWithin(head: Head, tokens: number): Head {
  const { foreign, ...own } = head;
  return foreign && foreign.tokens > tokens ? own : head;
}

export function isExpired(head: Head, now: number): boolean {
  const at = expiresAt(head);
  return at !== null && now >= at;
}

/** Within a transaction. */
export function writeHead(store: SessionStore, head: Head): void {
  const bytes = new TextEncoder().encode(JSON.stringify(head));
  const parts = Math.max(1, Math.ceil(bytes.byteLength / PART_BYTES));
  if (parts > HEAD_ROWS)
    throw new AdkvcError(
      'session_too_large',
      `the log takes ${bytes.byteLength} bytes, ${HEAD_ROWS * PART_BYTES} are allowed`,
    );
  const generation = (Math.random() * 2 ** 32) >>> 0;
  for (let part = 0; part < parts; part++) {
    const piece = bytes.subarray(part * PART_BYTES, (part + 1) * PART_BYTES);
    const row = new Uint8Array(FRAME_BYTES + PART_HEADER + piece.byteLength);
    const view = new DataView(row.buffer);
    view.setUint32(FRAME_BYTES, parts, true);
    view.setUint32(FRAME_BYTES + 4, generation, true);
    row.set(piece, FRAME_BYTES + PART_HEADER);
    for (let copy = 0; copy < COPIES; copy++) writeFramed(store, copy * HEAD_ROWS + part, RowKind.head, row);
  }
  const surplus = store.ids().filter((id) => id < FIRST_FREE_ROW && id % HEAD_ROWS >= parts);
  if (surplus.length > 0) store.delete(surplus);
}

export interface HeadReading {
  readonly head: Head;
  /** What was wrong with the other copy. */
  readonly damage: string | undefined;
}

/**
 * The head, from the first copy that is whole; undefined when there is no session.
 * @throws CorruptDataError when rows exist but no copy is whole
 */
export function readHead(store: SessionStore): HeadReading | undefined {
  let damage: string | undefined;
  for (let copy = 0; copy < COPIES; copy++) {
    try {
      const head = readCopy(store, copy * HEAD_ROWS);
      // The second copy is only looked at where it is needed or where the first one is checked against it.
      if (copy === 0) damage = checkCopy(store, HEAD_ROWS);
      return { head, damage };
    } catch (error) {
      if (!(error instanceof CorruptDataError)) throw error;
      damage ??= error.message;
    }
  }
  // Only an import writes rows before there is a head.
  if (!store.ids().some((id) => id < FIRST_FREE_ROW)) return undefined;
  throw new CorruptDataError(`both copies of the session's log are damaged: ${damage}`);
}

function checkCopy(store: SessionStore, first: number): string | undefined {
  try {
    readCopy(store, first);
    return undefined;
  } catch (error) {
    if (!(error instanceof CorruptDataError)) throw error;
    return error.message;
  }
}

function readCopy(store: SessionStore, first: number): Head {
  const pieces: Uint8Array[] = [];
  let parts = 1;
  let generation: number | undefined;
  for (let part = 0; part < parts; part++) {
    const { payload } = readRow(store, first + part, RowKind.head);
    if (payload.byteLength < PART_HEADER) throw new CorruptDataError(`row ${first + part} is too short`);
    const view = new DataView(payload.buffer, payload.byteOffset);
    parts = view.getUint32(0, true);
    generation ??= view.getUint32(4, true);
    if (generation !== view.getUint32(4, true))
      throw new CorruptDataError(`row ${first + part} is of another commit`);
    pieces.push(payload.subarray(PART_HEADER));
  }
  const decoder = new TextDecoder();
  const text = pieces.map((piece) => decoder.decode(piece, { stream: true })).join('') + decoder.decode();
  return JSON.parse(text) as Head;
}
