import {
  COPY_DST,
  COPY_SRC,
  MAP_MODE_READ,
  MAP_READ,
  QUERY_RESOLVE,
  STORAGE,
  UNIFORM,
} from './webgpu-usage.ts';

/** Bindings may start at multiples of this: WebGPU's default for storage and uniform buffers. */
export const TABLE_ALIGNMENT = 256;
/** A binding with a dynamic offset has a fixed size, which must fit behind every table. */
export const TABLE_WINDOW = 1 << 18;
const TABLE_BYTES = 4 << 20;
const MAX_TIMED = 2048;

/**
 * Commands of one device in the order in which they are to run, submitted together. Small tables (jobs, places, angles) travel in one buffer,
 * which is written ahead of the commands that read it.
 */
export class CommandStream {
  readonly device: GPUDevice;
  /** Holds the tables; bind it with dynamic offsets. */
  readonly tables: GPUBuffer;
  readonly #bytes = new Uint8Array(TABLE_BYTES);
  #used = 0;
  #encoder: GPUCommandEncoder | undefined;
  #pass: GPUComputePassEncoder | undefined;
  #retired: GPUBuffer[] = [];
  #timer: KernelTimer | undefined;

  constructor(device: GPUDevice) {
    this.device = device;
    this.tables = device.createBuffer({
      label: 'tables',
      size: TABLE_BYTES + TABLE_WINDOW,
      usage: STORAGE | UNIFORM | COPY_DST | COPY_SRC,
    });
  }

  /** The compute pass that is being recorded. `label` names the kernel where time is measured. */
  pass(label: string): GPUComputePassEncoder {
    if (this.#timer) {
      this.#end();
      const timestampWrites = this.#timer.next(label);
      this.#pass = this.#open().beginComputePass(timestampWrites && { timestampWrites });
    }
    this.#pass ??= this.#open().beginComputePass();
    return this.#pass;
  }

  /** For copies between buffers: ends the pass. */
  encoder(): GPUCommandEncoder {
    this.#end();
    return this.#open();
  }

  /** Sees to it that tables of `bytes` (each rounded up to TABLE_ALIGNMENT) have room, submitting what was recorded if they have not. */
  reserve(bytes: number): void {
    if (bytes > TABLE_BYTES) throw new Error(`tables of ${bytes} bytes, room for ${TABLE_BYTES}`);
    if (this.#used + bytes > TABLE_BYTES) this.submit();
  }

  /** Adds a table for the commands recorded next. @returns its byte offset in `tables` */
  table(data: ArrayBufferView): number {
    const size = Math.ceil(data.byteLength / TABLE_ALIGNMENT) * TABLE_ALIGNMENT;
    if (this.#used + size > TABLE_BYTES) throw new Error('no room for a table: reserve it');
    const at = this.#used;
    this.#bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), at);
    this.#used += size;
    return at;
  }

  /** Destroys a buffer once no recorded command needs it. */
  retire(buffer: GPUBuffer): void {
    this.#retired.push(buffer);
  }

  /** Until the device has done all that was recorded. */
  async done(): Promise<void> {
    this.submit();
    await awake(this.device.queue.onSubmittedWorkDone());
  }

  submit(): void {
    this.#end();
    if (this.#used > 0) this.device.queue.writeBuffer(this.tables, 0, this.#bytes, 0, this.#used);
    this.#used = 0;
    if (this.#encoder) this.device.queue.submit([this.#encoder.finish()]);
    this.#encoder = undefined;
    for (const buffer of this.#retired.splice(0)) buffer.destroy();
  }

  /** Bytes of device buffers, as they are after all that was recorded. Ranges in multiples of 4. */
  async read(
    ranges: readonly { readonly buffer: GPUBuffer; readonly at: number; readonly bytes: number }[],
  ): Promise<Uint8Array[]> {
    const total = ranges.reduce((sum, r) => sum + r.bytes, 0);
    if (total === 0) return ranges.map(() => new Uint8Array(0));
    const to = this.device.createBuffer({ size: total, usage: MAP_READ | COPY_DST });
    const encoder = this.encoder();
    let at = 0;
    for (const r of ranges) {
      if (r.bytes > 0) encoder.copyBufferToBuffer(r.buffer, r.at, to, at, r.bytes);
      at += r.bytes;
    }
    this.submit();
    await awake(to.mapAsync(MAP_MODE_READ));
    const all = new Uint8Array(to.getMappedRange());
    at = 0;
    const pieces = ranges.map(({ bytes }) => all.slice(at, (at += bytes)));
    to.destroy();
    return pieces;
  }

  /** Measures every kernel apart from here on, which slows down the whole. @throws Error where the device has no timestamps */
  startTiming(): void {
    this.submit();
    this.#timer = new KernelTimer(this.device);
  }
  /** Milliseconds by label since startTiming, of what was submitted with at most MAX_TIMED dispatches. */
  async stopTiming(): Promise<Record<string, number>> {
    const timer = this.#timer!;
    this.#end();
    timer.resolve(this.encoder());
    this.#timer = undefined;
    this.submit();
    return timer.read();
  }

  #open(): GPUCommandEncoder {
    this.#encoder ??= this.device.createCommandEncoder();
    return this.#encoder;
  }
  #end(): void {
    this.#pass?.end();
    this.#pass = undefined;
  }
}

/** Dawn's promises alone do not keep Node's event loop turning. */
async function awake<T>(promise: Promise<T>): Promise<T> {
  const timer = setInterval(() => {}, 1000);
  try {
    return await promise;
  } finally {
    clearInterval(timer);
  }
}

class KernelTimer {
  readonly #device: GPUDevice;
  readonly #queries: GPUQuerySet;
  readonly #labels: string[] = [];
  #result: GPUBuffer | undefined;

  constructor(device: GPUDevice) {
    this.#device = device;
    this.#queries = device.createQuerySet({ type: 'timestamp', count: MAX_TIMED * 2 });
  }
  next(label: string): GPUComputePassTimestampWrites | undefined {
    if (this.#labels.length === MAX_TIMED) return undefined;
    const at = this.#labels.push(label) * 2 - 2;
    return { querySet: this.#queries, beginningOfPassWriteIndex: at, endOfPassWriteIndex: at + 1 };
  }
  resolve(encoder: GPUCommandEncoder): void {
    const size = this.#labels.length * 16;
    if (size === 0) return;
    const resolved = this.#device.createBuffer({ size, usage: QUERY_RESOLVE | COPY_SRC });
    this.#result = this.#device.createBuffer({ size, usage: MAP_READ | COPY_DST });
    encoder.resolveQuerySet(this.#queries, 0, this.#labels.length * 2, resolved, 0);
    encoder.copyBufferToBuffer(resolved, 0, this.#result, 0, size);
  }
  async read(): Promise<Record<string, number>> {
    const sums: Record<string, number> = {};
    if (this.#result) {
      await awake(this.#result.mapAsync(MAP_MODE_READ));
      const times = new BigUint64Array(this.#result.getMappedRange());
      this.#labels.forEach((label, i) => {
        sums[label] = (sums[label] ?? 0) + Number(times[2 * i + 1]! - times[2 * i]!) / 1e6;
      });
      this.#result.destroy();
    }
    this.#queries.destroy();
    return sums;
  }
}
