import { CorruptDataError } from '../core/errors.ts';
import { type Head, readHead } from './head.ts';
import type { SessionStore } from './store/session-store.ts';

/** The head in memory: what the store holds, read when it is first asked for; may be forgotten at any time between turns. */
export class KeptHead {
  readonly #store: SessionStore;
  #head: Head | undefined;
  #damage: string | undefined;

  constructor(store: SessionStore) {
    this.#store = store;
  }

  /** What is in memory; the store is not asked. */
  get known(): Head | undefined {
    return this.#head;
  }

  /** What was wrong with one of its two copies when it was read. */
  get damage(): string | undefined {
    return this.#damage;
  }

  /** @throws CorruptDataError when rows exist but no copy is whole */
  read(): Head | undefined {
    if (this.#head) return this.#head;
    const reading = readHead(this.#store);
    this.#head = reading?.head;
    this.#damage = reading?.damage;
    return this.#head;
  }

  /** 'damaged': there are rows, and nothing can be told about them. 'unfinished': an import was cut off before it was a session. */
  peek(): Head | 'damaged' | 'unfinished' | undefined {
    try {
      return this.read() ?? (this.#store.ids().length > 0 ? 'unfinished' : undefined);
    } catch (error) {
      if (error instanceof CorruptDataError) return 'damaged';
      throw error;
    }
  }

  /** @param head as it was just written, both copies of it */
  keep(head: Head): void {
    this.#head = head;
    this.#damage = undefined;
  }

  forget(): void {
    this.#head = undefined;
    this.#damage = undefined;
  }
}
