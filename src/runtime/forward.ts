import type { KvCache } from '../cache/cache.ts';
import { openSegments } from '../cache/gaps.ts';
import { PropagatingCache } from '../cache/propagating-cache.ts';
import { align, type Ptr } from '../core/arena.ts';
import { EPOCH, type ModelConfig } from '../core/config.ts';
import { UnsupportedModelError } from '../core/errors.ts';
import { type AttendArgs, activationKind } from '../kernels/kernels.ts';
import { type Chunk, type ForwardOptions, openChunk, type StepJob } from './chunk.ts';
import type { LoadedModel } from './model.ts';
import type { Stage } from './partition.ts';
import { compile, type Program, type Step } from './program.ts';
import { type PropagationParts, runPropagating } from './propagate.ts';
import { type ResolvedStep, resolveSteps } from './resolve.ts';
import { ropeFrequencies, ropeTables } from './rope.ts';

/** Largest chunk: one epoch. */
export const MAX_ROWS = EPOCH;
/** Rows of logits computed at a time: 16 x 49,152 x 4 = 3.1 MB. A host that only ever wants the last row needs one. */
const LOGIT_ROWS = 16;
/** Multiply-adds between two yields: about 50 ms at the speed of a slow core. A Worker's clock stands still while it computes, so work is counted instead of time. */
export const SLICE_MACS = 5e8;
/** Segments that the table of addresses holds: far past any trained length. */
const MAX_SEGMENTS = 4096;

/** Queries of a chunk that are rotated for its gaps at a time: a chunk with many gaps is attended in several runs of rows. */
const QUERY_BYTES = 600_000;
/** The table of the segments' queries, and the cosines and sines of an angle, before the queries themselves. */
const gapTableBytes = (config: ModelConfig): number =>
  align(openSegments(config) * 4) + align(config.headDim * 4);

/** Runs a stage that no kernel claimed. Values are f32 [rows, width] copies. */
export type ForeignStage = (
  inputs: Readonly<
    Record<
      string,
      { readonly rows: number; readonly width: number; readonly data: Float32Array | BigInt64Array }
    >
  >,
) => Promise<Record<string, Float32Array>>;

/** What executes a model for one chunk: `Forward` over kernels in linear memory, or the one on a GPU. */
export interface ForwardPass {
  readonly workspaceBytes: number;
  /**
   * Feeds `ids` (at most cache.room) at cache.position and advances the cache. `wanted`: rows of the chunk, ascending, whose logits go to `sink`;
   * the view is only valid during the call. The cache changes wholly or, if a kernel throws before the first append, not at all.
   */
  run(
    cache: KvCache,
    ids: readonly number[],
    wanted: readonly number[],
    sink: (row: number, logits: Float32Array, ids?: Uint32Array) => void,
    options?: ForwardOptions,
  ): Promise<void>;
  /** The most that ForwardOptions.top may ask for; undefined: it may not. */
  readonly mostTop?: number;
  /** Jobs that `step` takes at once. */
  readonly mostTogether?: number;
  /**
   * Feeds a token to each of several conversations in one pass, with the bits that each alone would have. One whose memory does not suffice stays as it
   * was; its error is told at its place.
   */
  step?(jobs: readonly StepJob[]): Promise<(Error | undefined)[]>;
}

/**
 * Executes the stages for one chunk of at most 128 tokens. Owns the workspace, which all conversations of an isolate share: one `run` at a
 * time (the engine sees to it). Knows no operator semantics beyond ONNX's.
 */
export class Forward implements ForwardPass {
  readonly #model: LoadedModel;
  readonly #program: Program;
  readonly #steps: readonly ResolvedStep[];
  readonly #stages: readonly Stage[];
  readonly #foreign: ReadonlyMap<number, ForeignStage>;
  readonly #values: Ptr;
  readonly #activation: Ptr;
  readonly #logits: Ptr;
  readonly #logitRows: number;
  readonly #attend: Ptr;
  readonly #attendBytes: number;
  readonly #segments: Ptr;
  readonly #ids: Ptr;
  readonly #rope: Ptr;
  readonly #frequencies: Float64Array;
  /** Bytes of the attention's workspace that hold queries while a conversation has gaps. */
  readonly #queryBytes: number;
  readonly workspaceBytes: number;
  readonly #propagation: PropagationParts = {
    runSteps: (cache, chunk) => this.#runSteps(cache, chunk),
    after: (layer) => this.#program.after(layer),
    view: (value, rows) =>
      new Float32Array(this.#model.kernels.arena.memory.buffer, this.#at(value), rows * this.#width(value)),
    fillRope: (position, rows, at) => this.#fillRope(position, rows, at),
  };

  constructor(
    model: LoadedModel,
    stages: readonly Stage[],
    foreign: ReadonlyMap<number, ForeignStage> = new Map(),
    logitRows = LOGIT_ROWS,
  ) {
    this.#model = model;
    this.#stages = stages;
    this.#foreign = foreign;
    const { kernels, config, manifest } = model;
    this.#program = compile(
      stages,
      manifest.graph.outputs,
      (name) => model.weights.get(name)?.shape,
      MAX_ROWS,
    );
    const arena = kernels.arena;
    const before = arena.staticBytes;
    this.#values = arena.allocStatic(this.#program.workspaceBytes);
    this.#steps = resolveSteps(model, this.#program, stages, this.#values);
    let activationBytes = 0;
    for (const weight of model.weights.values())
      if (weight.shape.length === 2)
        activationBytes = Math.max(
          activationBytes,
          kernels.activationBytes(activationKind(weight.form), MAX_ROWS, weight.shape[1]!),
        );
    this.#activation = arena.allocStatic(align(activationBytes));
    this.#logitRows = logitRows;
    this.#logits = arena.allocStatic(logitRows * config.vocab * 4);
    const attendBytes = (rows: number): number =>
      kernels.attendWorkspaceBytes({
        rows,
        heads: config.heads,
        kvHeads: config.kvHeads,
        headDim: config.headDim,
        cells: config.contextLength + 2 * EPOCH + MAX_SEGMENTS,
      });
    // What attention needs at least, and a row's queries for as many gaps as there may be.
    const least = attendBytes(1);
    const queries = gapTableBytes(config) + (openSegments(config) + 2) * config.heads * config.headDim * 4;
    this.#attendBytes = align(Math.max(attendBytes(MAX_ROWS), align(least) + queries));
    this.#queryBytes = Math.max(queries, Math.min(QUERY_BYTES, this.#attendBytes - align(least)) & ~15);
    this.#attend = arena.allocStatic(this.#attendBytes);
    this.#segments = arena.allocStatic(MAX_SEGMENTS * 4);
    this.#ids = arena.allocStatic(MAX_ROWS * 4);
    this.#rope = arena.allocStatic(2 * MAX_ROWS * (config.headDim / 2) * 4);
    this.#frequencies = ropeFrequencies(config);
    this.workspaceBytes = arena.staticBytes - before;
  }

  async run(
    cache: KvCache,
    ids: readonly number[],
    wanted: readonly number[],
    sink: (row: number, logits: Float32Array) => void,
    options: ForwardOptions = {},
  ): Promise<void> {
    const rows = ids.length;
    openChunk(cache, rows);
    new Uint32Array(this.#model.kernels.arena.memory.buffer, this.#ids, rows).set(ids);
    this.#fillRope(cache.position, rows);
    const chunk = { ids, rows, wanted, sink, options };
    if (cache instanceof PropagatingCache) await runPropagating(this.#propagation, cache, chunk);
    else await this.#runSteps(cache, chunk);
    cache.advance(rows);
  }

  /** Steps `from` to `to` (not included) of a chunk whose rope tables are filled; the cache's first layer is the model's `base`. */
  async #runSteps(
    cache: KvCache,
    { ids, rows, wanted, sink, options, from: first = 0, to = this.#steps.length, base = 0 }: Chunk,
  ): Promise<void> {
    const { kernels, config } = this.#model;
    const { lastAttention } = this.#program;
    const steps = this.#steps;
    let current = rows;
    let macs = 0;
    for (let i = first; i < to; i++) {
      const step = steps[i]!;
      const { x, weight, out, width } = step;
      switch (step.op) {
        case 'Foreign':
          await this.#runForeign(step.stage, current, wanted, ids, sink);
          while (steps[i + 1]?.stage === step.stage) i++;
          break;
        case 'Gather':
          kernels.embed(step.form, weight, step.n, step.k, this.#ids, rows, out);
          break;
        case 'SimplifiedLayerNormalization':
          kernels.rmsNorm(x, weight, current, width, step.epsilon, out);
          break;
        case 'MatMul': {
          const { form, n, k } = step;
          if (step.prepare !== undefined)
            kernels.prepareActivation(step.prepare, x, current, k, this.#activation);
          kernels.matmul(form, step.integer ? this.#activation : x, current, weight, n, k, out, n);
          macs += current * n * k;
          break;
        }
        case 'Logits': {
          // A tile of rows at a time, since all rows of a chunk would be 25 MB.
          const { form, n, k } = step;
          for (let row = 0; row < current; row += this.#logitRows) {
            const count = Math.min(this.#logitRows, current - row);
            const from = x + row * k * 4;
            if (step.prepare !== undefined)
              kernels.prepareActivation(step.prepare, from, count, k, this.#activation);
            const operand = step.integer ? this.#activation : from;
            kernels.matmul(form, operand, count, weight, n, k, this.#logits, n);
            for (let r = 0; r < count; r++)
              sink(
                wanted[row + r]!,
                new Float32Array(kernels.arena.memory.buffer, this.#logits + r * n * 4, n),
              );
            macs += count * n * k;
            if (macs > SLICE_MACS && options.yield) {
              macs = 0;
              await options.yield();
            }
          }
          break;
        }
        case 'GroupQueryAttention':
          this.#attention(cache, step.step, rows, base);
          macs += rows * (cache.position + rows) * config.headDim * 2 * config.heads;
          break;
        case 'Sigmoid':
          kernels.sigmoid(x, current * width, out);
          break;
        case 'Add':
          kernels.add(x, step.y, current * width, out);
          break;
        case 'Mul':
          kernels.mul(x, step.y, current * width, out);
          break;
        case 'SiluMul':
          kernels.siluMul(x, step.y, current * width, out);
          break;
      }
      if (i === lastAttention) {
        // All that follows is row by row: only rows whose logits are wanted go on.
        if (wanted.length === 0) break;
        this.#keepRows(i, wanted);
        current = wanted.length;
      }
      if (macs > SLICE_MACS && options.yield) {
        macs = 0;
        await options.yield();
      }
    }
  }

  #attention(cache: KvCache, step: Step, rows: number, base: number): void {
    const { kernels, config } = this.#model;
    const { heads, kvHeads, headDim } = config;
    const layer = (step.node.attributes.layer as number) - base;
    const [q, k, v] = step.inputs.slice(0, 3).map((name) => this.#at(name)) as [Ptr, Ptr, Ptr];
    const ldQ = heads * headDim;
    const gapped = cache.gaps.tokens > 0;
    const ldK = kvHeads * headDim;
    const cos = this.#rope;
    const sin = this.#rope + MAX_ROWS * (headDim / 2) * 4;
    kernels.rope(q, ldQ, rows, heads, headDim, cos, sin, 0);
    kernels.rope(k, ldK, rows, kvHeads, headDim, cos, sin, 0);
    if (cache.rotated) {
      // Where gaps were closed, queries still have to be rotated for them.
      if (!gapped) kernels.hadamard(q, ldQ, rows, heads, headDim);
      kernels.hadamard(k, ldK, rows, kvHeads, headDim);
      kernels.hadamard(v, ldK, rows, kvHeads, headDim);
    }
    const out = this.#at(step.output);
    const workspaceBytes = gapped ? this.#attendBytes - this.#queryBytes : this.#attendBytes;
    for (const run of cache.runs(layer, rows)) {
      const slot = cache.begin(layer, run);
      const exact = cache.exactRef(layer);
      kernels.appendExact(exact, slot, run.rows, k + run.from * ldK * 4, v + run.from * ldK * 4, ldK);
      const segments = cache.segmentPtrs(layer);
      new Uint32Array(kernels.arena.memory.buffer, this.#segments, segments.length).set(segments);
      const gaps = gapped ? this.#gapQueries(cache, layer) : undefined;
      const most = gaps?.rows ?? run.rows;
      for (let first = 0; first < run.rows; first += most) {
        const from = run.from + first;
        const count = Math.min(most, run.rows - first);
        const queries = gaps?.rotate(q + from * ldQ * 4, count);
        kernels.attend({
          q: q + from * ldQ * 4,
          ...queries,
          ldQ,
          rows: count,
          heads,
          headDim,
          scale: config.attentionScale,
          segments: this.#segments,
          segmentCount: segments.length,
          exact,
          visible: slot + first + 1,
          out: out + from * ldQ * 4,
          ldOut: ldQ,
          ...cache.massOf(run),
          position: cache.position + from,
          arithmetic: cache.config.arithmetic,
          workspace: this.#attend,
          workspaceBytes,
        });
      }
    }
    if (cache.rotated) kernels.hadamard(out, ldQ, rows, heads, headDim);
  }

  /** How a layer's queries are rotated where gaps may have been closed, and for how many rows at a time. */
  #gapQueries(
    cache: KvCache,
    layer: number,
  ): {
    rows: number;
    rotate(q: Ptr, rows: number): Pick<AttendArgs, 'q' | 'segmentQueries' | 'sinkQueries' | 'sinks'>;
  } {
    const { kernels, config } = this.#model;
    const { heads, headDim } = config;
    const { arena } = kernels;
    const width = heads * headDim;
    const offsets = cache.offsets(layer);
    const distinct = offsets ? [...new Set([0, offsets.sinks, ...offsets.segments])] : [0];
    const table = this.#attend + this.#attendBytes - this.#queryBytes;
    const angles = table + align(openSegments(config) * 4);
    const queries = table + gapTableBytes(config);
    const room = this.#queryBytes - gapTableBytes(config);
    return {
      rows: Math.max(1, Math.floor(room / (distinct.length * width * 4))),
      rotate: (q, rows) => {
        const { buffer } = arena.memory;
        const at = (offset: number): Ptr => queries + distinct.indexOf(offset) * rows * width * 4;
        const half = headDim / 2;
        const cos = new Float32Array(buffer, angles, half);
        const sin = new Float32Array(buffer, angles + half * 4, half);
        for (const offset of distinct) {
          const to = at(offset);
          new Uint8Array(buffer).copyWithin(to, q, q + rows * width * 4);
          if (offset > 0) {
            // From position t back to t - offset, the same for all rows.
            for (let i = 0; i < half; i++) {
              cos[i] = Math.cos(offset * this.#frequencies[i]!);
              sin[i] = -Math.sin(offset * this.#frequencies[i]!);
            }
            kernels.rope(to, width, 1, rows * heads, headDim, angles, angles + half * 4, 0);
          }
          if (cache.rotated) kernels.hadamard(to, width, rows, heads, headDim);
        }
        if (!offsets) return { q: at(0) };
        new Uint32Array(buffer, table, offsets.segments.length).set(offsets.segments.map(at));
        const { sinks } = cache.config;
        return { q: at(0), segmentQueries: table, sinkQueries: at(offsets.sinks), sinks };
      },
    };
  }

  /** Moves the wanted rows of every live value to its front. */
  #keepRows(step: number, wanted: readonly number[]): void {
    const bytes = new Uint8Array(this.#model.kernels.arena.memory.buffer);
    for (const name of this.#program.liveAfter(step)) {
      const row = this.#width(name) * 4;
      const at = this.#at(name);
      wanted.forEach((from, to) => {
        if (from !== to) bytes.copyWithin(at + to * row, at + from * row, at + (from + 1) * row);
      });
    }
  }

  /** Hands a stage's inputs to onnxruntime and takes its outputs. Logits go out row by row. */
  async #runForeign(
    index: number,
    rows: number,
    wanted: readonly number[],
    ids: readonly number[],
    sink: (row: number, logits: Float32Array) => void,
  ): Promise<void> {
    const stage = this.#stages[index]!;
    const run = this.#foreign.get(index);
    if (!run)
      throw new UnsupportedModelError(
        `stage ${index} (${stage.nodes[0]?.op}) needs onnxruntime, which this host did not provide`,
      );
    const buffer = (): ArrayBuffer => this.#model.kernels.arena.memory.buffer;
    const inputs = Object.fromEntries(
      stage.inputs.map((name) => {
        if (name === 'input_ids') return [name, { rows, width: 1, data: BigInt64Array.from(ids, BigInt) }];
        const width = this.#width(name);
        return [
          name,
          { rows, width, data: new Float32Array(buffer(), this.#at(name), rows * width).slice() },
        ];
      }),
    );
    const outputs = await run(inputs);
    for (const name of stage.outputs) {
      const data = outputs[name];
      if (!data) throw new Error(`onnxruntime gave no ${name}`);
      const width = this.#width(name);
      if (this.#program.offset.has(name)) new Float32Array(buffer(), this.#at(name), rows * width).set(data);
      else for (let r = 0; r < rows; r++) sink(wanted[r]!, data.subarray(r * width, (r + 1) * width));
    }
  }

  /** The tables' rows `at` and following, for positions from `position` on. */
  #fillRope(position: number, rows: number, at = 0): void {
    const half = this.#frequencies.length;
    const { contextLength } = this.#model.config;
    const buffer = this.#model.kernels.arena.memory.buffer;
    const cosines = new Float32Array(buffer, this.#rope + at * half * 4, rows * half);
    const sines = new Float32Array(buffer, this.#rope + (MAX_ROWS + at) * half * 4, rows * half);
    ropeTables(this.#frequencies, position, rows, cosines, sines, contextLength);
  }

  #at(name: string): Ptr {
    const offset = this.#program.offset.get(name);
    if (offset === undefined) throw new Error(`no value named ${name}`);
    return this.#values + offset;
  }
  #width(name: string): number {
    return this.#program.width.get(name)!;
  }
}
