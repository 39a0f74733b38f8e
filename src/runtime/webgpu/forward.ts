import type { KvCache } from '../../cache/cache.ts';
import { fetchMass } from '../../cache/fetched.ts';
import { EPOCH, type ModelConfig } from '../../core/config.ts';
import { UnsupportedModelError } from '../../core/errors.ts';
import {
  createWebGpuAttention,
  type ShaderSources,
  subgroupsOf,
  type WebGpuAttention,
} from '../../kernels/webgpu.ts';
import { isStreamable, STREAM } from '../../kernels/webgpu-attend-stream.ts';
import { createWebGpuCacheKernels, type WebGpuCacheKernels } from '../../kernels/webgpu-cache.ts';
import { WebGpuDense } from '../../kernels/webgpu-dense.ts';
import { createWebGpuRecords, type WebGpuRecords } from '../../kernels/webgpu-records.ts';
import { CommandStream } from '../../kernels/webgpu-stream.ts';
import { COPY_DST, COPY_SRC, STORAGE } from '../../kernels/webgpu-usage.ts';
import { type ForwardOptions, type LogitSink, openChunk, type StepJob } from '../chunk.ts';
import type { ForwardPass } from '../forward.ts';
import type { Manifest } from '../manifest.ts';
import { claimDecoder, partition } from '../partition.ts';
import { compile, type Program, type Step } from '../program.ts';
import { Angles } from './angles.ts';
import { type AttentionKind, type AttentionPlaces, GpuAttention } from './attention.ts';
import { fuseProducts } from './fuse.ts';
import { compileRows, type RowOp } from './rows.ts';
import { GpuTop } from './top.ts';
import type { GpuWeights } from './weights.ts';

const MAX_ROWS = EPOCH;
/** Layers that are recorded before they are handed over. */
const LAYERS_A_SUBMIT = 5;
/** Rows of logits that the workspace holds at once, and that one wait brings: as many as conversations often go together. 12.6 MB of 49,152. */
const LOGIT_ROWS = 64;

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
  readonly #angles: Angles;
  readonly #top: GpuTop;
  readonly mostTogether = MAX_ROWS;

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
    const cacheKernels: WebGpuCacheKernels = createWebGpuCacheKernels(this.stream, shaders, config);
    this.records = createWebGpuRecords({
      ...{ stream: this.stream, kernels: cacheKernels, headDim: config.headDim, maxBytes },
    });
    const attentions = new Map<AttentionKind, WebGpuAttention>();
    // Few kinds ever come: they are compiled when one does.
    const attend = (kind: AttentionKind): WebGpuAttention => {
      // Narrow heads have no kernel that multiplies integers.
      const key = kind === 'integer' && !isStreamable(config) ? 'float' : kind;
      const found = attentions.get(key);
      if (found) return found;
      const made = createWebGpuAttention({
        ...{ device, shaders, shape: config, subgroups: subgroupsOf(device), unrotated: true },
        ...{ plain: key === 'plain', ...(key === 'integer' && { stream: STREAM }) },
      });
      attentions.set(key, made);
      return made;
    };
    const values = Math.ceil(this.#program.workspaceBytes / 256) * 256;
    this.#logitsAt = values;
    this.workspaceBytes = values + LOGIT_ROWS * logitStride(config.vocab);
    const buffer = (label: string, size: number): GPUBuffer =>
      device.createBuffer({ label, size, usage: STORAGE | COPY_DST | COPY_SRC });
    this.#workspace = buffer('workspace', this.workspaceBytes);
    this.#angles = new Angles(this.stream, config);
    this.#attention = new GpuAttention({
      ...{ stream: this.stream, records: this.records, cacheKernels, attend, config },
      ...{ workspace: this.#workspace, angles: this.#angles },
    });
    this.#top = new GpuTop({
      ...{ stream: this.stream, shaders, values: this.#workspace, at: this.#logitsAt / 4 },
      ...{ stride: logitStride(config.vocab) / 4, count: config.vocab, rows: LOGIT_ROWS },
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

  get mostTop(): number {
    return this.#top.most;
  }

  async run(
    cache: KvCache,
    ids: readonly number[],
    wanted: readonly number[],
    sink: (row: number, logits: Float32Array, ids?: Uint32Array) => void,
    options: ForwardOptions = {},
  ): Promise<void> {
    const rows = ids.length;
    openChunk(cache, rows);
    this.#angles.fill([{ position: cache.position, rows }]);
    await this.#run(
      Uint32Array.from(ids),
      (layer, places) => this.#attention.run(cache, layer, rows, places),
      wanted.map((row) => ({
        ...{ row, top: options.top },
        sink: (logits: Float32Array, top?: Uint32Array) => sink(row, logits, top),
      })),
    );
    // Plans are made of the attention mass, which only the device has.
    if (rows === cache.room) await cache.fetchMass();
    else if (wanted.length === 0) await this.stream.done();
    cache.advance(rows);
    await options.yield?.();
  }

  async step(jobs: readonly StepJob[]): Promise<(Error | undefined)[]> {
    const errors = jobs.map(({ cache }) => {
      try {
        cache.reserve(1);
        return undefined;
      } catch (error) {
        return error as Error;
      }
    });
    const fed = jobs.filter((_, i) => errors[i] === undefined);
    if (fed.length === 0) return errors;
    const caches = fed.map(({ cache }) => cache);
    this.#angles.fill(caches.map(({ position }) => ({ position, rows: 1 })));
    await this.#run(
      Uint32Array.from(fed, ({ id }) => id),
      (layer, places) => this.#attention.runTogether(caches, layer, places),
      fed.flatMap(({ top, sink }, row) => (sink ? { row, top, sink } : [])),
    );
    await fetchMass(...caches.filter(({ room }) => room === 1));
    for (const cache of caches) cache.advance(1);
    return errors;
  }

  /** All steps of the rows of `ids`. */
  async #run(
    ids: Uint32Array,
    attend: (layer: number, places: AttentionPlaces) => void,
    wanted: readonly WantedRow[],
  ): Promise<void> {
    const { steps, lastAttention } = this.#program;
    for (const [i, step] of steps.entries()) {
      if (i > lastAttention && wanted.length === 0) break;
      if (step.op === 'GroupQueryAttention') {
        const layer = step.node.attributes.layer as number;
        attend(layer, this.#places(step));
        // The device works on what it has while the next layers are recorded.
        if ((layer + 1) % LAYERS_A_SUBMIT === 0) this.stream.submit();
      } else {
        const op = this.#ops.get(i);
        if (op?.kind === 'embed') op.record(this.stream, ids);
        else if (op?.kind === 'rows') op.record(this.stream, ids.length);
        else if (op?.kind === 'logits') await this.#logits(op, wanted);
      }
    }
    this.stream.submit();
  }

  #places({ inputs, output }: Step): AttentionPlaces {
    const place = (name: string): { at: number; width: number } => ({
      at: this.#program.offset.get(name)!,
      width: this.#program.width.get(name)!,
    });
    return { q: place(inputs[0]!), k: place(inputs[1]!), v: place(inputs[2]!), out: place(output) };
  }

  async #logits(op: RowOp & { kind: 'logits' }, wanted: readonly WantedRow[]): Promise<void> {
    const { vocab } = this.#config;
    const stride = logitStride(vocab);
    for (let i = 0; i < wanted.length; ) {
      // Rows that follow one another go together.
      let count = 1;
      while (count < LOGIT_ROWS && wanted[i + count]?.row === wanted[i]!.row + count) count++;
      op.record(this.stream, wanted[i]!.row, count);
      const tile = wanted.slice(i, i + count);
      const most = Math.max(...tile.map(({ top }) => top ?? 0));
      if (most > 0) this.#top.record(count, most);
      // Neighbours that want the same come as one range: each range is a copy of its own.
      const places: { range: number; from: number }[] = [];
      const ranges: { buffer: GPUBuffer; at: number; bytes: number }[] = [];
      for (const [r, { top }] of tile.entries()) {
        const place =
          top === undefined
            ? { buffer: this.#workspace, at: this.#logitsAt + r * stride, bytes: stride }
            : { buffer: this.#top.pairs, at: this.#top.at + r * this.#top.stride, bytes: this.#top.stride };
        const last = ranges.at(-1);
        if (last && last.buffer === place.buffer && last.at + last.bytes === place.at) {
          places.push({ range: ranges.length - 1, from: last.bytes });
          last.bytes += place.bytes;
        } else {
          places.push({ range: ranges.length, from: 0 });
          ranges.push(place);
        }
      }
      const pieces = await this.stream.read(ranges);
      for (const [r, { top, sink }] of tile.entries()) {
        const { range, from } = places[r]!;
        const { buffer } = pieces[range]!;
        const byteOffset = pieces[range]!.byteOffset + from;
        if (top === undefined) sink(new Float32Array(buffer, byteOffset, vocab));
        else {
          const pairs = new Uint32Array(buffer, byteOffset, top * 2);
          const bits = Uint32Array.from({ length: top }, (_, k) => pairs[2 * k]!);
          sink(
            new Float32Array(bits.buffer),
            Uint32Array.from({ length: top }, (_, k) => pairs[2 * k + 1]!),
          );
        }
      }
      i += count;
    }
  }
}

/** A row whose logits somebody wants. */
interface WantedRow {
  readonly row: number;
  readonly top: number | undefined;
  readonly sink: LogitSink;
}

/** Bytes from one row of logits to the next. */
const logitStride = (vocab: number): number => Math.ceil(vocab / 4) * 16;
