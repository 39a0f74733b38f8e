import { InvalidInputError } from '../core/errors.ts';
import { SEGMENT_TOKENS } from './layout.ts';
import { MAX_CELLS } from './webgpu-prelude.ts';

/** One conversation's attention in one layer; places within the device's buffers. */
export interface AttendItem {
  /** f32 index of row 0's queries, rotated, [rows, heads, headDim] contiguous; and of the output, likewise. */
  readonly q: number;
  readonly out: number;
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
  readonly items: Uint32Array<ArrayBuffer>;
  readonly splits: Uint32Array<ArrayBuffer>;
  readonly segments: Uint32Array<ArrayBuffer>;
  /** Cells whose scores a query has, padding included. */
  readonly scoreCells: number;
}

/** Words of a struct Item, and of a Split. */
const ITEM_WORDS = 9;
const SPLIT_WORDS = 4;
/** Workgroups that a dimension of a dispatch may have: WebGPU's default limit, which devices do not exceed. */
const MAX_WORKGROUPS = 65535;
const unit = (bytes: number, what: string): number => {
  if (bytes % 16 !== 0)
    throw new InvalidInputError(`${what} starts at byte ${bytes}, no multiple of 16`, what);
  return bytes / 16;
};

/** Splits that `planAttend` makes of an item. */
export const splitsOf = (a: AttendItem, rows: number, segmentsPerSplit: number): number =>
  Math.ceil(a.segments.length / segmentsPerSplit) + Math.ceil((a.visible + rows - 1) / SEGMENT_TOKENS);

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
  let [itemAt, splitAt, segmentAt, cells] = [0, 0, 0, 0];
  const split = (item: number, first: number, count: number): void => {
    splitWords[splitAt++] = item;
    splitWords[splitAt++] = first;
    splitWords[splitAt++] = count;
    splitWords[splitAt++] = cells;
    cells += Math.max(1, count) * MAX_CELLS;
  };
  items.forEach((a, index) => {
    const firstSplit = splitAt / SPLIT_WORDS;
    const first = segmentAt;
    for (const at of a.segments) segments[segmentAt++] = unit(at, 'a segment block');
    for (let i = 0; i < a.segments.length; i += segmentsPerSplit)
      split(index, first + i, Math.min(segmentsPerSplit, a.segments.length - i));
    for (let slot = 0; slot < a.visible + rows - 1; slot += SEGMENT_TOKENS) split(index, slot, 0);
    itemWords[itemAt++] = a.q;
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
    ...{ rows, itemCount: items.length, splitCount, segments, scoreCells: cells },
    ...{ items: itemWords, splits: splitWords },
  };
}
