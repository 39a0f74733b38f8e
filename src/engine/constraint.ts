import { AdkvcError } from '../core/errors.ts';
import { begin, canEnd, roomForText, type State, step } from './json/acceptor.ts';
import type { Shape } from './json/schema.ts';
import type { Sorted, TokenOrder } from './token-order.ts';
import type { Tokenizer } from './types.ts';

/** What an answer may be, token by token. */
export interface Constraint {
  /** Nothing can follow. */
  readonly complete: boolean;
  /** Gives -Infinity to every token that cannot come next. @throws AdkvcError constraint_failed when none can */
  mask(logits: Float32Array): void;
  /** The token that came. */
  accept(id: number): void;
}

/** Answers that are JSON of a shape; they end when the JSON does. */
export class JsonConstraint implements Constraint {
  readonly #order: TokenOrder;
  readonly #eosIds: readonly number[];
  #state: State;
  #allowed = new Uint8Array(0);
  /** The state that `#allowed` belongs to. */
  #masked: State | undefined;

  constructor(shape: Shape, tokenizer: Tokenizer, eosIds: readonly number[]) {
    this.#state = begin(shape);
    this.#order = tokenizer.order();
    this.#eosIds = eosIds;
  }

  get complete(): boolean {
    return this.#state.every((way) => way === null);
  }

  mask(logits: Float32Array): void {
    // Text within a string leaves the state as it is, and so what may follow.
    if (this.#masked !== this.#state || this.#allowed.length !== logits.length) this.#look(logits.length);
    const allowed = this.#allowed;
    let any = false;
    for (let id = 0; id < logits.length; id++) {
      if (allowed[id]) any = true;
      else logits[id] = Number.NEGATIVE_INFINITY;
    }
    if (!any)
      throw new AdkvcError(
        'constraint_failed',
        'the vocabulary has no token that could go on with this JSON',
      );
  }

  accept(id: number): void {
    if (this.#eosIds.includes(id)) return;
    for (const b of this.#order.bytes(id)) this.#state = step(this.#state, b);
  }

  #look(vocab: number): void {
    if (this.#allowed.length !== vocab) this.#allowed = new Uint8Array(vocab);
    const allowed = this.#allowed.fill(0);
    const state = this.#state;
    const room = roomForText(state);
    if (room !== undefined) {
      const { ids, characters } = this.#order.plain;
      for (let i = 0; i < ids.length; i++) if (characters[i]! <= room) allowed[ids[i]!] = 1;
      this.#walk(state, this.#order.other, allowed);
    } else this.#walk(state, this.#order.all, allowed);
    if (canEnd(state)) for (const id of this.#eosIds) allowed[id] = 1;
    this.#masked = state;
  }

  #walk(state: State, { ids, shared }: Sorted, allowed: Uint8Array): void {
    /** path[n]: the state after the current token's first n bytes. */
    const path: State[] = [state];
    /** Tokens that share this many bytes with the last one looked at cannot come. */
    let dead = Number.POSITIVE_INFINITY;
    for (let i = 0; i < ids.length; i++) {
      if (shared[i]! >= dead) continue;
      dead = Number.POSITIVE_INFINITY;
      const bytes = this.#order.bytes(ids[i]!);
      for (let n = shared[i]!; n < bytes.length; n++) {
        const next = step(path[n]!, bytes[n]!);
        if (next.length === 0) {
          dead = n + 1;
          break;
        }
        path[n + 1] = next;
      }
      if (dead === Number.POSITIVE_INFINITY) allowed[ids[i]!] = 1;
    }
  }
}
