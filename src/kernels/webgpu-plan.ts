import { InvalidInputError } from '../core/errors.ts';
import { SEGMENT_TOKENS } from './layout.ts';
import { MAX_CELLS } from './webgpu-prelude.ts';

/** One conversation's attention in one layer; places within the device's buffers. */
export interface AttendItem {
  /** f32 index of row 0's queries, rotated, [rows, heads, headDim] contiguous; and of the output, likewise. */
  readonly q: number;
  readonly out: number;
  /** Where gaps were closed: the queries to use instead, by segment, and for the exact part's first `sinks` slots. */
  readonly gaps?:
    | { readonly segments: readonly number[]; readonly sinks: number; readonly sinkQueries: number }
    | undefined;
  /** Byte offset of the exact part within the cache buffer. */
  readonly exact: number;
  readonly capacity: number;
  readonly exactBits: 16 | 32;
  /** Exact slots that row 0 sees, its own included. */
  readonly visible: number;
  /** Absolute position of row 0; decides the dither of attention mass alone. */
  readonly position: number;
  /** Byte offsets of the segment blocks. */
  readonly segments: readonly number[];
}

/** The tables of shaders/attend.wgsl; structs as in shaders/common.wgsl. */
export interface AttendPlan {
  readonly rows: number;
  readonly itemCount: number;
  readonly splitCount: number;
  /** Of a split; 1 at least. */
  readonly mostSegments: number;
  readonly items: Uint32Array<ArrayBuffer>;
  readonly splits: Uint32Array<ArrayBuffer>;
  readonly segments: Uint32Array<ArrayBuffer>;
  /** Cells whose scores a query has, padding included. */
  readonly scoreCells: number;
}

/** Words of a struct Item, and of a Split. */
const ITEM_WORDS = 8;
const SPLIT_WORDS = 7;
export const SPLIT_BYTES = SPLIT_WORDS * 4;
/** Where an item's splits begin among all of a plan's. */
export const firstSplitOf = (plan: AttendPlan, item: number): number => plan.items[item * ITEM_WORDS + 5]!;
/** Workgroups that a dimension of a dispatch may have: WebGPU's default limit, which devices do not exceed. */
const MAX_WORKGROUPS = 65535;
const unit = (bytes: number, what: string): number => {
  if (bytes % 16 !== 0)
    throw new InvalidInputError(`${what} starts at byte ${bytes}, no multiple of 16`, what);
  return bytes / 16;
};

/** Splits that `planAttend` makes of an item. */
export function splitsOf(a: AttendItem, rows: number, segmentsPerSplit: number): number {
  let splits = 0;
  for (let i = 0; i < a.segments.length; i = endOfRun(a, i, segmentsPerSplit)) splits++;
  const pieces = Math.ceil((a.visible + rows - 1) / SEGMENT_TOKENS);
  // The piece that sinks with queries of their own and other slots share.
  return splits + pieces + (a.gaps && a.gaps.sinks % SEGMENT_TOKENS !== 0 ? 1 : 0);
}
/** Where the split that begins with a segment ends: its segments are read with the same queries. */
function endOfRun({ segments, gaps }: AttendItem, from: number, most: number): number {
  let end = from + 1;
  while (end < segments.length && end < from + most && gaps?.segments[end] === gaps?.segments[from]) end++;
  return end;
}

/**
 * Divides every conversation's cells into splits, which run side by side: runs of `segmentsPerSplit` segments, and the exact part by 128 slots.
 * Where a split ends follows from the conversation alone, so that its bits do not depend on the company or on the number of rows.
 * @param rows query rows of every item; their own keys were appended before
 */
export function planAttend(items: readonly AttendItem[], rows: number, segmentsPerSplit: number): AttendPlan {
  let splitCount = 0;
  let segmentCount = 0;
  for (const item of items) {
    splitCount += splitsOf(item, rows, segmentsPerSplit);
    segmentCount += item.segments.length;
  }
  if (splitCount > MAX_WORKGROUPS)
    throw new InvalidInputError(
      `${splitCount} splits in one dispatch, at most ${MAX_WORKGROUPS}; batch fewer conversations`,
      'items',
    );
  const itemWords = new Uint32Array(items.length * ITEM_WORDS);
  const splitWords = new Uint32Array(splitCount * SPLIT_WORDS);
  const segments = new Uint32Array(Math.max(1, segmentCount));
  let [itemAt, splitAt, segmentAt, cells, mostSegments] = [0, 0, 0, 0, 1];
  const split = (
    item: number,
    first: number,
    count: number,
    q: number,
    from = 0,
    to = SEGMENT_TOKENS,
  ): void => {
    splitWords[splitAt++] = item;
    splitWords[splitAt++] = first;
    splitWords[splitAt++] = count;
    mostSegments = Math.max(mostSegments, count);
    splitWords[splitAt++] = cells;
    splitWords[splitAt++] = q;
    splitWords[splitAt++] = from;
    splitWords[splitAt++] = to;
    // Sinks share the scores of their piece with the rest of it.
    if (to === SEGMENT_TOKENS) cells += Math.max(1, count) * MAX_CELLS;
  };
  items.forEach((a, index) => {
    const firstSplit = splitAt / SPLIT_WORDS;
    const first = segmentAt;
    for (const at of a.segments) segments[segmentAt++] = unit(at, 'a segment block');
    for (let i = 0; i < a.segments.length; ) {
      const end = endOfRun(a, i, segmentsPerSplit);
      split(index, first + i, end - i, a.gaps?.segments[i] ?? a.q);
      i = end;
    }
    const sinks = a.gaps?.sinks ?? 0;
    for (let slot = 0; slot < a.visible + rows - 1; slot += SEGMENT_TOKENS) {
      const own = Math.min(Math.max(sinks - slot, 0), SEGMENT_TOKENS);
      if (own > 0) split(index, slot, 0, a.gaps!.sinkQueries, 0, own);
      if (own < SEGMENT_TOKENS) split(index, slot, 0, a.q, own);
    }
    itemWords[itemAt++] = a.out;
    itemWords[itemAt++] = unit(a.exact, 'the exact part');
    itemWords[itemAt++] = a.capacity;
    itemWords[itemAt++] = a.visible;
    itemWords[itemAt++] = a.exactBits;
    itemWords[itemAt++] = firstSplit;
    itemWords[itemAt++] = splitAt / SPLIT_WORDS - firstSplit;
    itemWords[itemAt++] = a.position;
  });
  return {
    ...{ rows, itemCount: items.length, splitCount, mostSegments, segments, scoreCells: cells },
    ...{ items: itemWords, splits: splitWords },
  };
}
