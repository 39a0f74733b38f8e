import { fp16BytesPerToken, type ModelConfig } from '../core/config.ts';
import { InvalidInputError } from '../core/errors.ts';
import { byteBudget } from './byte-budget.ts';
import { type CacheContext, KvCache } from './cache.ts';
import type { CacheHeader } from './persist.ts';
import { POOL, PROPAGATED, propagationLayer } from './policies/fastkv.ts';
import type { CacheConfig, CacheReport } from './policy.ts';
import { averagePool } from './relevance.ts';

/** The layers above: a cache of its own, whose clock counts the tokens that reached them. */
class UpperLayers extends KvCache {
  readonly #budget: () => number;

  constructor(context: CacheContext, config: CacheConfig, budget: () => number) {
    super(context, config);
    this.#budget = budget;
  }
  override budgetAt(): number {
    return this.#budget();
  }
}

/**
 * The cache of policy fastkv, made of two: this one holds the layers up to the propagation layer and every token, `upper` the layers above and the
 * tokens that go on there. While a prompt is read only the lower layers are fed; the hidden states that leave them wait. Keys carry their positions,
 * so that it does not matter that a token's number differs between the two.
 */
export class PropagatingCache extends KvCache {
  /** Of the whole model. */
  readonly model: ModelConfig;
  readonly promptTokens: number;
  upper: KvCache | undefined;
  readonly #whole: CacheContext;
  /** [prompt's rows so far][width] */
  #hidden: Float32Array | undefined;

  /** @throws InvalidInputError without config.oneShot */
  constructor(context: CacheContext, config: CacheConfig) {
    const { model } = context;
    super({ ...context, model: { ...model, layers: propagationLayer(model.layers) + 1 } }, config);
    this.model = model;
    this.promptTokens = config.oneShot!;
    this.#whole = context;
  }

  /** Takes the hidden states of `rows` tokens from `position` on, [rows][width]. */
  keep(hidden: Float32Array, rows: number): void {
    const width = hidden.length / rows;
    this.#hidden ??= new Float32Array(this.promptTokens * width);
    this.#hidden.set(hidden, this.position * width);
    this.peakBytes = Math.max(this.peakBytes, this.bytes);
  }

  /**
   * The prompt has passed the lower layers, its last `rows` tokens not being advanced over yet: makes the upper ones.
   * @returns them, and the positions that go on there, ascending
   */
  propagate(rows: number): { upper: KvCache; positions: readonly number[] } {
    const { model, config } = this;
    const positions = this.#selected(rows);
    const layers = model.layers - this.layers;
    const context = { ...this.#whole, model: { ...model, layers } };
    const upper = new UpperLayers(
      context,
      { ...config, oneShot: positions.length },
      () => (this.#budgetOfAll() * layers) / model.layers,
    );
    this.upper = upper;
    return { upper, positions };
  }
  /** Hidden states of a token of the prompt. */
  hidden(position: number): Float32Array {
    const width = this.#hidden!.length / this.promptTokens;
    return this.#hidden!.subarray(position * width, (position + 1) * width);
  }
  /** All that go on have done so: the upper layers are compressed, and what they take is known when the lower ones are. */
  propagated(): void {
    this.peakBytes = Math.max(this.peakBytes, this.bytes);
    this.#hidden = undefined;
    this.upper!.finish();
  }

  /** Sinks, window, and the tokens that the propagation layer's last queries attended to: a fifth of the prompt in all. */
  #selected(rows: number): number[] {
    const { sinks, window } = this.config;
    const votes = this.#votes(rows);
    averagePool(votes, POOL);
    const kept = (position: number): boolean => position < sinks || position >= votes.length - window;
    const order = [...votes.keys()].sort(
      (a, b) => Number(kept(b)) - Number(kept(a)) || votes[b]! - votes[a]! || a - b,
    );
    const count = Math.max(Math.ceil(PROPAGATED * votes.length), Math.min(sinks + window, votes.length));
    return order.slice(0, count).sort((a, b) => a - b);
  }

  /** Attention mass of the propagation layer by position, all heads together. */
  #votes(rows: number): Float32Array {
    const { kvHeads } = this.model;
    const { arena } = this.context.kernels;
    const layer = this.layers - 1;
    const votes = new Float32Array(this.position + rows);
    const add = (address: number, tokens: number, at: number): void => {
      const mass = new Uint16Array(arena.memory.buffer, address, tokens);
      for (let i = 0; i < tokens; i++) votes[at + i]! += mass[i]!;
    };
    // Before the prompt's end every token is held in one tier: cells come in position order.
    for (const [s, block] of this.blocks[layer]!.entries()) {
      const { start, tokens } = this.spans[s]!;
      const reader = this.reader(block);
      for (let h = 0; h < kvHeads; h++) add(arena.ptr(block.id) + reader.massAt(h), tokens, start);
    }
    const { sinks } = this.config;
    const used = this.exactCount(layer) + rows;
    const first = Math.min(sinks, used);
    for (let h = 0; h < kvHeads; h++) {
      const address = this.exact.massPtr(layer, h);
      add(address, first, 0);
      add(address + first * 2, used - first, this.compressedEnd(layer));
    }
    return votes;
  }

  #budgetOfAll(): number {
    return byteBudget(this.config, this.model, this.position);
  }
  /** What the upper layers leave: a fifth of the tokens may take less than their share. */
  override budgetAt(): number {
    return this.#budgetOfAll() - (this.upper?.bytes ?? 0);
  }

  override get bytes(): number {
    return super.bytes + (this.upper?.bytes ?? 0) + (this.#hidden?.byteLength ?? 0);
  }
  override get room(): number {
    return Math.min(super.room, this.upper ? this.upper.room : this.promptTokens - this.position);
  }
  override clearJournal(): void {
    super.clearJournal();
    this.upper?.clearJournal();
  }
  override dispose(): void {
    super.dispose();
    this.upper?.dispose();
    this.#hidden = undefined;
  }
  override get header(): CacheHeader {
    throw new InvalidInputError('a cache of policy fastkv is not stored', 'policy');
  }

  override report(): CacheReport {
    const own = super.report();
    const upper = this.upper?.report();
    const sum = (a: Readonly<Record<string, number>> = {}, b: Readonly<Record<string, number>> = {}) =>
      Object.fromEntries(
        [...new Set([...Object.keys(a), ...Object.keys(b)])].map((name) => [
          name,
          (a[name] ?? 0) + (b[name] ?? 0),
        ]),
      );
    const { bytes, model } = this;
    const fp16Bytes = this.position * fp16BytesPerToken(model);
    const above = (model.layers - this.layers) * model.kvHeads;
    const gone = { drop: (this.position - (upper?.tokens ?? 0)) * above };
    const tierBytes = { ...sum(own.tierBytes, upper?.tierBytes), overhead: 0 };
    return {
      ...own,
      bytes,
      fp16Bytes,
      ratio: bytes === 0 ? 0 : fp16Bytes / bytes,
      peakBytes: Math.max(own.peakBytes, bytes),
      tiers: sum(sum(own.tiers, upper?.tiers), gone),
      tierBytes: {
        ...tierBytes,
        overhead: bytes - Object.values(tierBytes).reduce((all, n) => all + n, 0),
      },
      parts: sum(own.parts, upper?.parts),
    };
  }
}
