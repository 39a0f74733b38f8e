import type { KvCache } from '../../cache/cache.ts';
import type { ModelConfig } from '../../core/config.ts';
import { type AttendGroups, planParams, scratchBytes, type WebGpuAttention } from '../../kernels/webgpu.ts';
import { type AppendRow, appendTable, type WebGpuCacheKernels } from '../../kernels/webgpu-cache.ts';
import { type AttendItem, type AttendPlan, planAttend, splitsOf } from '../../kernels/webgpu-plan.ts';
import type { WebGpuRecords } from '../../kernels/webgpu-records.ts';
import { type CommandStream, TABLE_ALIGNMENT, TABLE_WINDOW } from '../../kernels/webgpu-stream.ts';
import { STORAGE } from '../../kernels/webgpu-usage.ts';

/** Queries of a chunk that are attended in one dispatch: bounds the scores that the mass is made of. */
const TILE_ROWS = 32;
/** One conversation alone should spread over the whole device. */
const SEGMENTS_PER_SPLIT = 1;
/** Tables of one dispatch of one conversation: generous for any trained length. */
const TABLES_BYTES = 256 << 10;
/** Splits of one dispatch of several: their table is seen through a window. */
const MOST_SPLITS = TABLE_WINDOW / 16;

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
  readonly attend: WebGpuAttention;
  readonly config: ModelConfig;
  readonly workspace: GPUBuffer;
  readonly cosines: GPUBuffer;
  readonly sines: GPUBuffer;
}

/** As the shaders take it: a maximum is negative. */
const signedMass = ({ mass, massMode }: ReturnType<KvCache['massOf']>): number =>
  massMode === 'max' ? -mass : mass;

/** Attention of one layer for a chunk: rotates, appends, attends over the packed cache, adds up the mass. */
export class GpuAttention {
  readonly #o: GpuAttentionOptions;
  readonly #queries: GPUBuffer;
  #scratch: { partials: GPUBuffer; scores: GPUBuffer; softmax: GPUBuffer };
  #groups: { cache: GPUBuffer; attend: AttendGroups; append: Map<string, GPUBindGroup> } | undefined;

  constructor(options: GpuAttentionOptions) {
    this.#o = options;
    const { heads, headDim } = options.config;
    this.#queries = this.#buffer('queries', 128 * heads * headDim * 4);
    this.#scratch = {
      partials: this.#buffer('partials', 16),
      scores: this.#buffer('scores', 16),
      softmax: this.#buffer('softmax', 16),
    };
  }

  /** The next `rows` tokens of one conversation. */
  run(cache: KvCache, layer: number, rows: number, { q, k, v, out }: AttentionPlaces): void {
    const { stream, records, cacheKernels, config } = this.#o;
    const { heads, headDim } = config;
    for (const run of cache.runs(layer, rows)) {
      const slot = cache.begin(layer, run);
      const exact = cache.exactRef(layer);
      const place = { exact: exact.ptr, capacity: exact.capacity, exactBits: exact.bits };
      const gpu = records.memory.gpu;
      stream.reserve(TABLES_BYTES);
      const table = stream.table(
        appendTable(
          Array.from({ length: run.rows }, (_, r) => ({
            ...place,
            slot: slot + r,
            angle: run.from + r,
            row: run.from + r,
          })),
        ),
      );
      const group = this.#appendGroup(gpu, q, k, v);
      cacheKernels.dispatchAppend(stream.pass('append'), group, table, run.rows);
      const segments = cache.segmentPtrs(layer);
      const mass = signedMass(cache.massOf(run));
      for (let done = 0; done < run.rows; done += TILE_ROWS) {
        const count = Math.min(TILE_ROWS, run.rows - done);
        const from = run.from + done;
        const plan = planAttend(
          [
            {
              ...{ ...place, segments, visible: slot + 1 + done, position: cache.position + from },
              q: from * heads * headDim,
              out: out.at / 4 + from * heads * headDim,
            },
          ],
          count,
          SEGMENTS_PER_SPLIT,
        );
        this.#attend(gpu, plan, mass);
      }
    }
  }

  /** One token of each of several conversations: row r is that of caches[r]. Splits follow from a conversation alone, so that its bits do, too. */
  runTogether(caches: readonly KvCache[], layer: number, { q, k, v, out }: AttentionPlaces): void {
    const { stream, records, cacheKernels, config } = this.#o;
    const { heads, headDim } = config;
    const runs = caches.map((cache) => cache.runs(layer, 1)[0]!);
    // Whatever a conversation takes over or grows by may move the others' blocks: places are asked for when all stand.
    const slots = caches.map((cache, r) => cache.begin(layer, runs[r]!));
    const gpu = records.memory.gpu;
    const rows: AppendRow[] = [];
    const items = new Map<number, AttendItem[]>();
    for (const [r, cache] of caches.entries()) {
      const { ptr: exact, capacity, bits: exactBits } = cache.exactRef(layer);
      const slot = slots[r]!;
      rows.push({ exact, capacity, exactBits, slot, angle: r, row: r });
      const item: AttendItem = {
        q: r * heads * headDim,
        out: out.at / 4 + r * heads * headDim,
        exact,
        capacity,
        exactBits,
        visible: slot + 1,
        position: cache.position,
        segments: cache.segmentPtrs(layer),
      };
      const mass = signedMass(cache.massOf(runs[r]!));
      const alike = items.get(mass);
      if (alike) alike.push(item);
      else items.set(mass, [item]);
    }
    stream.reserve(TABLES_BYTES);
    const table = stream.table(appendTable(rows));
    const group = this.#appendGroup(gpu, q, k, v);
    cacheKernels.dispatchAppend(stream.pass('append'), group, table, caches.length);
    for (const [mass, alike] of items)
      for (let from = 0; from < alike.length; ) {
        let to = from;
        for (let splits = 0; to < alike.length; to++) {
          splits += splitsOf(alike[to]!, 1, SEGMENTS_PER_SPLIT);
          if (to > from && splits > MOST_SPLITS) break;
        }
        this.#attend(gpu, planAttend(alike.slice(from, to), 1, SEGMENTS_PER_SPLIT), mass);
        from = to;
      }
  }

  #attend(gpu: GPUBuffer, plan: AttendPlan, mass: number): void {
    const { stream, attend, config } = this.#o;
    this.#grow(scratchBytes(plan, config, mass !== 0));
    const tables = [planParams(plan, config.attentionScale, mass), plan.items, plan.splits, plan.segments];
    stream.reserve(tables.reduce((sum, { byteLength }) => sum + byteLength + TABLE_ALIGNMENT, 0));
    const [params, items, splits, segments] = tables.map((data) => stream.table(data)) as [
      number,
      number,
      number,
      number,
    ];
    const at = { params, items, splits, segments };
    attend.dispatch((label) => stream.pass(label), this.#bound(gpu).attend, at, plan, mass !== 0);
  }

  /** The groups that bind this cache buffer; a new one has taken its place after a growth or a compaction. */
  #bound(cache: GPUBuffer) {
    if (this.#groups?.cache !== cache) {
      const { stream, attend, workspace } = this.#o;
      const groups = attend.bind({
        ...{ tables: stream.tables, cache, queries: this.#queries, out: workspace, ...this.#scratch },
      });
      this.#groups = { cache, attend: groups, append: new Map() };
    }
    return this.#groups;
  }
  #appendGroup(cache: GPUBuffer, q: Place, k: Place, v: Place): GPUBindGroup {
    const { append } = this.#bound(cache);
    const key = `${q.at} ${k.at} ${v.at}`;
    const found = append.get(key);
    if (found) return found;
    const { cacheKernels, stream, workspace, cosines, sines } = this.#o;
    const part = ({ at, width }: Place): GPUBufferBinding => ({
      ...{ buffer: workspace, offset: at, size: width * 128 * 4 },
    });
    const made = cacheKernels.bindAppend({
      ...{ tables: stream.tables, cosines, sines, q: part(q), k: part(k), v: part(v) },
      ...{ queries: this.#queries, cache },
    });
    append.set(key, made);
    return made;
  }

  #grow(needed: { partials: number; scores: number; softmax: number }): void {
    let grown = false;
    const atLeast = (name: 'partials' | 'scores' | 'softmax'): GPUBuffer => {
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
