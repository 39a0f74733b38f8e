import { type Arena, align, type BlockId, type Ptr } from '../core/arena.ts';
import { EPOCH, type ModelConfig } from '../core/config.ts';
import { InvalidInputError, MemoryLimitError } from '../core/errors.ts';
import type { ExactRef, RecordKernels } from '../kernels/kernels.ts';
import { SEGMENT_TOKENS, segmentHeaderBytes } from '../kernels/layout.ts';
import type { PlanInstances } from '../kernels/wasm-plan.ts';
import { byteBudget } from './byte-budget.ts';
import { ExactPart, stepped } from './exact-part.ts';
import { fetchMass, fetchState } from './fetched.ts';
import { Gaps, withoutSegments } from './gaps.ts';
import { epochGrowth, peakGrowth, settlesAt } from './growth.ts';
import { MessageMap, type MessageMark } from './messages.ts';
import { PackedPart } from './packed-part.ts';
import { PendingPlan } from './pending-plan.ts';
import { type CacheHeader, type HotViews, joined, type PlanJournalEntry } from './persist.ts';
import type { ByteBudget, CacheConfig, CacheReport, CacheView, Plan, Policy } from './policy.ts';
import type { HeadProfile } from './profile.ts';
import { createPolicy } from './registry.ts';
import { cacheReport } from './report.ts';
import { PLAN_POSITIONS, shownFrom } from './schedule.ts';
import type { SegmentBlock, SegmentReader, SegmentSpan } from './segments.ts';
import { snapshot } from './snapshot.ts';
import { headerOf, hotViewsOf } from './stored-parts.ts';

/** What all caches of an isolate share: kernels, the model's shape and a little fixed scratch memory. */
export interface CacheContext {
  readonly kernels: RecordKernels;
  readonly model: ModelConfig;
  /** The manifest's fingerprint. */
  readonly fingerprint: string;
  /** Static scratch: at least kvHeads * 128 bytes of tier ids. */
  readonly tierScratch: Ptr;
  /** Of the model; undefined if it was never calibrated. */
  readonly profile?: HeadProfile | undefined;
  /** Makes plans faster, to the same bits. */
  readonly plans?: PlanInstances | undefined;
  /** What messages begin with under the model's chat template: asked for by caches with quotas. */
  readonly marks?: () => readonly MessageMark[];
}
export const tierScratchBytes = (model: ModelConfig): number => align(model.kvHeads * SEGMENT_TOKENS);

/**
 * The compressed cache of one conversation. Its state after `position` tokens is a pure function of these tokens and the configuration: plans
 * are made from the state at multiples of 128 positions (which no appended chunk crosses) and take effect at the positions that schedule.ts
 * fixes.
 *
 * Memory: per layer one exact block (sinks, window, current epoch) and one block a segment, all in the arena.
 */
export class KvCache {
  readonly config: CacheConfig;
  readonly policy: Policy;
  readonly context: CacheContext;
  position = 0;
  /** The epochs' segments; the newest may not have reached every layer yet. */
  readonly spans: SegmentSpan[] = [];
  readonly packed: PackedPart;
  readonly exact: ExactPart;
  readonly gaps: Gaps;
  /** Where messages begin; only under quotas. */
  readonly messages: MessageMap | undefined;
  /** Upper bound of the bytes held at any moment so far, a function of the position: see #endEpoch. */
  peakBytes = 0;
  recodes = 0;
  journal: PlanJournalEntry[] = [];
  #pending: PendingPlan | undefined;
  #disposed = false;
  readonly #fetched = new Set<BlockId>();

  constructor(context: CacheContext, config: CacheConfig) {
    this.context = context;
    this.config = config;
    this.policy = createPolicy(config, context.model, context.profile, context.plans);
    if (config.exactBits === 32 && config.policy !== 'full' && config.policy !== 'window')
      throw new InvalidInputError('a float32 exact part serves the policies full and window only', 'policy');
    if (config.quotas !== undefined) {
      const marks = context.marks?.() ?? [];
      if (marks.length === 0) throw new InvalidInputError('quotas need a chat template', 'quotas');
      this.messages = new MessageMap(marks);
    }
    const { layers, kvHeads, headDim } = context.model;
    const shape = { kvHeads, headDim, mass: this.tracksMass };
    this.gaps = new Gaps(context.model, config);
    this.exact = new ExactPart(context.kernels, layers, { ...shape, bits: config.exactBits });
    this.packed = new PackedPart(context.kernels, { ...shape, layers }, context.tierScratch);
  }

  get layers(): number {
    return this.context.model.layers;
  }
  get #arena(): Arena {
    return this.context.kernels.arena;
  }
  /** Keys, values and queries go through the Hadamard rotation; plain tiers hold them as they are. */
  get rotated(): boolean {
    return this.policy.needs.plain !== true;
  }
  /** What a run's attention adds to the history: AttendArgs.mass and massMode. */
  massOf(run: { readonly mass: boolean }): { mass: number; massMode: 'sum' | 'max' } {
    const needs = this.policy.needs.mass;
    if (!run.mass || !needs) return { mass: 0, massMode: 'sum' };
    return needs.mode === 'max' ? { mass: 65535, massMode: 'max' } : { mass: needs.unit, massMode: 'sum' };
  }
  get tracksMass(): boolean {
    return this.policy.needs.mass !== undefined;
  }
  /** Bytes of kernel memory held now: every block with its padding. */
  get bytes(): number {
    return this.packed.bytes + this.exact.bytes;
  }
  /** [layer][segment] */
  get blocks(): readonly (readonly SegmentBlock[])[] {
    return this.packed.blocks;
  }
  /** Positions [sinks, compressedEnd) lie in the layer's segments. */
  compressedEnd(layer: number): number {
    const last = this.spans[this.blocks[layer]!.length - 1];
    return last ? last.start + last.tokens : this.config.sinks;
  }
  /** Slots of the layer's exact part in use. */
  exactCount(layer: number): number {
    const { sinks } = this.config;
    return this.position <= sinks ? this.position : sinks + this.position - this.compressedEnd(layer);
  }
  /** The epoch whose plan has not reached every layer. */
  get pendingSince(): number | undefined {
    return this.#pending?.epoch;
  }

  /** Bytes the cache may hold once the plan of `position` is applied; Infinity for policies without a budget. */
  budgetAt(position: number): number {
    const { config, context } = this;
    const isFull = config.policy === 'full' && config.bytes === undefined;
    return isFull ? Number.POSITIVE_INFINITY : byteBudget(config, context.model, position);
  }

  /** The ids that are appended next: their chunk follows, or fails and is heard again. */
  hear(ids: readonly number[]): void {
    this.messages?.hear(this.position, ids);
  }

  /** Tokens that may be appended before the epoch must end. */
  get room(): number {
    return EPOCH - (this.position % EPOCH);
  }

  /** Sees to it that `rows` more tokens can be appended. @throws MemoryLimitError before anything is changed */
  reserve(rows: number): void {
    const pending = this.#pending;
    if (pending && pending.epoch + PLAN_POSITIONS < this.position + rows) this.#advancePlan(1);
    const needed = peakGrowth(this, this.#pending, rows);
    if (needed > this.#arena.availableBytes)
      throw new MemoryLimitError(needed, this.#arena.availableBytes, `${rows} more tokens of a cache`);
  }

  /**
   * How the next `rows` tokens of a layer are appended and attended, run after run: before a run whose `settle` is set the layer takes over
   * the newest plan; `mass`: the run's attention counts as history.
   */
  runs(layer: number, rows: number): { from: number; rows: number; mass: boolean; settle: boolean }[] {
    const mass = this.policy.needs.mass;
    const settleAt = settlesAt(this, this.#pending, layer);
    const left = this.config.oneShot === undefined ? this.room : this.config.oneShot - this.position;
    const massFrom = mass?.lastQueries === undefined ? 0 : Math.max(0, left - mass.lastQueries);
    const cuts = [...new Set([0, settleAt, massFrom, rows])]
      .filter((at) => at >= 0 && at <= rows)
      .sort((a, b) => a - b);
    return cuts.slice(0, -1).map((from, i) => ({
      from,
      rows: cuts[i + 1]! - from,
      mass: mass !== undefined && from >= massFrom,
      settle: from === settleAt,
    }));
  }

  /** Readies a layer for a run, `from` rows of the chunk having been appended. @returns the slot of the run's first row */
  begin(layer: number, run: { from: number; rows: number; settle: boolean }): number {
    if (run.settle) this.#settle(layer, run.from, run.rows);
    const slot = this.exactCount(layer) + run.from;
    this.exact.resize(layer, slot, stepped(slot + run.rows));
    return slot;
  }

  exactRef(layer: number): ExactRef {
    return this.exact.ref(layer);
  }
  /** The epoch whose plan the layer waits for. */
  #awaited(layer: number): number | undefined {
    return this.#pending?.isWaiting(layer) ? this.#pending.epoch : undefined;
  }
  /** Addresses of the layer's open segment blocks, in order. */
  segmentPtrs(layer: number): readonly Ptr[] {
    const at = this.packed.ptrs(layer);
    if (this.gaps.tokens === 0) return at;
    const awaited = this.#awaited(layer);
    return at.filter((_, s) => !this.gaps.has(s, awaited));
  }
  /** How far the positions of these segments, and of the sinks, have moved towards the present; undefined: not at all. */
  offsets(layer: number): { segments: number[]; sinks: number } | undefined {
    return this.gaps.offsets(this.spans, this.blocks[layer]!.length, this.#awaited(layer));
  }

  /** All layers hold `rows` more tokens. Ends the epoch when it is full; else a part of the pending plan is made. */
  advance(rows: number): void {
    // Not `room`: a cache of two parts narrows it by its upper layers, which have run by now.
    if (rows > EPOCH - (this.position % EPOCH))
      throw new Error(`a chunk of ${rows} tokens crosses an epoch at ${this.position}`);
    this.position += rows;
    if (this.#pending) {
      const since = this.position - this.#pending.epoch;
      this.#advancePlan(since / PLAN_POSITIONS);
      if (this.#pending.isDone) this.#dropPlan();
    }
    if (this.position % EPOCH === 0) this.#endEpoch();
  }

  /**
   * Ends a text: everything outside the window is compressed and every plan applied, at whatever position. To report what a finished text
   * takes, or to look at it: its state is no longer that of the clock, so that it is neither stored nor, after a part of an epoch, continued.
   */
  finish(): void {
    if (this.position % EPOCH !== 0) {
      this.applyNow();
      this.#endEpoch();
    }
    this.applyNow();
    for (let layer = 0; layer < this.layers; layer++) {
      const used = this.exactCount(layer);
      this.exact.resize(layer, used, used, true);
    }
  }

  completePlan(): PlanJournalEntry | undefined {
    this.#advancePlan(1);
    return this.#pending?.entry;
  }

  report(): CacheReport {
    return cacheReport(this);
  }

  reader(block: SegmentBlock): SegmentReader {
    return this.packed.reader(block);
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.exact.dispose();
    this.packed.dispose();
    this.#dropPlan();
  }

  // ---- what persistence does (restore.ts) ---------------------------------------------------------------------

  /** Before an epoch is fed to its end: plans are made of the attention mass, which may lie on a GPU. */
  fetchMass(): Promise<void> {
    return fetchMass(this);
  }
  async settle(): Promise<void> {
    await fetchState(this, this.#fetched);
  }
  get remote(): boolean {
    return this.context.kernels.fetch !== undefined;
  }
  get header(): CacheHeader {
    return headerOf(this);
  }
  get pinned(): number {
    return this.config.sinks;
  }
  get exactStride(): number {
    return (this.context.model.headDim * this.config.exactBits) / 8;
  }
  exactFrom(layer: number): number {
    return this.compressedEnd(layer);
  }
  hotViews(layer: number): HotViews {
    return hotViewsOf(this, layer);
  }
  hot(layer: number): Uint8Array {
    return joined(this.hotViews(layer));
  }
  segmentsOf(layer: number): number {
    return this.blocks[layer]!.length;
  }
  blockView(layer: number, segment: number): Uint8Array {
    const block = this.blocks[layer]![segment]!;
    return this.#arena.bytes(block.id).subarray(0, this.reader(block).storedBytes);
  }
  block(layer: number, segment: number): Uint8Array {
    return this.blockView(layer, segment).slice();
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
  /** Allocates the exact part for a state whose position and blocks were set from outside. */
  restoreExact(): void {
    for (let layer = 0; layer < this.layers; layer++) {
      const used = this.exactCount(layer);
      if (used > 0) this.exact.resize(layer, 0, stepped(used));
    }
  }
  /** Adopts a block that restore made. */
  adopt(layer: number, id: BlockId, version: number): void {
    this.packed.adopt(layer, id, version);
  }
  adoptPlan(plan: PendingPlan): void {
    this.#pending = plan;
  }

  /** Rewrites one segment of one layer under new tiers ([kvHeads][tokens], at `from`). */
  recode(layer: number, segment: number, tiers: Uint8Array, from: number, version: number): void {
    this.packed.recode(layer, segment, this.spans[segment]!, { tiers, from }, version);
  }

  /** Copies the state that the epoch's plan is made from; from here on, mass counts for the next one. */
  #endEpoch(): void {
    const { window, sinks } = this.config;
    const last = this.spans.at(-1);
    const start = last ? last.start + last.tokens : sinks;
    const end = Math.max(this.position - window, start);
    const fresh = end > start ? { start, tokens: end - start } : null;
    if (fresh) this.spans.push(fresh);
    this.peakBytes = Math.max(this.peakBytes, this.bytes + epochGrowth(this));
    if (this.spans.length > 0) {
      const view = snapshot(this, fresh);
      const kept = sinks + this.position - end;
      const closed = this.gaps.count * segmentHeaderBytes(this.context.model.kvHeads);
      const others = this.layers * (this.exact.bytesFor(kept) + closed);
      const budget = { recordBytes: this.budgetAt(this.position) - others };
      const open = withoutSegments(view, this.gaps.close(view));
      this.#pending = PendingPlan.make(this.position, view, this.#steps(open, budget));
    }
    this.#decay();
  }

  *#steps(view: CacheView, budget: ByteBudget): Generator<number, Plan> {
    if (this.policy.planSteps) return yield* this.policy.planSteps(view, budget);
    return this.policy.plan(view, budget);
  }

  #advancePlan(share: number): void {
    const entry = this.#pending?.advance(share);
    if (entry && entry.bytes.length > 0) this.journal.push(entry);
  }

  /** Applies the pending plan to every layer that waits for it. */
  applyNow(): void {
    this.#advancePlan(1);
    for (let layer = 0; layer < this.layers; layer++)
      if (this.#pending?.isWaiting(layer)) this.#settle(layer, 0, 0);
    this.#dropPlan();
  }

  #dropPlan(): void {
    this.#pending?.end();
    this.#pending = undefined;
  }

  /** Gives a layer the newest plan: changed segments are rewritten, the newest one is made. `appended`: rows beyond the position; `coming`: rows that are next. */
  #settle(layer: number, appended: number, coming: number): void {
    const { kernels } = this.context;
    const pending = this.#pending!;
    const version = shownFrom(pending.epoch, layer, this.layers);
    pending.settled(layer);
    for (const { segment, tiers, from, moved } of pending.changesOf(layer)) {
      const span = this.spans[segment]!;
      if (segment < this.blocks[layer]!.length) {
        this.recodes += moved;
        this.recode(layer, segment, tiers, from, version);
        continue;
      }
      const used = this.exactCount(layer) + appended;
      const { sinks } = this.config;
      this.packed.encode(layer, span, { tiers, from }, version, () => this.exactRef(layer), sinks);
      const left = sinks + span.tokens;
      if (used > left) kernels.moveExact(this.exactRef(layer), left, sinks, used - left);
      const kept = used - span.tokens;
      this.exact.resize(layer, kept, stepped(kept + coming), true);
    }
  }

  #decay(): void {
    const decay = this.policy.needs.mass?.decay;
    if (decay === undefined || decay === 1) return;
    const numerator = Math.round(decay * 65536);
    const { kernels } = this.context;
    for (let layer = 0; layer < this.layers; layer++) {
      if (this.exact.holds(layer)) {
        const { ptr, count } = this.exact.masses(layer);
        kernels.decayMass(ptr, count, numerator);
      }
      this.packed.decay(layer, numerator);
    }
  }
}
