import type { GrowableMemory, Move, Ptr } from '../core/arena.ts';
import { MemoryLimitError } from '../core/errors.ts';
import {
  type CopyRun,
  type DecayRange,
  type EncodeJob,
  type WebGpuCacheKernels,
  type WordRun,
  ZEROS,
} from './webgpu-cache.ts';
import { type CommandStream, TABLE_ALIGNMENT, TABLE_WINDOW } from './webgpu-stream.ts';
import { COPY_DST, COPY_SRC, STORAGE } from './webgpu-usage.ts';

interface Range {
  readonly at: Ptr;
  readonly bytes: number;
}
const overlap = (a: Range, b: Range): boolean => a.at < b.at + b.bytes && b.at < a.at + a.bytes;

/** Bytes, whole words, that the host wrote. */
interface Written {
  readonly at: number;
  readonly data: Uint8Array;
}
/** So many ranges are copied one by one: more go through a kernel, since each copy waits for the one before. */
const FEW = 4;
/** Fewer than one table of runs holds. */
const MOST_RUNS = 16384;

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

const STEP = 1 << 20;
/** Bytes that the host wrote and that go through the tables at once. */
const WRITE_BYTES = 1 << 20;

/**
 * The memory of caches on a GPU: one buffer there, and a buffer here with the same addresses, which holds what the host decides by itself (headers, tier
 * maps) and what was fetched. So the arena and the cache work as over a WebAssembly memory. Changes are collected and run batch by
 * batch: a batch ends where a change needs the result of one that would not have run before it.
 */
export class WebGpuMemory implements GrowableMemory {
  readonly maxBytes: number;
  buffer = new ArrayBuffer(0);
  /** Told when no recorded change waits for an address any longer. */
  onFlush = (): void => {};
  readonly #stream: CommandStream;
  readonly #kernels: WebGpuCacheKernels;
  #gpu: GPUBuffer;
  /** Where ranges gather on their way to the host. */
  #gathered: GPUBuffer | undefined;
  #batch: Change[] = [];
  readonly #touched = new Map<number, Touch[]>();

  constructor(stream: CommandStream, maxBytes: number, kernels: WebGpuCacheKernels) {
    this.#stream = stream;
    this.#kernels = kernels;
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
    if (batch.length === 0) {
      this.onFlush();
      return;
    }
    const of = <T>(kind: Kind): T[] => batch.filter((c) => c.kind === kind).map((c) => c.what as T);
    const { tables } = this.#stream;
    const zeros = of<Range>('zero').map(({ at, bytes }) => ({ from: ZEROS, to: at, bytes }));
    this.#kernels.words(zeros, tables, this.#gpu);
    this.#write(of<Written>('write'));
    this.#kernels.copy(of<CopyRun>('copy'), this.#gpu);
    this.#kernels.encode(of<EncodeJob>('encode'), this.#gpu);
    this.#kernels.decay(of<DecayRange>('decay'), this.#gpu);
    this.onFlush();
  }

  /** Brings the device's bytes into `buffer`. Ranges are whole words. */
  async fetch(ranges: readonly Range[]): Promise<void> {
    this.flush();
    let total = 0;
    const runs = ranges.map(({ at, bytes }): WordRun => {
      total += bytes;
      return { from: at, to: total - bytes, bytes };
    });
    const all = new Uint8Array(this.buffer);
    if (ranges.length <= FEW) {
      const pieces = await this.#stream.read(ranges.map((range) => ({ buffer: this.#gpu, ...range })));
      for (const [i, { at }] of ranges.entries()) all.set(pieces[i]!, at);
      return;
    }
    // A share of what could not be bound at once.
    if (total > this.maxBytes) {
      const half = ranges.length >> 1;
      await this.fetch(ranges.slice(0, half));
      return this.fetch(ranges.slice(half));
    }
    const gathered = this.#gatheredOf(total);
    this.#kernels.words(runs, this.#gpu, gathered);
    const [bytes] = await this.#stream.read([{ buffer: gathered, at: 0, bytes: total }]);
    for (const { from, to, bytes: count } of runs) all.set(bytes!.subarray(to, to + count), from);
  }
  #gatheredOf(bytes: number): GPUBuffer {
    if (this.#gathered && this.#gathered.size >= bytes) return this.#gathered;
    if (this.#gathered) this.#stream.retire(this.#gathered);
    const size = Math.min(this.maxBytes, Math.ceil((bytes * 1.5) / STEP) * STEP);
    const usage = STORAGE | COPY_SRC;
    this.#gathered = this.#stream.device.createBuffer({ label: 'gathered', size, usage });
    return this.#gathered;
  }

  #write(all: readonly Written[]): void {
    const stream = this.#stream;
    let runs: WordRun[] = [];
    let parts: Uint8Array[] = [];
    let held = 0;
    const send = (): void => {
      if (held === 0) return;
      const data = new Uint8Array(held);
      let at = 0;
      for (const part of parts) {
        data.set(part, at);
        at += part.length;
      }
      // With the table of the runs themselves, so that nothing is submitted between the two.
      stream.reserve(held + 2 * TABLE_ALIGNMENT + TABLE_WINDOW);
      const first = stream.table(data);
      const placed = runs.map((run) => ({ ...run, from: run.from + first }));
      this.#kernels.words(placed, stream.tables, this.#gpu);
      [runs, parts, held] = [[], [], 0];
    };
    for (const { at, data } of all)
      for (let from = 0; from < data.length; ) {
        const part = data.subarray(from, from + Math.min(data.length - from, WRITE_BYTES - held));
        runs.push({ from: held, to: at + from, bytes: part.length });
        parts.push(part);
        held += part.length;
        from += part.length;
        if (held === WRITE_BYTES || runs.length === MOST_RUNS) send();
      }
    send();
  }

  #create(size: number): GPUBuffer {
    return this.#stream.device.createBuffer({ label: 'cache', size, usage: STORAGE | COPY_SRC | COPY_DST });
  }
  #replace(size: number, moves: readonly Move[]): void {
    this.flush();
    const next = this.#create(size);
    const runs = moves.filter(({ bytes }) => bytes > 0);
    if (runs.length > FEW) this.#kernels.words(runs, this.#gpu, next);
    else
      for (const { from, to, bytes } of runs)
        this.#stream.encoder().copyBufferToBuffer(this.#gpu, from, next, to, bytes);
    this.#stream.retire(this.#gpu);
    this.#gpu = next;
  }
}
