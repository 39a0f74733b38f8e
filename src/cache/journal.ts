import { CorruptDataError } from '../core/errors.ts';
import { release } from '../core/release.ts';
import { DROP, nibble, TIERS } from '../kernels/layout.ts';
import type { PlanJournalEntry } from './persist.ts';
import { type CacheView, FRESH, type Plan } from './policy.ts';
import { shownFrom } from './schedule.ts';

/** New tiers of one layer's segment: [kvHeads][tokens] at `from` of `tiers`. */
export interface Change {
  /** The epoch whose plan this is. */
  readonly position: number;
  readonly segment: number;
  readonly tiers: Uint8Array;
  readonly from: number;
  /** Tokens whose tier differs from the one they have. */
  readonly moved: number;
}

const HEADER = 6;
export const isTier = (id: number): boolean => id < TIERS.length || id === DROP;
const half = (count: number): number => (count + 1) >> 1;

/** What a plan changes, by layer, in the order of segments: those of which some token moves. */
export function changesOf(position: number, view: CacheView, plan: Plan): Change[][] {
  const byLayer: Change[][] = Array.from({ length: view.layers }, () => []);
  for (const [s, { index, tokens, tiers }] of view.segments.entries()) {
    const to = plan.tiers[s]!;
    const count = view.kvHeads * tokens;
    for (let layer = 0; layer < view.layers; layer++) {
      const from = layer * count;
      const moved = differing(to, tiers, from, count);
      if (moved > 0) byLayer[layer]!.push({ position, segment: index, tiers: to, from, moved });
    }
  }
  return byLayer;
}
function differing(a: Uint8Array, b: Uint8Array, from: number, count: number): number {
  let n = 0;
  for (let i = from; i < from + count; i++) if (a[i] !== b[i]) n++;
  return n;
}

/**
 * A plan as bytes: for each layer and segment that changes u16 layer, u16 segment, u16 tokens that move; a bit for each of [kvHeads][tokens], set for those
 * that move, unless all do; then their new tiers, 4 bits each. Low bits first. Few tokens move in an epoch.
 */
export function encodePlan(view: CacheView, changes: readonly (readonly Change[])[]): Uint8Array {
  const before = new Map(view.segments.map((segment) => [segment.index, segment]));
  const largest = Math.max(0, ...view.segments.map(({ tokens }) => view.kvHeads * tokens));
  let most = 0;
  for (const list of changes)
    for (const { moved } of list) most += HEADER + ((largest + 7) >> 3) + half(moved);
  const out = new Uint8Array(most);
  let at = 0;
  for (const [layer, list] of changes.entries())
    for (const { segment, tiers, from, moved } of list) {
      const held = before.get(segment)!;
      const count = view.kvHeads * held.tokens;
      out.set([layer & 255, layer >> 8, segment & 255, segment >> 8, moved & 255, moved >> 8], at);
      at += HEADER;
      const bits = moved < count ? at : undefined;
      if (bits !== undefined) at += (count + 7) >> 3;
      putMoves(tiers, held.tiers, from, count, out, bits, at);
      at += half(moved);
    }
  const bytes = out.slice(0, at);
  release(out);
  return bytes;
}

/** The bits of the tokens that move from `bits` on, unless all do, and their tiers from `at` on. */
function putMoves(
  tiers: Uint8Array,
  held: Uint8Array,
  from: number,
  count: number,
  out: Uint8Array,
  bits: number | undefined,
  at: number,
): void {
  let n = 0;
  for (let i = 0; i < count; i++) {
    const tier = tiers[from + i]!;
    if (tier === held[from + i]) continue;
    if (bits !== undefined) out[bits + (i >> 3)]! |= 1 << (i & 7);
    out[at + (n >> 1)]! |= tier << ((n & 1) * 4);
    n++;
  }
}

/** Tokens that a plan moves, as indices of [kvHeads][tokens], and their new tiers; room that is used again for every block. */
class Moves {
  count = 0;
  readonly tokens: Uint16Array;
  readonly tiers: Uint8Array;

  constructor(most: number) {
    this.tokens = new Uint16Array(most);
    this.tiers = new Uint8Array(most);
  }
}

/** An entry of the journal that is read block by block. */
class EntryReader {
  readonly position: number;
  readonly #bytes: Uint8Array;
  readonly #kvHeads: number;
  readonly #spans: readonly { readonly tokens: number }[];
  /** [layer][segment] where the piece begins, -1 where nothing changes. */
  readonly #at: Int32Array;

  /** @throws CorruptDataError when it does not parse */
  constructor(
    { position, bytes }: PlanJournalEntry,
    spans: readonly { readonly tokens: number }[],
    layers: number,
    kvHeads: number,
  ) {
    this.position = position;
    this.#bytes = bytes;
    this.#spans = spans;
    this.#kvHeads = kvHeads;
    this.#at = new Int32Array(layers * spans.length).fill(-1);
    for (let at = 0; at < bytes.length; ) {
      if (at + HEADER > bytes.length) throw this.#broken();
      const layer = this.#u16(at);
      const segment = this.#u16(at + 2);
      const moved = this.#u16(at + 4);
      const count = this.tokensOf(segment);
      if (layer >= layers || moved === 0 || moved > count) throw this.#broken();
      this.#at[layer * spans.length + segment] = at;
      at += HEADER + (moved < count ? (count + 7) >> 3 : 0) + half(moved);
      if (at > bytes.length) throw this.#broken();
    }
  }

  /** Segments of the layer that change, ascending. */
  segmentsOf(layer: number): number[] {
    return [...this.#spans.keys()].filter((segment) => this.#at[layer * this.#spans.length + segment]! >= 0);
  }

  /** Of all kvHeads. */
  tokensOf(segment: number): number {
    return this.#kvHeads * (this.#spans[segment]?.tokens ?? 0);
  }

  /** Fills `moves` with what a block changes, in the order of tokens. @throws CorruptDataError */
  read(layer: number, segment: number, moves: Moves): void {
    moves.count = 0;
    const start = this.#at[layer * this.#spans.length + segment]!;
    if (start < 0) return;
    const bytes = this.#bytes;
    const moved = this.#u16(start + 4);
    const count = this.tokensOf(segment);
    const bits = start + HEADER;
    const ids = moved < count ? bits + ((count + 7) >> 3) : bits;
    const { tokens, tiers } = moves;
    let n = 0;
    for (let from = 0; from < count; from += 8) {
      const eight = moved < count ? bytes[bits + (from >> 3)]! : 255 >> Math.max(0, from + 8 - count);
      for (let left = eight; left !== 0; left &= left - 1) {
        const token = from + 31 - Math.clz32(left & -left);
        if (n === moved || token >= count) throw this.#broken();
        const tier = nibble(bytes, ids, n);
        if (!isTier(tier)) throw this.#broken();
        tokens[n] = token;
        tiers[n++] = tier;
      }
    }
    if (n !== moved) throw this.#broken();
    moves.count = n;
  }

  #u16(at: number): number {
    return this.#bytes[at]! | (this.#bytes[at + 1]! << 8);
  }
  #broken(): CorruptDataError {
    return new CorruptDataError(`the plan journal of position ${this.position} does not parse`);
  }
}

/** What the plans of a journal make of blocks that were stored before they took effect. */
export class Replay {
  readonly #entries: readonly EntryReader[];
  readonly #layers: number;
  readonly #position: number;
  readonly #moves: Moves;
  /** How often each token of the block at hand has moved. */
  readonly #depth: Uint8Array;

  /**
   * @param position of the state: later plans do not show yet
   * @throws CorruptDataError when an entry does not parse
   */
  constructor(
    journal: readonly PlanJournalEntry[],
    spans: readonly { readonly tokens: number }[],
    { layers, kvHeads }: { readonly layers: number; readonly kvHeads: number },
    position: number,
  ) {
    this.#entries = journal.map((entry) => new EntryReader(entry, spans, layers, kvHeads));
    this.#layers = layers;
    this.#position = position;
    const most = kvHeads * spans.reduce((largest, { tokens }) => Math.max(largest, tokens), 0);
    this.#moves = new Moves(most);
    this.#depth = new Uint8Array(most);
  }

  /**
   * The tiers that a block gets after `version`, as few steps as give the same bytes: tokens of a record are recoded independently of one another, so
   * that a step may hold each token's next move, whichever plan made it.
   * @param held [kvHeads][tokens] tiers of the stored block
   * @returns the steps in order, and the version that the last plan leaves
   * @throws CorruptDataError when a token would become finer
   */
  stepsOf(
    layer: number,
    segment: number,
    version: number,
    held: Uint8Array,
  ): { steps: Uint8Array[]; version: number } {
    const steps: Uint8Array[] = [];
    const moves = this.#moves;
    const depth = this.#depth.fill(0);
    const due = shownFrom(0, layer, this.#layers);
    let newest = held;
    let latest = version;
    for (const entry of this.#entries) {
      const shown = entry.position + due;
      if (shown > this.#position || shown <= version) continue;
      entry.read(layer, segment, moves);
      if (moves.count === 0) continue;
      latest = shown;
      const { tokens, tiers, count } = moves;
      for (let i = 0; i < count; i++) {
        const token = tokens[i]!;
        const tier = tiers[i]!;
        if (tier < newest[token]!) throw promoted(entry);
        const first = depth[token]!++;
        if (first === steps.length) {
          newest = newest.slice();
          steps.push(newest);
        }
        newest[token] = tier;
        for (let step = steps.length - 2; step >= first; step--) steps[step]![token] = tier;
      }
    }
    return { steps, version: latest };
  }

  /**
   * The plan of `epoch` for the layers that wait for it, as it changes their blocks.
   * @param tiersOf [kvHeads][tokens] tiers of a block that is there
   * @throws CorruptDataError when the journal lacks it, or a token would become finer
   */
  pending(
    epoch: number,
    waiting: readonly boolean[],
    tiersOf: (layer: number, segment: number) => Uint8Array | undefined,
  ): Change[][] {
    const entry = this.#entries.findLast(({ position }) => position === epoch);
    if (!entry) throw new CorruptDataError(`the plan of position ${epoch} is missing`);
    return waiting.map((waits, layer) => {
      if (!waits) return [];
      return entry.segmentsOf(layer).map((segment) => {
        const held = tiersOf(layer, segment);
        const tiers = held?.slice() ?? new Uint8Array(entry.tokensOf(segment)).fill(FRESH);
        const moves = this.#moves;
        entry.read(layer, segment, moves);
        for (let i = 0; i < moves.count; i++) {
          const token = moves.tokens[i]!;
          if (held && moves.tiers[i]! < held[token]!) throw promoted(entry);
          tiers[token] = moves.tiers[i]!;
        }
        if (tiers.includes(FRESH)) throw new CorruptDataError(`the plan of position ${epoch} does not parse`);
        return { position: epoch, segment, tiers, from: 0, moved: moves.count };
      });
    });
  }
}

const promoted = ({ position }: EntryReader): CorruptDataError =>
  new CorruptDataError(`the plan of position ${position} promotes a token`);
