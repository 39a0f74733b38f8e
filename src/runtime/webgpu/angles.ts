import { EPOCH, type ModelConfig } from '../../core/config.ts';
import type { CommandStream } from '../../kernels/webgpu-stream.ts';
import { COPY_DST, COPY_SRC, STORAGE } from '../../kernels/webgpu-usage.ts';
import { ropeFrequencies, ropeTables } from '../rope.ts';

/** Turns that there is room for at first. */
const TURNS = 128;

/**
 * Cosines and sines on the device: a row for each of a chunk's tokens, then turns, by which queries go back to the position that they have for what
 * lies before a closed gap. Turns stay: conversations share most of them, and keep them from token to token.
 */
export class Angles {
  readonly #stream: CommandStream;
  readonly #config: ModelConfig;
  readonly #frequencies: Float64Array;
  readonly #turns = new Map<number, number>();
  #room = TURNS;
  #buffers: { cosines: GPUBuffer; sines: GPUBuffer };

  constructor(stream: CommandStream, config: ModelConfig) {
    this.#stream = stream;
    this.#config = config;
    this.#frequencies = ropeFrequencies(config);
    this.#buffers = this.#create();
  }

  /** [angles][headDim / 2]; others after `turns` has found no room. */
  get buffers(): { readonly cosines: GPUBuffer; readonly sines: GPUBuffer } {
    return this.#buffers;
  }

  /** Fills the first rows, run after run. Nothing that was recorded for others may wait. */
  fill(runs: readonly { readonly position: number; readonly rows: number }[]): void {
    const half = this.#frequencies.length;
    const rows = runs.reduce((sum, run) => sum + run.rows, 0);
    const cosines = new Float32Array(rows * half);
    const sines = new Float32Array(rows * half);
    let at = 0;
    for (const run of runs) {
      const end = at + run.rows * half;
      const places = [cosines.subarray(at, end), sines.subarray(at, end)] as const;
      ropeTables(this.#frequencies, run.position, run.rows, ...places, this.#config.contextLength);
      at = end;
    }
    this.#write(0, cosines, sines);
  }

  /** The rows that turn back by each of these numbers of tokens; none is 0. To be asked before what reads them is recorded. */
  turns(tokens: ReadonlySet<number>): ReadonlyMap<number, number> {
    const fresh = [...tokens].filter((n) => !this.#turns.has(n));
    if (this.#turns.size + fresh.length > this.#room) {
      // What was recorded keeps its buffers until it is done.
      this.#turns.clear();
      this.#room = Math.max(this.#room, 2 * tokens.size);
      for (const buffer of Object.values(this.#buffers)) this.#stream.retire(buffer);
      const rows = this.#buffers;
      this.#buffers = this.#create();
      const bytes = EPOCH * this.#frequencies.length * 4;
      for (const name of ['cosines', 'sines'] as const)
        this.#stream.encoder().copyBufferToBuffer(rows[name], 0, this.#buffers[name], 0, bytes);
      return this.turns(tokens);
    }
    for (const n of fresh) {
      const row = EPOCH + this.#turns.size;
      this.#turns.set(n, row);
      this.#write(
        row,
        Float32Array.from(this.#frequencies, (f) => Math.cos(n * f)),
        Float32Array.from(this.#frequencies, (f) => Math.sin(n * f)),
      );
    }
    return this.#turns;
  }

  #write(row: number, cosines: Float32Array<ArrayBuffer>, sines: Float32Array<ArrayBuffer>): void {
    const { queue } = this.#stream.device;
    const at = row * this.#frequencies.length * 4;
    queue.writeBuffer(this.#buffers.cosines, at, cosines);
    queue.writeBuffer(this.#buffers.sines, at, sines);
  }
  #create(): { cosines: GPUBuffer; sines: GPUBuffer } {
    const size = (EPOCH + this.#room) * this.#frequencies.length * 4;
    const buffer = (label: string): GPUBuffer =>
      this.#stream.device.createBuffer({ label, size, usage: STORAGE | COPY_DST | COPY_SRC });
    return { cosines: buffer('cosines'), sines: buffer('sines') };
  }
}
