import type { BlockId } from '../core/arena.ts';
import {
  countTiers,
  DROP,
  massBytes,
  pad4,
  recordBytes,
  recordCells,
  recordCounts,
  recordTiers,
  SEGMENT_HEADER_BYTES,
  segmentHeaderBytes,
  TIER_IDS,
  TIERS,
} from '../kernels/layout.ts';

/** One (layer, segment) in kernel memory. `version`: position of the plan that last wrote it. */
export interface SegmentBlock {
  id: BlockId;
  version: number;
}

/** Positions of a segment; the same for all layers. */
export interface SegmentSpan {
  readonly start: number;
  readonly tokens: number;
}

/** Reads a segment block's header and maps. `bytes` is the block, layout.ts says how it lies. */
export class SegmentReader {
  readonly #view: DataView;
  readonly #bytes: Uint8Array;
  readonly kvHeads: number;
  readonly headDim: number;

  constructor(bytes: Uint8Array, kvHeads: number, headDim: number) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.kvHeads = kvHeads;
    this.headDim = headDim;
  }
  get start(): number {
    return this.#view.getUint32(0, true);
  }
  get tokens(): number {
    return this.#view.getUint32(4, true);
  }
  /** Bytes without mass: what is persisted. */
  get storedBytes(): number {
    return this.#view.getUint32(8, true);
  }
  /** 0: all tokens of the head are dropped. */
  recordAt(kvHead: number): number {
    return this.#view.getUint32(SEGMENT_HEADER_BYTES + kvHead * 4, true);
  }
  counts(kvHead: number): Uint8Array {
    const at = this.recordAt(kvHead);
    return at === 0 ? new Uint8Array(TIER_IDS) : recordCounts(this.#bytes, at);
  }
  /** Bit mask of the tiers that the record names; 0 without a record. */
  present(kvHead: number): number {
    const at = this.recordAt(kvHead);
    return at === 0 ? 0 : this.#view.getUint16(at, true);
  }
  cells(kvHead: number): number {
    return recordCells(this.counts(kvHead));
  }
  /** Tier ids in position order into out[at ...]. */
  tiers(kvHead: number, out: Uint8Array, at: number): void {
    const record = this.recordAt(kvHead);
    if (record === 0) out.fill(DROP, at, at + this.tokens);
    else recordTiers(this.#bytes, record, this.tokens, this.headDim, out, at);
  }
  /** Where the kvHead's mass section begins, from the block's start. */
  massAt(kvHead: number): number {
    let at = this.storedBytes;
    for (let h = 0; h < kvHead; h++) at += massBytes(this.cells(h));
    return at;
  }
}

/** Writes the block's header for records that follow one another; returns each record's place and the total. */
export function layOut(
  span: SegmentSpan,
  counts: readonly ArrayLike<number>[],
  headDim: number,
  mass: boolean,
): { recordAt: number[]; storedBytes: number; massAt: number[]; totalBytes: number } {
  const recordAt: number[] = [];
  let at = segmentHeaderBytes(counts.length);
  for (const c of counts) {
    const bytes = recordBytes(span.tokens, c, headDim);
    recordAt.push(bytes === 0 ? 0 : at);
    at += bytes;
  }
  const storedBytes = at;
  const massAt: number[] = [];
  for (const c of counts) {
    massAt.push(at);
    if (mass) at += massBytes(recordCells(c));
  }
  return { recordAt, storedBytes, massAt, totalBytes: at };
}

export function writeHeader(
  bytes: Uint8Array,
  span: SegmentSpan,
  plan: { recordAt: readonly number[]; storedBytes: number },
): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  view.setUint32(0, span.start, true);
  view.setUint32(4, span.tokens, true);
  view.setUint32(8, plan.storedBytes, true);
  plan.recordAt.forEach((at, h) => {
    view.setUint32(SEGMENT_HEADER_BYTES + h * 4, at, true);
  });
}

/** Cell index of each token of a record (position order), -1 where dropped. */
export function cellIndex(tiers: Uint8Array, from: number, tokens: number, out: Int32Array): void {
  const counts = countTiers(tiers, from, tokens);
  const next = new Int32Array(TIER_IDS);
  let at = 0;
  for (let id = 0; id < TIERS.length; id++) {
    next[id] = at;
    at += pad4(counts[id]!);
  }
  for (let i = 0; i < tokens; i++) {
    const id = tiers[from + i]!;
    out[i] = id < TIERS.length ? next[id]!++ : -1;
  }
}
