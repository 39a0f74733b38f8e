import type { StepJob } from '../runtime/chunk.ts';
import type { ForwardPass } from '../runtime/forward.ts';

/** A chunk that wants the workspace, or a token that may go along with others. */
interface Ticket {
  readonly job?: StepJob;
  /** Another one's pass takes it along. */
  taken?: boolean;
  done?: boolean;
  error?: unknown;
}

/** Looks for tokens that are about to come, before a pass of several goes ahead. */
const MOST_LOOKS = 4;

/**
 * Who computes when: the workspace belongs to one chunk at a time, first come first served. Waiters look again after each of their own yields: the promise
 * of another Durable Object's request must not be awaited (workerd takes that for a hang).
 *
 * Where the forward pass feeds several conversations at once, a token whose turn it is takes all waiting tokens along: they would have had to wait for
 * one another, and chunks of prompts keep their places.
 */
export class Workspace {
  readonly together: boolean;
  readonly #forward: ForwardPass;
  readonly #queue: Ticket[] = [];
  /** Tokens of the newest pass: as many may come again. */
  #company = 1;

  constructor(forward: ForwardPass) {
    this.#forward = forward;
    this.together = forward.step !== undefined && (forward.mostTogether ?? 1) > 1;
  }

  /** @param work told whether nobody else waits */
  async exclusive<T>(pause: () => Promise<void>, work: (alone: boolean) => Promise<T>): Promise<T> {
    const ticket: Ticket = {};
    this.#queue.push(ticket);
    try {
      while (this.#queue[0] !== ticket) await pause();
      return await work(this.#queue.length === 1);
    } finally {
      this.#leave(ticket);
    }
  }

  /** Feeds one token, alone or in company. @throws what the cache's growth throws */
  async step(job: StepJob, pause: () => Promise<void>): Promise<void> {
    const ticket: Ticket = { job };
    this.#queue.push(ticket);
    try {
      // One that is taken along stays in the queue until it is done.
      while (!ticket.done && (ticket.taken || this.#queue[0] !== ticket)) await pause();
      if (!ticket.done) await this.#lead(ticket, pause);
    } finally {
      this.#leave(ticket);
    }
    if (ticket.error !== undefined) throw ticket.error;
  }

  async #lead(leader: Ticket, pause: () => Promise<void>): Promise<void> {
    const waiting = (): Ticket[] => this.#queue.filter(({ job, done }) => job !== undefined && !done);
    // Those that the last pass served come back after a yield or two: going ahead without them would halve the company for good.
    for (let looks = 0; looks < MOST_LOOKS && waiting().length < this.#company; looks++) await pause();
    const company = waiting().slice(0, this.#forward.mostTogether);
    this.#company = company.length;
    for (const ticket of company) ticket.taken = true;
    leader.taken = false;
    try {
      for (const { job } of company) job!.cache.hear([job!.id]);
      const errors = await this.#forward.step!(company.map(({ job }) => job!));
      company.forEach((ticket, i) => {
        ticket.error = errors[i];
      });
    } catch (error) {
      for (const ticket of company) ticket.error = error;
    } finally {
      for (const ticket of company) ticket.done = true;
    }
  }

  #leave(ticket: Ticket): void {
    this.#queue.splice(this.#queue.indexOf(ticket), 1);
  }
}
