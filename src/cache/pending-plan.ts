import { release } from '../core/release.ts';
import { type Change, changesOf, encodePlan } from './journal.ts';
import type { PlanJournalEntry } from './persist.ts';
import type { CacheView, Plan } from './policy.ts';

const NO_PLAN: Plan = { tiers: [] };

/** The plan of the newest epoch until every layer has it: first being made, in steps, then being applied. */
export class PendingPlan {
  readonly epoch: number;
  #making:
    | {
        readonly view: CacheView;
        readonly steps: Generator<number, Plan>;
        done: number;
      }
    | undefined;
  #changes: Change[][] = [];
  #entry: PlanJournalEntry | undefined;
  /** The plan's own tiers, which changes look into. */
  #tiers: readonly Uint8Array[] = [];
  readonly #bytes = new Map<Change, number>();
  readonly #waiting: boolean[];

  private constructor(epoch: number, waiting: boolean[]) {
    this.epoch = epoch;
    this.#waiting = waiting;
  }

  /** @param view of this plan alone: its memory is given back when the plan is made @param steps yields the share of its work that is done, 0 to 1 */
  static make(epoch: number, view: CacheView, steps: Generator<number, Plan>): PendingPlan {
    const pending = new PendingPlan(epoch, new Array<boolean>(view.layers).fill(true));
    pending.#making = { view, steps, done: 0 };
    return pending;
  }

  /** A plan that was made before its cache was stored. @param changes by layer; those of layers that have it already do not matter */
  static restored(entry: PlanJournalEntry, changes: Change[][], waiting: boolean[]): PendingPlan {
    const pending = new PendingPlan(entry.position, waiting);
    pending.#entry = entry;
    pending.#changes = changes;
    return pending;
  }

  /** Goes on until `share` of the plan is made. How it is cut changes nothing. @returns the journal's entry once it is whole */
  advance(share: number): PlanJournalEntry | undefined {
    const making = this.#making;
    while (making && (making.done < share || share >= 1)) {
      const step = making.steps.next();
      if (!step.done) {
        making.done = step.value;
        continue;
      }
      this.#making = undefined;
      this.#tiers = step.value.tiers;
      this.#changes = changesOf(this.epoch, making.view, step.value);
      const entry: PlanJournalEntry = {
        position: this.epoch,
        bytes: encodePlan(making.view, this.#changes),
      };
      this.#entry = entry;
      for (const { tiers, mass } of making.view.segments) {
        release(tiers);
        if (mass) release(mass);
      }
      return entry;
    }
    return undefined;
  }

  /** Undefined while the plan is being made. */
  get entry(): PlanJournalEntry | undefined {
    return this.#entry;
  }
  isWaiting(layer: number): boolean {
    return this.#waiting[layer]!;
  }
  get isDone(): boolean {
    return !this.#waiting.includes(true);
  }
  /** Every layer has it, or nobody wants it any more: what it holds is given back. */
  end(): void {
    // One that was never made gives back what it holds.
    this.#making?.steps.return(NO_PLAN);
    this.#making = undefined;
    for (const tiers of this.#tiers) release(tiers);
    this.#tiers = [];
    this.#changes = [];
  }
  /** The layer has it. */
  settled(layer: number): void {
    this.#waiting[layer] = false;
  }

  /** What the changed segment takes, as `bytesFor` finds it when it is first asked: every chunk until the plan is applied asks for all of them. */
  bytesOf(change: Change, bytesFor: (change: Change) => number): number {
    let bytes = this.#bytes.get(change);
    if (bytes === undefined) {
      bytes = bytesFor(change);
      this.#bytes.set(change, bytes);
    }
    return bytes;
  }

  /** What changes in a layer, by segment; the epoch's own segment last. Only of a whole plan. */
  changesOf(layer: number): readonly Change[] {
    if (this.#making) throw new Error('the plan is not made yet');
    return this.#changes[layer] ?? [];
  }
}
