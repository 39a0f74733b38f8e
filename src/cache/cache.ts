import { type Arena, align, type BlockId, type Ptr } from '../core/arena.ts';
import { EPOCH, fp16BytesPerToken, type ModelConfig } from '../core/config.ts';
import { InvalidInputError } from '../core/errors.ts';
import type { ExactRef, Kernels } from '../kernels/kernels.ts';
import {
  type ExactLayout,
  exactBytes,
  exactKAt,
  exactMassAt,
  exactVAt,
  groupBytes,
  LAYOUT_VERSION,
  massBytes,
  SEGMENT_TOKENS,
  TIERS,
} from '../kernels/layout.ts';
import { planBytes } from './allocate.ts';
import type { CacheHeader, PlanJournalEntry } from './persist.ts';
import { DEFAULT_RATIO } from './policies/adkvc.ts';
import {
  type CacheConfig,
  type CacheReport,
  type CacheView,
  FRESH,
  type Plan,
  type Policy,
} from './policy.ts';
import type { HeadProfile } from './profile.ts';
import { createPolicy } from './registry.ts';
import {
  cellIndex,
  countTiers,
  layOut,
  type SegmentBlock,
  SegmentReader,
  type SegmentSpan,
  writeHeader,
} from './segments.ts';

/** What all caches of an isolate share: kernels, the model's shape and a little fixed scratch memory. */
export interface CacheContext {
  readonly kernels: Kernels;
  readonly model: ModelConfig;
  /** The manifest's fingerprint. */
  readonly fingerprint: string;
  /** Static scratch: at least kvHeads * 128 bytes of tier ids. */
  readonly tierScratch: Ptr;
  /** Of the model; undefined if it was never calibrated. */
  readonly profile?: HeadProfile | undefined;
}
export const tierScratchBytes = (model: ModelConfig): number => align(model.kvHeads * SEGMENT_TOKENS);

/** The budget never asks for less than what this many tokens would get: short conversations are hardly compressed. */
export const MIN_BUDGET_TOKENS = 1024;
/** The exact part grows by this many slots within an epoch. */
const EXACT_STEP = 16;

/**
 * The compressed cache of one conversation. Its state after `position` tokens is a pure function of these tokens and the configuration:
 * segments are made, planned and decayed only at multiples of 128 positions (`endEpoch`), which no appended chunk crosses.
 *
 * Memory: per layer one exact block (sinks, window, current epoch) and one block a segment, all in the arena.
 */
export class KvCache {
  readonly config: CacheConfig;
  readonly policy: Policy;
  readonly context: CacheContext;
  position = 0;
  /** Positions [sinks, compressedEnd) lie in segments. */
  compressedEnd: number;
  readonly spans: SegmentSpan[] = [];
  /** [layer][segment] */
  readonly blocks: SegmentBlock[][];
  readonly exact: BlockId[] = [];
  exactCapacity = 0;
  peakBytes = 0;
  recodes = 0;
  journal: PlanJournalEntry[] = [];
  #bytes = 0;
  /** Only epoch ends raise the stored peak: there the bytes held do not depend on how tokens were chunked. */
  #ending = false;
  #disposed = false;

  constructor(context: CacheContext, config: CacheConfig) {
    this.context = context;
    this.config = config;
    this.policy = createPolicy(config, context.model, context.profile);
    if (config.exactBits === 32 && config.policy !== 'full' && config.policy !== 'window')
      throw new InvalidInputError('a float32 exact part serves the policies full and window only', 'policy');
    this.compressedEnd = config.sinks;
    this.blocks = Array.from({ length: context.model.layers }, () => []);
  }

  get layers(): number {
    return this.context.model.layers;
  }
  get #arena(): Arena {
    return this.context.kernels.arena;
  }
  get tracksMass(): boolean {
    return this.policy.needs.mass !== undefined;
  }
  /** Bytes of kernel memory held now: every block with its padding. */
  get bytes(): number {
    return this.#bytes;
  }
  /** Slots of the exact part in use. */
  get exactCount(): number {
    return this.position <= this.config.sinks
      ? this.position
      : this.config.sinks + this.position - this.compressedEnd;
  }

  /** Bytes the cache may hold after the plan at `position`; Infinity for policies without a budget. */
  budgetAt(position: number): number {
    if (this.config.bytes !== undefined) return this.config.bytes;
    if (this.config.policy === 'full') return Number.POSITIVE_INFINITY;
    const ratio = this.config.ratio ?? DEFAULT_RATIO;
    return (Math.max(position, MIN_BUDGET_TOKENS) * fp16BytesPerToken(this.context.model)) / ratio;
  }

  /** Tokens that may be appended before the epoch must end. */
  get room(): number {
    return EPOCH - (this.position % EPOCH);
  }

  /** Makes room for `rows` more exact tokens in every layer. @throws MemoryLimitError before anything is changed. */
  reserve(rows: number): void {
    this.#setCapacity(this.exactCount + rows);
  }

  /**
   * How the next `rows` tokens are attended: runs of rows, with whether their attention counts as history. One run unless the policy
   * counts only the last queries of an epoch.
   */
  attendRuns(rows: number): { from: number; rows: number; mass: boolean }[] {
    const mass = this.policy.needs.mass;
    if (mass?.lastQueries === undefined) return [{ from: 0, rows, mass: mass !== undefined }];
    const first = Math.min(rows, Math.max(0, this.room - mass.lastQueries));
    return [
      { from: 0, rows: first, mass: false },
      { from: first, rows: rows - first, mass: true },
    ].filter((run) => run.rows > 0);
  }

  exactRef(layer: number): ExactRef {
    return { ptr: this.#arena.ptr(this.exact[layer]!), ...this.#exactLayout(this.exactCapacity) };
  }
  /** Addresses of the layer's segment blocks, in order. */
  segmentPtrs(layer: number): Ptr[] {
    return this.blocks[layer]!.map((b) => this.#arena.ptr(b.id));
  }

  /** All layers hold `rows` more tokens. Ends the epoch when it is full. */
  advance(rows: number): void {
    if (rows > this.room) throw new Error(`a chunk of ${rows} tokens crosses an epoch at ${this.position}`);
    this.position += rows;
    if (this.position % EPOCH === 0) this.endEpoch();
  }

  /**
   * Moves what left the window into a new segment, plans, applies, decays. Called by `advance` at epochs; at another position only to
   * report what a finished text would take (`score`): the cache is not continued afterwards.
   */
  endEpoch(): void {
    this.#ending = true;
    this.peakBytes = Math.max(this.peakBytes, this.#bytes);
    const { window, sinks } = this.config;
    const end = Math.max(this.position - window, this.compressedEnd);
    const fresh =
      end > this.compressedEnd ? { start: this.compressedEnd, tokens: end - this.compressedEnd } : null;
    const kept = Math.min(this.position, sinks) + Math.max(0, this.position - end);
    if (fresh || this.spans.length > 0) {
      const view = this.#view(fresh);
      const exactAfter = this.layers * align(exactBytes(this.#exactLayout(kept)));
      const plan = this.policy.plan(view, { recordBytes: this.budgetAt(this.position) - exactAfter });
      this.#apply(view, plan, fresh);
    }
    if (fresh) {
      const kernels = this.context.kernels;
      for (let layer = 0; layer < this.layers; layer++) {
        const exact = this.exactRef(layer);
        if (kept > sinks) kernels.moveExact(exact, sinks + fresh.tokens, sinks, kept - sinks);
      }
      this.compressedEnd = end;
    }
    this.#setCapacity(kept, true);
    this.#decay();
    this.#ending = false;
  }

  report(): CacheReport {
    const { model } = this.context;
    const tiers: Record<string, number> = {};
    const tierBytes: Record<string, number> = {};
    const count = (name: string, n: number, bytes: number): void => {
      tiers[name] = (tiers[name] ?? 0) + n;
      tierBytes[name] = (tierBytes[name] ?? 0) + bytes;
    };
    for (const blocks of this.blocks)
      for (const [s, block] of blocks.entries()) {
        const reader = this.reader(block);
        let seen = 0;
        for (let h = 0; h < model.kvHeads; h++) {
          const counts = reader.counts(h);
          for (const tier of TIERS) {
            const n = counts[tier.id]!;
            if (n > 0) count(tier.name, n, groupBytes(tier.id, n, model.headDim));
            seen += n;
          }
        }
        const dropped = this.spans[s]!.tokens * model.kvHeads - seen;
        if (dropped > 0) count('drop', dropped, 0);
      }
    if (this.exactCount > 0)
      count(
        'exact',
        this.exactCount * model.kvHeads * this.layers,
        this.exact.reduce((sum, id) => sum + this.#arena.size(id), 0),
      );
    // Headers, maps, means, mass.
    tierBytes.overhead = this.#bytes - Object.values(tierBytes).reduce((sum, bytes) => sum + bytes, 0);
    const fp16Bytes = this.position * fp16BytesPerToken(model);
    return {
      policy: this.config.policy,
      tokens: this.position,
      bytes: this.#bytes,
      fp16Bytes,
      ratio: this.#bytes === 0 ? 0 : fp16Bytes / this.#bytes,
      peakBytes: Math.max(this.peakBytes, this.#bytes),
      ...(this.policy.profile === undefined ? {} : { profile: this.policy.profile }),
      meanRecodes:
        this.recodes / Math.max(1, (this.compressedEnd - this.config.sinks) * model.kvHeads * this.layers),
      tiers,
      tierBytes,
    };
  }

  reader(block: SegmentBlock): SegmentReader {
    return new SegmentReader(this.#arena.bytes(block.id), this.context.model.kvHeads);
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    for (const id of this.exact) this.#arena.free(id);
    for (const blocks of this.blocks) for (const b of blocks) this.#arena.free(b.id);
    this.#bytes = 0;
  }

  // ---- what persistence does (restore.ts) ---------------------------------------------------------------------

  get header(): CacheHeader {
    return {
      layoutVersion: LAYOUT_VERSION,
      numerics: this.context.kernels.numerics,
      model: this.context.fingerprint,
      config: this.config,
      ...(this.policy.profile === undefined ? {} : { profile: this.policy.profile }),
      position: this.position,
      segments: this.spans.length,
      peakBytes: this.peakBytes,
      recodes: this.recodes,
    };
  }
  /** u32 slots, u32 0, u32 0, u32 0; per kvHead keys then values of the used slots, then their mass; then the mass of each segment's records. */
  hot(layer: number): Uint8Array {
    const parts = this.hotParts(layer);
    const out = new Uint8Array(16 + parts.reduce((sum, p) => sum + p.length, 0));
    new DataView(out.buffer).setUint32(0, this.exactCount, true);
    let at = 16;
    for (const part of parts) {
      out.set(part, at);
      at += part.length;
    }
    return out;
  }
  /** Views of the memory that `hot` copies, in its order. */
  hotParts(layer: number): Uint8Array[] {
    const { kvHeads, headDim } = this.context.model;
    const parts: Uint8Array[] = [];
    if (this.exact.length > 0) {
      const layout = this.#exactLayout(this.exactCapacity);
      const bytes = this.#arena.bytes(this.exact[layer]!);
      const used = (this.exactCount * headDim * layout.bits) / 8;
      for (let h = 0; h < kvHeads; h++)
        for (const at of [exactKAt(layout, h), exactVAt(layout, h)])
          parts.push(bytes.subarray(at, at + used));
      if (layout.mass)
        for (let h = 0; h < kvHeads; h++) {
          const at = exactMassAt(layout, h);
          parts.push(bytes.subarray(at, at + this.exactCount * 4));
        }
    }
    if (this.tracksMass)
      for (const block of this.blocks[layer]!) {
        const bytes = this.#arena.bytes(block.id);
        parts.push(bytes.subarray(this.reader(block).storedBytes));
      }
    return parts;
  }
  block(layer: number, segment: number): Uint8Array {
    const block = this.blocks[layer]![segment]!;
    return this.#arena.bytes(block.id).slice(0, this.reader(block).storedBytes);
  }
  blockBytes(layer: number, segment: number): number {
    return this.reader(this.blocks[layer]![segment]!).storedBytes;
  }
  blockVersion(layer: number, segment: number): number {
    return this.blocks[layer]![segment]!.version;
  }
  clearJournal(): void {
    this.journal = [];
  }
  /** Allocates the exact part for a state whose position and spans were set from outside. */
  restoreExact(): void {
    this.#setCapacity(this.exactCount);
  }
  /** Adopts a block that restore made. */
  adopt(layer: number, id: BlockId, version: number): void {
    this.blocks[layer]!.push({ id, version });
    this.#count(this.#arena.size(id));
  }

  /** Rewrites one segment of one layer under new tiers ([kvHeads][tokens], at `from`). Mass moves along if it is tracked. */
  recode(layer: number, segment: number, tiers: Uint8Array, from: number, version: number): void {
    const { kernels, model } = this.context;
    const { kvHeads, headDim } = model;
    const span = this.spans[segment]!;
    const old = this.blocks[layer]![segment]!;
    const counts = Array.from({ length: kvHeads }, (_, h) =>
      countTiers(tiers, from + h * span.tokens, span.tokens),
    );
    const place = layOut(span, counts, headDim, this.tracksMass);
    const id = this.#arena.alloc(place.totalBytes, 'a cache segment');
    this.#count(this.#arena.size(id));
    writeHeader(this.#arena.bytes(id), span, place);
    const scratch = this.#setTiers(tiers, from, kvHeads * span.tokens);
    const reader = this.reader(old);
    for (let h = 0; h < kvHeads; h++) {
      const source = this.#arena.ptr(old.id);
      const target = this.#arena.ptr(id);
      kernels.recodeRecord(
        source + reader.recordAt(h),
        span.tokens,
        headDim,
        scratch + h * span.tokens,
        target + place.recordAt[h]!,
        this.tracksMass ? source + reader.massAt(h) : 0,
        this.tracksMass ? target + place.massAt[h]! : 0,
      );
    }
    this.#release(old.id);
    this.blocks[layer]![segment] = { id, version };
  }

  // ---- private ------------------------------------------------------------------------------------------------

  #exactLayout(capacity: number): ExactLayout {
    const { kvHeads, headDim } = this.context.model;
    return { kvHeads, headDim, capacity, bits: this.config.exactBits, mass: this.tracksMass };
  }

  #count(bytes: number): void {
    this.#bytes += bytes;
    if (this.#ending) this.peakBytes = Math.max(this.peakBytes, this.#bytes);
  }
  #release(id: BlockId): void {
    this.#bytes -= this.#arena.size(id);
    this.#arena.free(id);
  }

  /** Gives every layer's exact block at least `slots` slots (exactly so when it shrinks), keeping what is in use. */
  #setCapacity(slots: number, shrink = false): void {
    const capacity = shrink ? slots : Math.ceil(slots / EXACT_STEP) * EXACT_STEP;
    if (shrink ? capacity === this.exactCapacity : capacity <= this.exactCapacity) return;
    const from = this.#exactLayout(this.exactCapacity);
    const to = this.#exactLayout(capacity);
    const used = Math.min(this.exactCount, this.exactCapacity, capacity);
    const half = (used * to.headDim * to.bits) / 8;
    for (let layer = 0; layer < this.layers; layer++) {
      const id = this.#arena.alloc(exactBytes(to), 'the exact part of a cache');
      this.#count(this.#arena.size(id));
      const old = this.exact[layer];
      if (old !== undefined) {
        const source = this.#arena.bytes(old);
        const target = this.#arena.bytes(id);
        for (let h = 0; h < to.kvHeads; h++) {
          target.set(source.subarray(exactKAt(from, h), exactKAt(from, h) + half), exactKAt(to, h));
          target.set(source.subarray(exactVAt(from, h), exactVAt(from, h) + half), exactVAt(to, h));
          if (to.mass)
            target.set(
              source.subarray(exactMassAt(from, h), exactMassAt(from, h) + used * 4),
              exactMassAt(to, h),
            );
        }
        this.#release(old);
      }
      this.exact[layer] = id;
    }
    this.exactCapacity = capacity;
  }

  #view(fresh: SegmentSpan | null): CacheView {
    const { layers, kvHeads, headDim } = this.context.model;
    const heads = layers * kvHeads;
    const segments = this.spans.map((span, index) => {
      const tiers = new Uint8Array(heads * span.tokens);
      const mass = this.tracksMass ? new Uint32Array(tiers.length) : undefined;
      const cells = new Int32Array(span.tokens);
      for (let layer = 0; layer < layers; layer++) {
        const block = this.blocks[layer]![index]!;
        const reader = this.reader(block);
        const address = this.#arena.ptr(block.id);
        for (let h = 0; h < kvHeads; h++) {
          const at = (layer * kvHeads + h) * span.tokens;
          reader.tiers(h, tiers, at);
          if (!mass) continue;
          cellIndex(tiers, at, span.tokens, cells);
          const held = new Uint32Array(
            this.#arena.memory.buffer,
            address + reader.massAt(h),
            massBytes(reader.cells(h)) / 4,
          );
          for (let i = 0; i < span.tokens; i++) if (cells[i]! >= 0) mass[at + i] = held[cells[i]!]!;
        }
      }
      return { index, ...span, tiers, mass };
    });
    if (fresh) {
      const tiers = new Uint8Array(heads * fresh.tokens).fill(FRESH);
      const mass = this.tracksMass ? new Uint32Array(tiers.length) : undefined;
      if (mass) {
        const layout = this.#exactLayout(this.exactCapacity);
        for (let layer = 0; layer < layers; layer++)
          for (let h = 0; h < kvHeads; h++) {
            const at = this.#arena.ptr(this.exact[layer]!) + exactMassAt(layout, h) + this.config.sinks * 4;
            mass.set(
              new Uint32Array(this.#arena.memory.buffer, at, fresh.tokens),
              (layer * kvHeads + h) * fresh.tokens,
            );
          }
      }
      segments.push({ index: segments.length, ...fresh, tiers, mass });
    }
    return { layers, kvHeads, headDim, position: this.position, segments, seed: this.config.seed };
  }

  /** Rewrites changed segments and encodes the fresh one, layer by layer; journals what changed. */
  #apply(view: CacheView, plan: Plan, fresh: SegmentSpan | null): void {
    const { model } = this.context;
    const changes: number[] = [];
    const perLayer = (tokens: number): number => model.kvHeads * tokens;
    if (fresh) this.spans.push(fresh);
    for (let layer = 0; layer < this.layers; layer++) {
      view.segments.forEach((segment, s) => {
        const from = layer * perLayer(segment.tokens);
        const tiers = plan.tiers[s]!;
        if (fresh && s === view.segments.length - 1) {
          this.#encode(layer, fresh, tiers, from);
          return;
        }
        let moved = 0;
        for (let i = from; i < from + perLayer(segment.tokens); i++) {
          if (tiers[i]! < segment.tiers[i]!) throw new Error(`policy ${this.policy.name} promoted a token`);
          if (tiers[i] !== segment.tiers[i]) moved++;
        }
        if (moved === 0) return;
        this.recode(layer, s, tiers, from, this.position);
        this.recodes += moved;
        changes.push(layer & 255, layer >> 8, s & 255, s >> 8);
        for (let i = from; i < from + perLayer(segment.tokens); i++) changes.push(tiers[i]!);
      });
    }
    if (changes.length > 0) this.journal.push({ position: this.position, bytes: Uint8Array.from(changes) });
  }

  #encode(layer: number, span: SegmentSpan, tiers: Uint8Array, from: number): void {
    const { kernels, model } = this.context;
    const counts = Array.from({ length: model.kvHeads }, (_, h) =>
      countTiers(tiers, from + h * span.tokens, span.tokens),
    );
    const place = layOut(span, counts, model.headDim, this.tracksMass);
    const id = this.#arena.alloc(place.totalBytes, 'a cache segment');
    this.#count(this.#arena.size(id));
    writeHeader(this.#arena.bytes(id), span, place);
    const scratch = this.#setTiers(tiers, from, model.kvHeads * span.tokens);
    const target = this.#arena.ptr(id);
    const exact = this.exactRef(layer);
    for (let h = 0; h < model.kvHeads; h++)
      kernels.encodeRecord(
        exact,
        h,
        this.config.sinks,
        span.tokens,
        scratch + h * span.tokens,
        target + place.recordAt[h]!,
        this.tracksMass ? target + place.massAt[h]! : 0,
      );
    this.blocks[layer]!.push({ id, version: this.position });
  }

  #setTiers(tiers: Uint8Array, from: number, count: number): Ptr {
    const ptr = this.context.tierScratch;
    new Uint8Array(this.#arena.memory.buffer, ptr, count).set(tiers.subarray(from, from + count));
    return ptr;
  }

  #decay(): void {
    const decay = this.policy.needs.mass?.decay;
    if (decay === undefined || decay === 1) return;
    const numerator = Math.round(decay * 65536);
    const { kernels, model } = this.context;
    const layout = this.#exactLayout(this.exactCapacity);
    for (let layer = 0; layer < this.layers; layer++) {
      if (this.exact.length > 0) {
        const at = this.#arena.ptr(this.exact[layer]!) + exactMassAt(layout, 0);
        kernels.decayMass(at, (model.kvHeads * massBytes(layout.capacity)) / 4, numerator);
      }
      for (const block of this.blocks[layer]!) {
        const stored = this.reader(block).storedBytes;
        const bytes = this.#arena.size(block.id) - stored;
        kernels.decayMass(this.#arena.ptr(block.id) + stored, bytes / 4, numerator);
      }
    }
  }
}

/** Upper bound of the kernel bytes that a cache holds at any moment up to `tokens`, transient copies included; what a scheduler admits by. */
export function worstCaseBytes(
  context: Pick<CacheContext, 'model'>,
  config: CacheConfig,
  tokens: number,
): number {
  const { model } = context;
  const policy = createPolicy(config, model);
  const mass = policy.needs.mass !== undefined;
  const capacity = Math.min(tokens, config.sinks + config.window + EPOCH) + EXACT_STEP;
  const layout: ExactLayout = {
    kvHeads: model.kvHeads,
    headDim: model.headDim,
    capacity,
    bits: config.exactBits,
    mass,
  };
  // Growing the exact part holds one layer twice; applying a plan holds the new segment beside the exact tokens it came from.
  const exact = (model.layers + 1) * align(exactBytes(layout));
  const deep = Math.max(0, tokens - config.sinks - config.window);
  const segments = Math.ceil(deep / SEGMENT_TOKENS) + 1;
  const finest = config.exactBits === 32 ? 0 : 1;
  const spans = Array.from({ length: segments }, (_, index) => {
    const n = Math.min(SEGMENT_TOKENS, Math.max(deep - index * SEGMENT_TOKENS, 0));
    return { index, start: 0, tokens: n, tiers: new Uint8Array(0), mass: undefined };
  });
  const unbudgeted = planBytes(
    {
      layers: model.layers,
      kvHeads: model.kvHeads,
      headDim: model.headDim,
      position: tokens,
      segments: spans,
      seed: 0,
    },
    { tiers: spans.map((s) => new Uint8Array(model.layers * model.kvHeads * s.tokens).fill(finest)) },
    mass,
  );
  const segmentTransient = 2 * model.kvHeads * SEGMENT_TOKENS * (model.headDim * 4 + 16);
  if (config.policy === 'full' || policy.bounded === false) return exact + unbudgeted + segmentTransient;
  const budget =
    config.bytes ??
    (Math.max(tokens, MIN_BUDGET_TOKENS) * fp16BytesPerToken(model)) / (config.ratio ?? DEFAULT_RATIO);
  // uniform's budget is reached deep in the cache only: its early segments may stand above it.
  const slack = config.policy === 'uniform' ? unbudgeted / 4 : 0;
  return Math.ceil(Math.min(exact + unbudgeted, exact + budget + slack) + segmentTransient);
}
