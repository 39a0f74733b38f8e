import { kernel, type ShaderSources } from '../../kernels/webgpu.ts';
import { type CommandStream, TABLE_ALIGNMENT } from '../../kernels/webgpu-stream.ts';
import { COPY_SRC, STORAGE } from '../../kernels/webgpu-usage.ts';

/** Values that a workgroup of top-k.wgsl sorts out. */
const SLICE = 2048;
const TAKE_BYTES = 24;
/** Rounds of a workgroup are as many: more are not worth it. */
const MOST_TOP = 64;

export interface GpuTopOptions {
  readonly stream: CommandStream;
  readonly shaders: ShaderSources;
  readonly values: GPUBuffer;
  /** Floats from the buffer's start to row 0, and from row to row. */
  readonly at: number;
  readonly stride: number;
  /** Of a row. */
  readonly count: number;
  readonly rows: number;
}

/** The largest logits of rows, found on the device (shaders/top-k.wgsl), so that a token costs some bytes of reading back instead of a vocabulary. */
export class GpuTop {
  /** The most that can be asked for. */
  readonly most: number;
  /** [row][place]: the bits of a value, and its id; rows lie `stride` bytes apart from `at` on. */
  readonly pairs: GPUBuffer;
  readonly at: number;
  readonly stride: number;
  readonly #o: GpuTopOptions;
  readonly #shares: number;
  readonly #passes: { pipeline: GPUComputePipeline; group: GPUBindGroup }[];

  constructor(options: GpuTopOptions) {
    this.#o = options;
    const { stream, shaders, rows } = options;
    const { device } = stream;
    this.#shares = Math.ceil(options.count / SLICE);
    this.most = Math.min(MOST_TOP, options.count, Math.floor(SLICE / this.#shares));
    this.stride = this.most * 8;
    this.at = rows * this.#shares * this.most * 8;
    this.pairs = device.createBuffer({
      label: 'top',
      size: this.at + rows * this.stride,
      usage: STORAGE | COPY_SRC,
    });
    this.#passes = [false, true].map((last) => {
      const { pipeline, layout } = kernel(device, 'top-k', 'Uww', [
        `const LAST = ${last};`,
        shaders['top-k'],
      ]);
      const resources: GPUBufferBinding[] = [
        { buffer: stream.tables, size: TAKE_BYTES },
        { buffer: options.values },
        { buffer: this.pairs },
      ];
      const entries = resources.map((resource, binding) => ({ binding, resource }));
      return { pipeline, group: device.createBindGroup({ layout, entries }) };
    });
  }

  /** Records finding the `most` largest of the first `rows` rows; they lie in `pairs` then, `most` of each row. */
  record(rows: number, most: number): void {
    const { stream, at, stride, count } = this.#o;
    const found = this.#shares * most;
    stream.reserve(2 * TABLE_ALIGNMENT);
    const takes = [
      [at, stride, count, most, 0, found],
      [0, found, found, most, this.at / 8, this.stride / 8],
    ];
    for (const [i, take] of takes.entries()) {
      const table = stream.table(Uint32Array.from(take));
      const pass = stream.pass('top-k');
      pass.setPipeline(this.#passes[i]!.pipeline);
      pass.setBindGroup(0, this.#passes[i]!.group, [table]);
      pass.dispatchWorkgroups(i === 0 ? this.#shares : 1, rows);
    }
  }
}
