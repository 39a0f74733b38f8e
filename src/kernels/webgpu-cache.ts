import { pad4 } from './layout.ts';
import { kernel, type ShaderSources } from './webgpu.ts';
import { codebookFunctions, type HeadShape, shaderPrelude } from './webgpu-prelude.ts';
import { TABLE_WINDOW } from './webgpu-stream.ts';
import { COPY_DST, STORAGE } from './webgpu-usage.ts';

/** One query row's place: struct Row of shaders/append.wgsl. */
export interface AppendRow {
  /** Byte offset of the exact part within the cache buffer. */
  readonly exact: number;
  /** 0: the row's query alone is rotated. */
  readonly capacity: number;
  readonly exactBits: 16 | 32;
  /** The slot that receives the row's key and value. */
  readonly slot: number;
  /** Row of the cosine and sine tables: the position, or its index in a table of the chunk. */
  readonly angle: number;
  /** Its row in q, k and v; by default its index among those that are appended. */
  readonly row?: number;
  /** Its row in queries, `row` by default. */
  readonly to?: number;
  /** Row of the tables for the tokens that a query is turned back by; 0: none. */
  readonly turn?: number;
}

/** A record to write: struct Job of shaders/encode.wgsl. Byte offsets within the cache buffer; 0: no mass. */
export interface EncodeJob {
  /** Keys and values of the first exact slot, each of `bits` (multiples of 4); or an older record (of 16), when `bits` is 0. */
  readonly source: number;
  readonly values: number;
  readonly bits: 0 | 16 | 32;
  /** A tier id or DROP for each token; their number is the record's. */
  readonly tiers: Uint8Array;
  /** Multiple of 16; the new record must overlap no source of the same dispatch. */
  readonly target: number;
  readonly massFrom: number;
  readonly massTo: number;
  /** Its tiers are plain. */
  readonly plain: boolean;
}

/** A run of masses to decay: byte offset, number of u16 values (even), factor of 65536. */
export interface DecayRange {
  readonly at: number;
  readonly count: number;
  readonly numerator: number;
}

/** Bytes within the cache buffer, copied to a place apart; all three are even. */
export interface CopyRun {
  readonly from: number;
  readonly to: number;
  readonly bytes: number;
}

/** Bindings of an append, for as long as its buffers live; its tables come with each dispatch. */
export interface AppendBindings {
  readonly tables: GPUBuffer;
  /** [rows, headDim / 2] */
  readonly cosines: GPUBuffer;
  readonly sines: GPUBuffer;
  readonly q: GPUBufferBinding;
  readonly k: GPUBufferBinding;
  readonly v: GPUBufferBinding;
  readonly queries: GPUBuffer;
  readonly cache: GPUBuffer;
}

export interface WebGpuCacheKernels {
  /**
   * Rotates queries into `queries`, keys and values into the exact parts. q [rows, heads, headDim], k, v [rows, kvHeads, headDim].
   * `plain`: of caches of plain tiers, which hold them outside the Hadamard rotation.
   */
  append(
    pass: GPUComputePassEncoder,
    a: {
      readonly rows: readonly AppendRow[];
      readonly cosines: GPUBuffer;
      readonly sines: GPUBuffer;
      readonly q: GPUBuffer;
      readonly k: GPUBuffer;
      readonly v: GPUBuffer;
      readonly queries: GPUBuffer;
      readonly cache: GPUBuffer;
      readonly plain?: boolean;
    },
  ): void;
  bindAppend(bindings: AppendBindings): GPUBindGroup;
  /** @param at byte offset of the rows' table (`appendTable`) @param rows at most MAX_APPEND_ROWS */
  dispatchAppend(
    pass: GPUComputePassEncoder,
    group: GPUBindGroup,
    at: number,
    rows: number,
    plain?: boolean,
  ): void;
  copy(pass: GPUComputePassEncoder, runs: readonly CopyRun[], cache: GPUBuffer): void;
  /** Encodes exact slots or recodes records, side by side. */
  encode(pass: GPUComputePassEncoder, jobs: readonly EncodeJob[], cache: GPUBuffer): void;
  decay(pass: GPUComputePassEncoder, ranges: readonly DecayRange[], cache: GPUBuffer): void;
}

const MAX_DECAY_GROUPS = 64;

const APPEND_ROW_BYTES = 32;
/** Rows that one dispatch of `append` takes. */
export const MAX_APPEND_ROWS = TABLE_WINDOW / APPEND_ROW_BYTES;
export function appendTable(rows: readonly AppendRow[]): Uint32Array<ArrayBuffer> {
  const table = new Uint32Array((rows.length * APPEND_ROW_BYTES) / 4);
  let at = 0;
  for (const [i, r] of rows.entries()) {
    table[at++] = r.exact / 16;
    table[at++] = r.capacity;
    table[at++] = r.exactBits;
    table[at++] = r.slot;
    table[at++] = r.angle;
    table[at++] = r.row ?? i;
    table[at++] = r.to ?? r.row ?? i;
    table[at++] = r.turn ?? 0;
  }
  return table;
}

/** What changes the packed cache on a GPU: shaders/append.wgsl, encode.wgsl and decay.wgsl. */
export function createWebGpuCacheKernels(
  device: GPUDevice,
  shaders: ShaderSources,
  shape: HeadShape,
): WebGpuCacheKernels {
  const pipeline = (label: string, ...parts: string[]): GPUComputePipeline =>
    device.createComputePipeline({
      label,
      layout: 'auto',
      compute: { module: device.createShaderModule({ label, code: parts.join('\n') }) },
    });
  const copy = pipeline('copy', shaders.copy);
  /** Those for plain tiers are compiled when the first of their caches comes. */
  const both = <T>(make: (prelude: string) => T): ((plain: boolean) => T) => {
    const made = new Map([[false, make(shaderPrelude(shape))]]);
    return (plain) => {
      const found = made.get(plain) ?? make(shaderPrelude(shape, plain));
      made.set(plain, found);
      return found;
    };
  };
  const append = both((prelude) =>
    kernel(device, 'append', 'Rrrrrrww', [prelude, shaders.common, shaders.append, shaders.hadamard]),
  );
  const encode = both((prelude) =>
    pipeline('encode', prelude, shaders.common, codebookFunctions(), shaders.encode),
  );
  const decay = pipeline('decay', shaders.decay);

  const table = (words: ArrayLike<number>): GPUBuffer => {
    const data = words instanceof Uint32Array ? (words as Uint32Array<ArrayBuffer>) : Uint32Array.from(words);
    const buffer = device.createBuffer({ size: Math.max(16, data.byteLength), usage: STORAGE | COPY_DST });
    device.queue.writeBuffer(buffer, 0, data);
    return buffer;
  };
  const dispatch = (
    pass: GPUComputePassEncoder,
    of: GPUComputePipeline,
    buffers: readonly GPUBuffer[],
    x: number,
    y = 1,
  ): void => {
    pass.setPipeline(of);
    pass.setBindGroup(
      0,
      device.createBindGroup({
        layout: of.getBindGroupLayout(0),
        entries: buffers.map((buffer, binding) => ({ binding, resource: { buffer } })),
      }),
    );
    pass.dispatchWorkgroups(x, y);
  };

  const bindAll = (bindings: readonly GPUBufferBinding[]): GPUBindGroup =>
    device.createBindGroup({
      layout: append(false).layout,
      entries: bindings.map((resource, binding) => ({ binding, resource })),
    });

  return {
    append(pass, { rows, cosines, sines, q, k, v, queries, cache, plain = false }) {
      pass.setPipeline(append(plain).pipeline);
      const buffers = [table([...appendTable(rows)]), cosines, sines, q, k, v, queries, cache];
      pass.setBindGroup(0, bindAll(buffers.map((buffer) => ({ buffer }))), [0]);
      pass.dispatchWorkgroups(rows.length, shape.heads + 2 * shape.kvHeads);
    },
    bindAppend({ tables, cosines, sines, q, k, v, queries, cache }) {
      const rows = { buffer: tables, size: TABLE_WINDOW };
      const whole = (buffer: GPUBuffer): GPUBufferBinding => ({ buffer });
      return bindAll([rows, whole(cosines), whole(sines), q, k, v, whole(queries), whole(cache)]);
    },
    dispatchAppend(pass, group, at, rows, plain = false) {
      pass.setPipeline(append(plain).pipeline);
      pass.setBindGroup(0, group, [at]);
      pass.dispatchWorkgroups(rows, shape.heads + 2 * shape.kvHeads);
    },
    copy(pass, runs, cache) {
      const words = runs.flatMap((r) => [r.from / 2, r.to / 2, r.bytes / 2]);
      dispatch(pass, copy, [table(words), cache], runs.length);
    },
    encode(pass, all, cache) {
      for (const plain of [false, true]) {
        const jobs = all.filter((job) => job.plain === plain);
        if (jobs.length === 0) continue;
        const tiers = new Uint8Array(jobs.reduce((sum, job) => sum + pad4(job.tiers.length), 0));
        const words = new Uint32Array(jobs.length * 8);
        let at = 0;
        jobs.forEach((job, i) => {
          tiers.set(job.tiers, at);
          words.set(
            [
              job.source / (job.bits === 0 ? 16 : 4),
              job.values / 4,
              job.bits,
              job.tiers.length,
              at / 4,
              job.target / 16,
              job.massFrom / 2,
              job.massTo / 4,
            ],
            i * 8,
          );
          at += pad4(job.tiers.length);
        });
        const tables = [table(words), table(new Uint32Array(tiers.buffer))];
        dispatch(pass, encode(plain), [...tables, cache], jobs.length);
      }
    },
    decay(pass, ranges, cache) {
      const words = ranges.flatMap((r) => [r.at / 4, r.count / 2, r.numerator]);
      const most = ranges.reduce((n, r) => Math.max(n, r.count / 2), 1);
      dispatch(
        pass,
        decay,
        [table(words), cache],
        Math.min(MAX_DECAY_GROUPS, Math.ceil(most / 64)),
        ranges.length,
      );
    },
  };
}
