import { pad4, SEGMENT_TOKENS } from './layout.ts';
import { kernel, type ShaderSources } from './webgpu.ts';
import { codebookFunctions, type HeadShape, shaderPrelude } from './webgpu-prelude.ts';
import { type CommandStream, TABLE_ALIGNMENT, TABLE_WINDOW } from './webgpu-stream.ts';

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

/** Words (multiples of 4 bytes) from one buffer to another; from ZEROS: zeros. */
export interface WordRun {
  readonly from: number;
  readonly to: number;
  readonly bytes: number;
}
export const ZEROS = -1;

/** What changes the packed cache. Each call records into the stream; tables go through it, and bindings are made once for a buffer. */
export interface WebGpuCacheKernels {
  bindAppend(bindings: AppendBindings): GPUBindGroup;
  /**
   * Rotates queries into `queries`, keys and values into the exact parts. q [rows, heads, headDim], k, v [rows, kvHeads, headDim].
   * @param at byte offset of the rows' table (`appendTable`)
   * @param rows at most MAX_APPEND_ROWS
   * @param plain of caches of plain tiers, which hold vectors outside the Hadamard rotation
   */
  dispatchAppend(
    pass: GPUComputePassEncoder,
    group: GPUBindGroup,
    at: number,
    rows: number,
    plain?: boolean,
  ): void;
  copy(runs: readonly CopyRun[], cache: GPUBuffer): void;
  /** Encodes exact slots or recodes records, side by side. */
  encode(jobs: readonly EncodeJob[], cache: GPUBuffer): void;
  decay(ranges: readonly DecayRange[], cache: GPUBuffer): void;
  words(runs: readonly WordRun[], source: GPUBuffer, target: GPUBuffer): void;
}

/** Workgroups of one range. */
const MAX_GROUPS = 64;
const MAX_WORKGROUPS = 65535;

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

const most = (counts: readonly number[]): number => counts.reduce((a, b) => Math.max(a, b), 1);
/** Lists that a dispatch cannot take whole: a table must fit into the window that shows it, and workgroups are numbered. */
function* pieces<T>(all: readonly T[], tableBytes: number): Generator<readonly T[]> {
  const count = Math.min(MAX_WORKGROUPS, Math.floor(TABLE_WINDOW / tableBytes));
  for (let from = 0; from < all.length; from += count) yield all.slice(from, from + count);
}

/** What changes the packed cache on a GPU: shaders/append.wgsl, encode.wgsl, copy.wgsl, decay.wgsl and words.wgsl. */
export function createWebGpuCacheKernels(
  stream: CommandStream,
  shaders: ShaderSources,
  shape: HeadShape,
): WebGpuCacheKernels {
  const { device } = stream;
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
    recorded('encode', 'RRw', [prelude, shaders.common, codebookFunctions(), shaders.encode]),
  );
  const copy = recorded('copy', 'Rw', [shaders.copy]);
  const decay = recorded('decay', 'Rw', [shaders.decay]);
  const words = recorded('words', 'Rrw', [shaders.words]);

  /** A kernel whose bindings are tables and then whole buffers, mostly those of the last time. */
  function recorded(label: string, bindings: string, code: readonly string[]) {
    const { pipeline, layout } = kernel(device, label, bindings, code);
    const windows = [...bindings].filter((letter) => letter === 'R').length;
    let bound: { readonly buffers: readonly GPUBuffer[]; readonly group: GPUBindGroup } | undefined;
    return (
      tables: readonly Uint32Array<ArrayBuffer>[],
      buffers: readonly GPUBuffer[],
      x: number,
      y = 1,
    ): void => {
      if (!bound || buffers.some((buffer, i) => buffer !== bound!.buffers[i])) {
        const window = { buffer: stream.tables, size: TABLE_WINDOW };
        const all = [...Array(windows).fill(window), ...buffers.map((buffer) => ({ buffer }))];
        const entries = all.map((resource, binding) => ({ binding, resource }));
        bound = { buffers: [...buffers], group: device.createBindGroup({ label, layout, entries }) };
      }
      stream.reserve(tables.reduce((sum, { byteLength }) => sum + byteLength + TABLE_ALIGNMENT, 0));
      const offsets = tables.map((table) => stream.table(table));
      const pass = stream.pass(label);
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, bound.group, offsets);
      pass.dispatchWorkgroups(x, y);
    };
  }

  return {
    bindAppend({ tables, cosines, sines, q, k, v, queries, cache }) {
      const rows = { buffer: tables, size: TABLE_WINDOW };
      const whole = (buffer: GPUBuffer): GPUBufferBinding => ({ buffer });
      const all = [rows, whole(cosines), whole(sines), q, k, v, whole(queries), whole(cache)];
      const entries = all.map((resource, binding) => ({ binding, resource }));
      return device.createBindGroup({ label: 'append', layout: append(false).layout, entries });
    },
    dispatchAppend(pass, group, at, rows, plain = false) {
      pass.setPipeline(append(plain).pipeline);
      pass.setBindGroup(0, group, [at]);
      pass.dispatchWorkgroups(rows, shape.heads + 2 * shape.kvHeads);
    },
    copy(all, cache) {
      for (const runs of pieces(all, 12)) {
        const table = Uint32Array.from(runs.flatMap((r) => [r.from / 2, r.to / 2, r.bytes / 2]));
        copy([table], [cache], runs.length);
      }
    },
    encode(all, cache) {
      for (const plain of [false, true])
        for (const jobs of pieces(
          all.filter((job) => job.plain === plain),
          SEGMENT_TOKENS,
        )) {
          const { table, tiers } = encodeTables(jobs);
          encode(plain)([table, tiers], [cache], jobs.length);
        }
    },
    decay(all, cache) {
      for (const ranges of pieces(all, 12)) {
        const table = Uint32Array.from(ranges.flatMap((r) => [r.at / 4, r.count / 2, r.numerator]));
        const groups = Math.ceil(most(ranges.map(({ count }) => count / 2)) / 64);
        decay([table], [cache], Math.min(MAX_GROUPS, groups), ranges.length);
      }
    },
    words(all, source, target) {
      for (const runs of pieces(all, 12)) {
        const table = new Uint32Array(runs.length * 3);
        let at = 0;
        for (const run of runs) {
          table[at++] = run.from === ZEROS ? 0xffffffff : run.from / 4;
          table[at++] = run.to / 4;
          table[at++] = run.bytes / 4;
        }
        const groups = Math.ceil(most(runs.map(({ bytes }) => bytes / 4)) / 64);
        words([table], [source, target], Math.min(MAX_GROUPS, groups), runs.length);
      }
    },
  };
}

function encodeTables(jobs: readonly EncodeJob[]) {
  const tiers = new Uint8Array(jobs.reduce((sum, job) => sum + pad4(job.tiers.length), 0));
  const table = new Uint32Array(jobs.length * 8);
  let at = 0;
  let word = 0;
  for (const job of jobs) {
    tiers.set(job.tiers, at);
    table[word++] = job.source / (job.bits === 0 ? 16 : 4);
    table[word++] = job.values / 4;
    table[word++] = job.bits;
    table[word++] = job.tiers.length;
    table[word++] = at / 4;
    table[word++] = job.target / 16;
    table[word++] = job.massFrom / 2;
    table[word++] = job.massTo / 4;
    at += pad4(job.tiers.length);
  }
  return { table, tiers: new Uint32Array(tiers.buffer) };
}
