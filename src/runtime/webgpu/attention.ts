import type { KvCache } from '../../cache/cache.ts';
import { EPOCH, type ModelConfig } from '../../core/config.ts';
import { type AttendGroups, planParams, type WebGpuAttention } from '../../kernels/webgpu.ts';
import {
  type AppendRow,
  appendTable,
  MAX_APPEND_ROWS,
  type WebGpuCacheKernels,
} from '../../kernels/webgpu-cache.ts';
import {
  type AttendItem,
  firstSplitOf,
  planAttend,
  SPLIT_BYTES,
  splitsOf,
} from '../../kernels/webgpu-plan.ts';
import type { WebGpuRecords } from '../../kernels/webgpu-records.ts';
import { type CommandStream, TABLE_ALIGNMENT, TABLE_WINDOW } from '../../kernels/webgpu-stream.ts';
import { STORAGE } from '../../kernels/webgpu-usage.ts';
import type { Angles } from './angles.ts';

/** Queries of a chunk that are attended in one dispatch: bounds the scores that the mass is made of. */
const TILE_ROWS = 32;
/** Where kernels leave the choice: one conversation alone should spread over the whole device. */
const SEGMENTS_PER_SPLIT = 1;
/** Splits of one dispatch of several: their table is seen through a window. */
const MOST_SPLITS = Math.floor(TABLE_WINDOW / SPLIT_BYTES);

type GapOffsets = NonNullable<ReturnType<KvCache['offsets']>>;

interface Place {
  /** Byte offset in the workspace, and columns. */
  readonly at: number;
  readonly width: number;
}

/** A layer's queries, keys, values and output. */
export interface AttentionPlaces {
  readonly q: Place;
  readonly k: Place;
  readonly v: Place;
  readonly out: Place;
}

export interface GpuAttentionOptions {
  readonly stream: CommandStream;
  readonly records: WebGpuRecords;
  readonly cacheKernels: WebGpuCacheKernels;
  readonly attend: (kind: AttentionKind) => WebGpuAttention;
  readonly config: ModelConfig;
  readonly workspace: GPUBuffer;
  readonly angles: Angles;
}

/** Kernels for caches of plain tiers, or for all others, with codes multiplied as integers or as floats. */
export type AttentionKind = 'plain' | 'integer' | 'float';
const kindOf = ({ rotated, config }: KvCache): AttentionKind => (rotated ? config.arithmetic : 'plain');

/** As the shaders take it: a maximum is negative. */
const signedMass = ({ mass, massMode }: ReturnType<KvCache['massOf']>): number =>
  massMode === 'max' ? -mass : mass;

/** Tokens by which queries are turned back: none by 0. */
const turnsOf = (offsets: GapOffsets | undefined): Set<number> => {
  const distinct = new Set(offsets && [offsets.sinks, ...offsets.segments]);
  distinct.delete(0);
  return distinct;
};

type Scratch<T> = Record<'partials' | 'scores' | 'softmax', T>;

/** Where a layer's blocks lie, as the device found it for these segments: a list of them is another one as soon as one of them changed or moved. */
interface Described {
  readonly blocks: GPUBuffer;
  of: readonly { readonly segments: readonly number[]; readonly firstSplit: number }[];
}

/** Attention of one layer for a chunk: rotates, appends, attends over the packed cache, adds up the mass. */
export class GpuAttention {
  readonly #o: GpuAttentionOptions;
  /** Floats of a row of queries. */
  readonly #width: number;
  #queries: GPUBuffer;
  #scratch: Scratch<GPUBuffer>;
  /** By layer. */
  readonly #described = new Map<number, Described>();
  #groups:
    | {
        readonly cache: GPUBuffer;
        readonly cosines: GPUBuffer;
        /** By kind and layer. */
        readonly attend: Map<string, AttendGroups>;
        readonly append: Map<string, GPUBindGroup>;
      }
    | undefined;

  constructor(options: GpuAttentionOptions) {
    this.#o = options;
    const { heads, headDim } = options.config;
    this.#width = heads * headDim;
    this.#queries = this.#buffer('queries', EPOCH * this.#width * 4);
    this.#scratch = {
      partials: this.#buffer('partials', 16),
      scores: this.#buffer('scores', 16),
      softmax: this.#buffer('softmax', 16),
    };
  }

  /** The next `rows` tokens of one conversation. */
  run(cache: KvCache, layer: number, rows: number, places: AttentionPlaces): void {
    const { records, angles } = this.#o;
    const width = this.#width;
    const kind = kindOf(cache);
    for (const run of cache.runs(layer, rows)) {
      const slot = cache.begin(layer, run);
      const exact = cache.exactRef(layer);
      const place = { exact: exact.ptr, capacity: exact.capacity, exactBits: exact.bits };
      const offsets = cache.offsets(layer);
      const turns = turnsOf(offsets);
      const at = angles.turns(turns);
      this.#roomForQueries(turns.size * Math.min(TILE_ROWS, run.rows));
      const gpu = records.memory.gpu;
      const appended = Array.from({ length: run.rows }, (_, r) => ({
        ...{ ...place, slot: slot + r, angle: run.from + r, row: run.from + r },
      }));
      this.#append(gpu, appended, places, kind);
      const segments = cache.segmentPtrs(layer);
      const mass = signedMass(cache.massOf(run));
      for (let done = 0; done < run.rows; done += TILE_ROWS) {
        const count = Math.min(TILE_ROWS, run.rows - done);
        const from = run.from + done;
        const turned = offsets && this.#turned(cache, offsets, turns, at, { from, count, to: EPOCH });
        if (turned) this.#append(gpu, turned.rows, places, kind);
        const item: AttendItem = {
          ...{ ...place, segments, visible: slot + 1 + done, position: cache.position + from },
          ...{ q: from * width, out: places.out.at / 4 + from * width, gaps: turned?.gaps },
        };
        this.#attend(gpu, layer, [item], count, mass, kind);
      }
    }
  }

  /** One token of each of several conversations: row r is that of caches[r]. Splits follow from a conversation alone, so that its bits do, too. */
  runTogether(caches: readonly KvCache[], layer: number, places: AttentionPlaces): void {
    const { records, angles } = this.#o;
    const width = this.#width;
    const runs = caches.map((cache) => cache.runs(layer, 1)[0]!);
    // Whatever a conversation takes over or grows by may move the others' blocks: places are asked for when all stand.
    const slots = caches.map((cache, r) => cache.begin(layer, runs[r]!));
    const gaps = caches.map((cache) => {
      const offsets = cache.offsets(layer);
      return { offsets, turns: turnsOf(offsets) };
    });
    const at = angles.turns(new Set(gaps.flatMap(({ turns }) => [...turns])));
    this.#roomForQueries(gaps.reduce((sum, { turns }) => sum + turns.size, 0));
    const gpu = records.memory.gpu;
    let to = EPOCH;
    /** Those that one dispatch takes: alike in their tiers and in what their mass counts. */
    const alike = new Map<
      string,
      { kind: AttentionKind; mass: number; items: AttendItem[]; rows: AppendRow[] }
    >();
    for (const [r, cache] of caches.entries()) {
      const { ptr: exact, capacity, bits: exactBits } = cache.exactRef(layer);
      const slot = slots[r]!;
      const { offsets, turns } = gaps[r]!;
      const turned = offsets && this.#turned(cache, offsets, turns, at, { from: r, count: 1, to });
      to += turns.size;
      const [kind, mass] = [kindOf(cache), signedMass(cache.massOf(runs[r]!))];
      const key = `${kind} ${mass}`;
      const group = alike.get(key) ?? { kind, mass, items: [], rows: [] };
      alike.set(key, group);
      group.rows.push({ exact, capacity, exactBits, slot, angle: r, row: r }, ...(turned?.rows ?? []));
      group.items.push({
        ...{ q: r * width, out: places.out.at / 4 + r * width, gaps: turned?.gaps },
        ...{ exact, capacity, exactBits, visible: slot + 1, position: cache.position },
        segments: cache.segmentPtrs(layer),
      });
    }
    for (const { kind, mass, items, rows } of alike.values()) {
      this.#append(gpu, rows, places, kind);
      const segments = this.#segments(kind);
      for (let from = 0; from < items.length; ) {
        let end = from;
        for (let splits = 0; end < items.length; end++) {
          splits += splitsOf(items[end]!, 1, segments);
          if (end > from && splits > MOST_SPLITS) break;
        }
        this.#attend(gpu, layer, items.slice(from, end), 1, mass, kind);
        from = end;
      }
    }
  }

  /**
   * The queries of `count` rows from `from` on once for each of the turns that a conversation's gaps ask for, in rows of `queries` from `to` on.
   * @param at rows of the angles
   */
  #turned(
    cache: KvCache,
    offsets: GapOffsets,
    turns: ReadonlySet<number>,
    at: ReadonlyMap<number, number>,
    { from, count, to }: { readonly from: number; readonly count: number; readonly to: number },
  ): { rows: AppendRow[]; gaps: NonNullable<AttendItem['gaps']> } {
    const rows: AppendRow[] = [];
    const places = new Map([[0, from * this.#width]]);
    for (const tokens of turns) {
      const first = to + rows.length;
      places.set(tokens, first * this.#width);
      for (let r = 0; r < count; r++)
        rows.push({
          ...{ exact: 0, capacity: 0, exactBits: 16, slot: 0, angle: from + r, row: from + r },
          ...{ to: first + r, turn: at.get(tokens)! },
        });
    }
    return {
      rows,
      gaps: {
        segments: offsets.segments.map((tokens) => places.get(tokens)!),
        ...{ sinks: cache.config.sinks, sinkQueries: places.get(offsets.sinks)! },
      },
    };
  }

  #append(
    gpu: GPUBuffer,
    rows: readonly AppendRow[],
    { q, k, v }: AttentionPlaces,
    kind: AttentionKind,
  ): void {
    const { stream, cacheKernels } = this.#o;
    const group = this.#appendGroup(gpu, q, k, v);
    for (let from = 0; from < rows.length; from += MAX_APPEND_ROWS) {
      const piece = appendTable(rows.slice(from, from + MAX_APPEND_ROWS));
      stream.reserve(piece.byteLength + TABLE_ALIGNMENT);
      const table = stream.table(piece);
      const count = Math.min(MAX_APPEND_ROWS, rows.length - from);
      cacheKernels.dispatchAppend(stream.pass('append'), group, table, count, kind === 'plain');
    }
  }

  /** Of a split. */
  #segments(kind: AttentionKind): number {
    return this.#o.attend(kind).segments ?? SEGMENTS_PER_SPLIT;
  }
  #attend(
    gpu: GPUBuffer,
    layer: number,
    items: readonly AttendItem[],
    rows: number,
    mass: number,
    kind: AttentionKind,
  ): void {
    const { stream, config } = this.#o;
    const attention = this.#o.attend(kind);
    const plan = planAttend(items, rows, this.#segments(kind));
    const { blocks, ...scratch } = attention.scratchBytes(plan, mass !== 0);
    this.#grow(scratch);
    const tables = [planParams(plan, config.attentionScale, mass), plan.items, plan.splits, plan.segments];
    stream.reserve(tables.reduce((sum, { byteLength }) => sum + byteLength + TABLE_ALIGNMENT, 0));
    const [params, itemsAt, splits, segments] = tables.map((data) => stream.table(data)) as [
      number,
      number,
      number,
      number,
    ];
    const at = { params, items: itemsAt, splits, segments };
    const table = this.#describedFor(layer, blocks);
    const of = items.map(({ segments }, i) => ({ segments, firstSplit: firstSplitOf(plan, i) }));
    const known =
      of.length === table.of.length &&
      of.every(
        ({ segments, firstSplit }, i) =>
          segments === table.of[i]!.segments && firstSplit === table.of[i]!.firstSplit,
      );
    table.of = of;
    const groups = this.#attendGroups(gpu, kind, layer, table.blocks);
    attention.dispatch((label) => stream.pass(label), groups, at, plan, mass !== 0, known);
  }
  /** A layer's table, with room for so many bytes. */
  #describedFor(layer: number, bytes: number): Described {
    const held = this.#described.get(layer);
    if (held && held.blocks.size >= bytes) return held;
    if (held) this.#o.stream.retire(held.blocks);
    const made = { blocks: this.#buffer('blocks', Math.ceil((bytes * 1.5) / 256) * 256), of: [] };
    this.#described.set(layer, made);
    for (const key of [...(this.#groups?.attend.keys() ?? [])])
      if (key.endsWith(` ${layer}`)) this.#groups!.attend.delete(key);
    return made;
  }

  /** The groups that bind this cache buffer; a new one has taken its place after a growth or a compaction. */
  #bound(cache: GPUBuffer) {
    const { cosines } = this.#o.angles.buffers;
    if (this.#groups?.cache !== cache || this.#groups.cosines !== cosines)
      this.#groups = { cache, cosines, attend: new Map(), append: new Map() };
    return this.#groups;
  }
  #attendGroups(cache: GPUBuffer, kind: AttentionKind, layer: number, blocks: GPUBuffer): AttendGroups {
    const { attend } = this.#bound(cache);
    // Kernels that want no table share their groups.
    const key = this.#o.attend(kind).describes ? `${kind} ${layer}` : kind;
    const found = attend.get(key);
    if (found) return found;
    const { stream, workspace: out } = this.#o;
    const made = this.#o.attend(kind).bind({
      ...{ tables: stream.tables, cache, queries: this.#queries, out, ...this.#scratch, blocks },
    });
    attend.set(key, made);
    return made;
  }
  #appendGroup(cache: GPUBuffer, q: Place, k: Place, v: Place): GPUBindGroup {
    const { append } = this.#bound(cache);
    const key = `${q.at} ${k.at} ${v.at}`;
    const found = append.get(key);
    if (found) return found;
    const { cacheKernels, stream, workspace, angles } = this.#o;
    const part = ({ at, width }: Place): GPUBufferBinding => ({
      ...{ buffer: workspace, offset: at, size: width * EPOCH * 4 },
    });
    const made = cacheKernels.bindAppend({
      ...{ tables: stream.tables, ...angles.buffers, q: part(q), k: part(k), v: part(v) },
      ...{ queries: this.#queries, cache },
    });
    append.set(key, made);
    return made;
  }

  /** Room for so many rows behind those of the chunk. What lies there is not kept. */
  #roomForQueries(rows: number): void {
    const bytes = (EPOCH + rows) * this.#width * 4;
    if (this.#queries.size >= bytes) return;
    this.#o.stream.retire(this.#queries);
    this.#queries = this.#buffer('queries', Math.ceil((bytes * 1.5) / 256) * 256);
    this.#groups = undefined;
  }
  #grow(needed: Scratch<number>): void {
    let grown = false;
    const atLeast = (name: keyof Scratch<number>): GPUBuffer => {
      const held = this.#scratch[name];
      if (held.size >= needed[name]) return held;
      grown = true;
      this.#o.stream.retire(held);
      return this.#buffer(name, Math.ceil((needed[name] * 1.5) / 256) * 256);
    };
    this.#scratch = { partials: atLeast('partials'), scores: atLeast('scores'), softmax: atLeast('softmax') };
    if (grown) this.#groups = undefined;
  }
  #buffer(label: string, size: number): GPUBuffer {
    return this.#o.stream.device.createBuffer({ label, size, usage: STORAGE });
  }
}
