import type { KvCache } from '../../cache/cache.ts';
import { EPOCH, type ModelConfig } from '../../core/config.ts';
import { UnsupportedModelError } from '../../core/errors.ts';
import {
  createWebGpuAttention,
  type ShaderSources,
  subgroupsOf,
  type WebGpuAttention,
} from '../../kernels/webgpu.ts';
import { createWebGpuCacheKernels, type WebGpuCacheKernels } from '../../kernels/webgpu-cache.ts';
import { WebGpuDense } from '../../kernels/webgpu-dense.ts';
import { createWebGpuRecords, type WebGpuRecords } from '../../kernels/webgpu-records.ts';
import { CommandStream } from '../../kernels/webgpu-stream.ts';
import { COPY_DST, COPY_SRC, STORAGE } from '../../kernels/webgpu-usage.ts';
import type { ForwardOptions } from '../chunk.ts';
import type { ForwardPass } from '../forward.ts';
import type { Manifest } from '../manifest.ts';
import { claimDecoder, partition } from '../partition.ts';
import { compile, type Program, type Step } from '../program.ts';
import { ropeFrequencies, ropeTables } from '../rope.ts';
import { GpuAttention } from './attention.ts';
import { fuseProducts } from './fuse.ts';
import { compileRows, type RowOp } from './rows.ts';
import type { GpuWeights } from './weights.ts';

const MAX_ROWS = EPOCH;
/** Layers that are recorded before they are handed over. */
const LAYERS_A_SUBMIT = 5;
/** Rows of logits that the workspace holds at once. */
const LOGIT_ROWS = 32;

export interface GpuForwardOptions {
  readonly device: GPUDevice;
  readonly shaders: ShaderSources;
  readonly manifest: Manifest;
  readonly weights: GpuWeights;
  /** Of caches, on the device; its own limits bound it too. */
  readonly maxBytes: number;
}

/**
 * Executes the model on a GPU, chunk by chunk, with nothing read back but logits and, at the end of an epoch, the attention mass that a plan is made of.
 * All operators run in kernels of the project's own, whose reductions have one order for any number of rows: so a state does not depend on
 * how its tokens were chunked, which a library's kernels for one row and for many do not promise.
 */
export class GpuForward implements ForwardPass {
  readonly device: GPUDevice;
  readonly stream: CommandStream;
  readonly records: WebGpuRecords;
  readonly workspaceBytes: number;
  readonly #config: ModelConfig;
  readonly #program: Program;
  readonly #ops: ReadonlyMap<number, RowOp>;
  readonly #attention: GpuAttention;
  readonly #workspace: GPUBuffer;
  readonly #logitsAt: number;
  readonly #cosines: GPUBuffer;
  readonly #sines: GPUBuffer;
  readonly #frequencies: Float64Array;

  constructor({ device, shaders, manifest, weights, maxBytes }: GpuForwardOptions) {
    const config = manifest.model;
    this.device = device;
    this.#config = config;
    const stages = partition(manifest.graph, claimDecoder);
    const foreign = stages.find((stage) => stage.kind === 'ort');
    if (foreign)
      throw new UnsupportedModelError(
        `the WebGPU backend has no kernel for ${foreign.nodes[0]?.op} (node ${foreign.nodes[0]?.name}); use the wasm backend`,
      );
    const alike = (one: string, other: string): boolean => {
      const [a, b] = [weights.weights.get(one), weights.weights.get(other)];
      return a?.form === b?.form && a?.buffer === b?.buffer;
    };
    this.#program = compile(
      stages,
      manifest.graph.outputs,
      (name) => weights.weights.get(name)?.shape,
      MAX_ROWS,
      (steps) => fuseProducts(steps, alike),
    );
    this.stream = new CommandStream(device);
    const cacheKernels: WebGpuCacheKernels = createWebGpuCacheKernels(device, shaders, config);
    this.records = createWebGpuRecords({
      ...{ stream: this.stream, kernels: cacheKernels, headDim: config.headDim, maxBytes },
    });
    const attend: WebGpuAttention = createWebGpuAttention({
      ...{ device, shaders, shape: config, subgroups: subgroupsOf(device), unrotated: true },
    });
    const values = Math.ceil(this.#program.workspaceBytes / 256) * 256;
    this.#logitsAt = values;
    this.workspaceBytes = values + LOGIT_ROWS * Math.ceil(config.vocab / 4) * 16;
    const buffer = (label: string, size: number): GPUBuffer =>
      device.createBuffer({ label, size, usage: STORAGE | COPY_DST | COPY_SRC });
    this.#workspace = buffer('workspace', this.workspaceBytes);
    const angles = MAX_ROWS * (config.headDim / 2) * 4;
    this.#cosines = buffer('cosines', angles);
    this.#sines = buffer('sines', angles);
    this.#frequencies = ropeFrequencies(config);
    this.#attention = new GpuAttention({
      ...{ stream: this.stream, records: this.records, cacheKernels, attend, config },
      ...{ workspace: this.#workspace, cosines: this.#cosines, sines: this.#sines },
    });
    this.#ops = compileRows({
      ...{ program: this.#program, weights: weights.weights, dense: new WebGpuDense(device, shaders) },
      ...{
        workspace: this.#workspace,
        tables: this.stream.tables,
        logitsAt: this.#logitsAt,
        maxRows: MAX_ROWS,
      },
    });
  }

  async run(
    cache: KvCache,
    ids: readonly number[],
    wanted: readonly number[],
    sink: (row: number, logits: Float32Array) => void,
    options: ForwardOptions = {},
  ): Promise<void> {
    const rows = ids.length;
    if (rows < 1 || rows > cache.room) throw new Error(`${rows} rows, room for ${cache.room}`);
    cache.reserve(rows);
    const { cosines, sines } = ropeTables(this.#frequencies, cache.position, rows);
    this.device.queue.writeBuffer(this.#cosines, 0, cosines);
    this.device.queue.writeBuffer(this.#sines, 0, sines);

    const { steps, lastAttention } = this.#program;
    for (const [i, step] of steps.entries()) {
      if (i > lastAttention && wanted.length === 0) break;
      if (step.op === 'GroupQueryAttention') {
        this.#attend(cache, step, rows);
        // The device works on what it has while the next layers are recorded.
        if (((step.node.attributes.layer as number) + 1) % LAYERS_A_SUBMIT === 0) this.stream.submit();
      } else {
        const op = this.#ops.get(i);
        if (op?.kind === 'embed') op.record(this.stream, Uint32Array.from(ids));
        else if (op?.kind === 'rows') op.record(this.stream, rows);
        else if (op?.kind === 'logits') await this.#logits(op, wanted, sink);
      }
    }
    this.stream.submit();
    // Plans are made of the attention mass, which only the device has.
    if (rows === cache.room) await cache.fetchMass();
    else if (wanted.length === 0) await this.stream.done();
    cache.advance(rows);
    await options.yield?.();
  }

  #attend(cache: KvCache, step: Step, rows: number): void {
    const place = (name: string): { at: number; width: number } => ({
      at: this.#program.offset.get(name)!,
      width: this.#program.width.get(name)!,
    });
    const [q, k, v] = step.inputs.slice(0, 3).map(place) as [
      { at: number; width: number },
      { at: number; width: number },
      { at: number; width: number },
    ];
    this.#attention.run(cache, step.node.attributes.layer as number, rows, {
      ...{ q, k, v, out: place(step.output) },
    });
  }

  async #logits(
    op: RowOp & { kind: 'logits' },
    wanted: readonly number[],
    sink: (row: number, logits: Float32Array) => void,
  ): Promise<void> {
    const { vocab } = this.#config;
    const stride = Math.ceil(vocab / 4) * 16;
    for (let i = 0; i < wanted.length; ) {
      // Rows that follow one another go together.
      let count = 1;
      while (count < LOGIT_ROWS && wanted[i + count] === wanted[i]! + count) count++;
      op.record(this.stream, wanted[i]!, count);
      const [bytes] = await this.stream.read([
        { buffer: this.#workspace, at: this.#logitsAt, bytes: count * stride },
      ]);
      for (let r = 0; r < count; r++)
        sink(wanted[i + r]!, new Float32Array(bytes!.buffer, bytes!.byteOffset + r * stride, vocab));
      i += count;
    }
  }
}
