import type { GrowableMemory, Move, Ptr } from '../core/arena.ts';
import { MemoryLimitError } from '../core/errors.ts';
import type { CommandStream } from './webgpu-stream.ts';
import { COPY_DST, COPY_SRC, STORAGE } from './webgpu-usage.ts';

interface Range {
  readonly at: Ptr;
  readonly bytes: number;
}
const overlap = (a: Range, b: Range): boolean => a.at < b.at + b.bytes && b.at < a.at + a.bytes;

/** Kinds of changes in the order in which a batch runs them. */
const KINDS = ['zero', 'write', 'copy', 'encode', 'decay'] as const;
type Kind = (typeof KINDS)[number];

interface Change {
  readonly kind: Kind;
  readonly what: unknown;
}
/** What a change of the batch reads or writes; phase: its kind's index. */
interface Touch {
  readonly range: Range;
  readonly phase: number;
  readonly writes: boolean;
}
/** Touches are kept by pages of so many bytes: a batch has thousands of them. */
const PAGE = 16384;

/** Records a batch's changes of one kind, which touch nothing of one another. */
export type Recorder = (what: readonly never[], cache: GPUBuffer) => void;

const STEP = 1 << 20;

/**
 * The memory of caches on a GPU: one buffer there, and a buffer here with the same addresses, which holds what the host decides by itself (headers, tier
 * maps) and what was fetched. So the arena and the cache work as over a WebAssembly memory. Changes are collected and run batch by
 * batch: a batch ends where a change needs the result of one that would not have run before it.
 */
export class WebGpuMemory implements GrowableMemory {
  readonly maxBytes: number;
  buffer = new ArrayBuffer(0);
  readonly #stream: CommandStream;
  readonly #record: Readonly<Record<'copy' | 'encode' | 'decay', (what: never[], cache: GPUBuffer) => void>>;
  #gpu: GPUBuffer;
  #batch: Change[] = [];
  readonly #touched = new Map<number, Touch[]>();

  constructor(
    stream: CommandStream,
    maxBytes: number,
    record: Readonly<Record<'copy' | 'encode' | 'decay', (what: never[], cache: GPUBuffer) => void>>,
  ) {
    this.#stream = stream;
    this.#record = record;
    const { maxBufferSize, maxStorageBufferBindingSize } = stream.device.limits;
    this.maxBytes = Math.floor(Math.min(maxBytes, maxBufferSize, maxStorageBufferBindingSize) / STEP) * STEP;
    this.#gpu = this.#create(STEP);
    this.buffer = new ArrayBuffer(STEP);
  }

  /** The device's buffer, once all changes are recorded. Another one after `ensure` or a compaction. */
  get gpu(): GPUBuffer {
    this.flush();
    return this.#gpu;
  }

  ensure(bytes: number): void {
    const held = this.buffer.byteLength;
    if (bytes <= held) return;
    if (bytes > this.maxBytes) throw new MemoryLimitError(bytes, this.maxBytes, 'memory of the GPU');
    const size = Math.min(this.maxBytes, Math.ceil(Math.max(bytes, held * 1.5) / STEP) * STEP);
    this.buffer = this.buffer.transfer(size);
    this.#replace(size, [{ from: 0, to: 0, bytes: held }]);
  }
  zeroed(at: Ptr, bytes: number): void {
    this.change('zero', [], [{ at, bytes }], { at, bytes });
  }
  moved(moves: readonly Move[]): void {
    this.#replace(this.#gpu.size, moves);
  }
  /** What the host wrote into `buffer`. */
  hostWrote(at: Ptr, bytes: number): void {
    // Whole words: what lies around the bytes is the host's as well when it writes.
    const from = at & ~3;
    const size = ((at + bytes + 3) & ~3) - from;
    const data = new Uint8Array(this.buffer, from, size).slice();
    this.change('write', [], [{ at: from, bytes: size }], { at: from, data });
  }

  change(kind: Kind, reads: readonly Range[], writes: readonly Range[], what: unknown): void {
    const phase = KINDS.indexOf(kind);
    const conflict =
      reads.some((r) => this.#isTouched(r, phase, false)) ||
      writes.some((w) => this.#isTouched(w, phase, true));
    if (conflict) this.flush();
    this.#batch.push({ kind, what });
    for (const range of reads) this.#note({ range, phase, writes: false });
    for (const range of writes) this.#note({ range, phase, writes: true });
  }
  #note(touch: Touch): void {
    const { at, bytes } = touch.range;
    for (let page = Math.floor(at / PAGE); page * PAGE < at + bytes; page++) {
      const found = this.#touched.get(page);
      if (found) found.push(touch);
      else this.#touched.set(page, [touch]);
    }
  }
  /** Whether a change of this batch that runs no sooner than `phase` writes to the range or, where that is to be written, reads it. */
  #isTouched(range: Range, phase: number, writes: boolean): boolean {
    for (let page = Math.floor(range.at / PAGE); page * PAGE < range.at + range.bytes; page++)
      for (const touch of this.#touched.get(page) ?? [])
        if (touch.phase >= phase && (writes || touch.writes) && overlap(touch.range, range)) return true;
    return false;
  }

  /** Records all changes into the stream. */
  flush(): void {
    const batch = this.#batch.splice(0);
    this.#touched.clear();
    if (batch.length === 0) return;
    const of = <T>(kind: Kind): T[] => batch.filter((c) => c.kind === kind).map((c) => c.what as T);
    for (const { at, bytes } of of<Range>('zero')) this.#stream.encoder().clearBuffer(this.#gpu, at, bytes);
    for (const { at, data } of of<{ at: number; data: Uint8Array }>('write')) this.#write(at, data);
    for (const kind of ['copy', 'encode', 'decay'] as const) {
      const what = of<never>(kind);
      if (what.length > 0) this.#record[kind](what, this.#gpu);
    }
  }

  /** Brings the device's bytes into `buffer`. Ranges are whole words. */
  async fetch(ranges: readonly Range[]): Promise<void> {
    this.flush();
    const pieces = await this.#stream.read(ranges.map(({ at, bytes }) => ({ buffer: this.#gpu, at, bytes })));
    const all = new Uint8Array(this.buffer);
    pieces.forEach((piece, i) => {
      all.set(piece, ranges[i]!.at);
    });
  }

  #write(at: number, data: Uint8Array): void {
    const piece = 1 << 20;
    for (let from = 0; from < data.length; from += piece) {
      const part = data.subarray(from, from + piece);
      this.#stream.reserve(piece);
      const source = this.#stream.table(part);
      this.#stream
        .encoder()
        .copyBufferToBuffer(this.#stream.tables, source, this.#gpu, at + from, part.length);
    }
  }

  #create(size: number): GPUBuffer {
    return this.#stream.device.createBuffer({ label: 'cache', size, usage: STORAGE | COPY_SRC | COPY_DST });
  }
  #replace(size: number, moves: readonly Move[]): void {
    this.flush();
    const next = this.#create(size);
    const encoder = this.#stream.encoder();
    for (const { from, to, bytes } of moves)
      if (bytes > 0) encoder.copyBufferToBuffer(this.#gpu, from, next, to, bytes);
    this.#stream.retire(this.#gpu);
    this.#gpu = next;
  }
}
