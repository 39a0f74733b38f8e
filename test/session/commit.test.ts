import { expect, test } from 'vitest';
import { type CommitResult, commit } from '../../src/session/commit.ts';
import { FIRST_FREE_ROW, type Head, readHead } from '../../src/session/head.ts';
import {
  CHECKPOINT_QUOTA_BYTES,
  COMMIT_ROWS,
  MAX_COMMIT_FACTOR,
  MAX_EXACT_PIECES,
  REWRITE_EPOCHS,
  SPARE_ROWS,
} from '../../src/session/limits.ts';
import type { LoggedMessage } from '../../src/session/log.ts';
import { spill, spillable } from '../../src/session/spill.ts';
import { readState, refsOf, StateRows } from '../../src/session/state.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import { MAX_ROW_BYTES, type SessionStore } from '../../src/session/store/session-store.ts';
import { SizedCache } from '../helpers/sized-cache.ts';

/** Commits a conversation as turns do. */
class Conversation {
  readonly store: SessionStore;
  readonly cache: SizedCache;
  /** Whether what can be stored before the commit is. */
  readonly spills: boolean;
  last: CommitResult | undefined;
  #messages: LoggedMessage[] = [];
  readonly #known = new StateRows();

  constructor(cache: SizedCache, spills: boolean, store: SessionStore = new MemoryStore()) {
    this.cache = cache;
    this.spills = spills;
    this.store = store;
  }

  /** A turn: a question, an answer of `answer` tokens, checkpoints 1,024 apart, and the last commit; rows and bytes are all that it writes after the checkpoints. */
  turn(question: number, answer: number): CommitResult & { committed: number } {
    const prompt = this.cache.position + question;
    const asked: LoggedMessage = { role: 'user', content: 'q'.repeat(question * 3), end: prompt };
    while (prompt - this.cache.position > 1_024) {
      this.cache.feed(1_024 - (this.cache.position % 128));
      this.#commit([...this.#messages, asked], prompt);
      expect(this.last!.rows).toBeLessThanOrEqual(MAX_COMMIT_FACTOR * COMMIT_ROWS);
    }
    this.cache.feed(prompt - this.cache.position);
    let [rows, bytes] = [0, 0];
    for (let token = 1; token < answer; token++) {
      this.cache.feed(1);
      const what = spillable(this.cache, this.last?.stored);
      if (!this.spills || !what) continue;
      const { head, stored } = this.last!;
      const spilled = spill(this.store, head.states, this.cache, stored, what, [], this.#known);
      this.last = { ...this.last!, stored: spilled.stored };
      rows += spilled.rows;
      bytes += spilled.bytes;
    }
    const said: LoggedMessage = {
      role: 'assistant',
      content: 'a'.repeat(answer * 3),
      end: prompt + answer,
      prompt,
    };
    this.#messages.push(asked, said);
    this.#commit(this.#messages, prompt + answer, rows);
    // The next turn feeds the last token.
    this.cache.feed(1);
    const { rows: committed, bytes: last } = this.last!;
    return { ...this.last!, rows: rows + committed, bytes: bytes + last, committed: last };
  }

  #commit(messages: LoggedMessage[], ids: number, spilled = 0): void {
    const log = {
      messages,
      ids: Array.from({ length: ids }, (_, i) => i % 49_152),
      fed: this.cache.position,
    };
    const head = { id: 'x', implicit: false, log, states: this.last?.head.states ?? [] } as unknown as Head;
    this.last = commit(this.store, head, this.cache, this.last?.stored, [], this.#known, spilled);
  }
}

for (const [name, ratio, changes, spills] of [
  ['10x, every block changed by every plan, spilled', 10, true, true],
  ['4x, every block changed by every plan, spilled', 4, true, true],
  ['4x, every block changed by every plan, at the end', 4, true, false],
  ['full, nothing changes, spilled', 1, false, true],
] as const)
  test(`7,000 tokens at ${name}: at most ${COMMIT_ROWS} rows a turn of about 100 tokens, bounded journal, no rows lost or leaked`, () => {
    const talk = new Conversation(new SizedCache(ratio, changes), spills);
    talk.turn(6_900, 20);
    let [journal, rows, bytes, committed] = [0, 0, 0, 0];
    for (let turn = 0; turn < 12; turn++) {
      const result = talk.turn(60, 40);
      rows = Math.max(rows, result.rows);
      bytes = Math.max(bytes, result.bytes);
      committed = Math.max(committed, result.committed);
      const { store } = talk;
      const { head } = readHead(store)!;
      expect(head.states).toEqual(result.head.states);
      const records = head.states.map((entry) => readState(store, entry));
      journal = Math.max(journal, records.at(-1)!.journal.flatMap(({ positions }) => positions).length);

      // Extents divide the blocks of every kept state without a gap, pieces its exact tokens, and every row referred to is there.
      for (const { extents, exact, header } of records) {
        let next = 0;
        for (const { first, count } of extents) {
          expect(first).toBe(next);
          next += count;
        }
        expect(next).toBe(30 * header.segments);
        expect(exact.pieces.length).toBeLessThanOrEqual(MAX_EXACT_PIECES + 1);
        for (const [i, { to }] of exact.pieces.entries())
          expect(to).toBe(exact.pieces[i + 1]?.from ?? header.position);
        expect(exact.pieces[0]!.from).toBeLessThanOrEqual(header.segments * 128);
      }
      const sizes = new Map<number, number>();
      for (const [i, entry] of head.states.entries())
        for (const [row, , size] of [...entry.refs, ...refsOf(records[i]!)]) sizes.set(row, size);
      const ids = store.ids();
      const present = new Set(ids);
      for (const row of sizes.keys()) expect(present.has(row)).toBe(true);
      const loose = ids.filter((id) => id >= FIRST_FREE_ROW && !sizes.has(id));
      // A long prefill may leave more; it is cleared away within the budget of the next turns.
      if (turn > 2) expect(loose.length).toBeLessThanOrEqual(SPARE_ROWS + COMMIT_ROWS);

      // What checkpoints hold beside the current state keeps to its quota.
      const current = new Set([...refsOf(records.at(-1)!)].map(([row]) => row));
      const beside = [...sizes].reduce((sum, [row, size]) => sum + (current.has(row) ? 0 : size), 0);
      expect(beside).toBeLessThanOrEqual(CHECKPOINT_QUOTA_BYTES);
    }
    console.info(
      `${name}: at most ${rows} rows and ${bytes} bytes a turn, ${committed} of its commit, ${journal} plans in the journal, stored ${JSON.stringify(talk.store.size())}`,
    );
    expect(rows).toBeLessThanOrEqual(COMMIT_ROWS);
    expect(journal).toBeLessThanOrEqual(changes ? 2 * REWRITE_EPOCHS : 0);
    for (const id of talk.store.ids()) expect(talk.store.get(id)!.length).toBeLessThanOrEqual(MAX_ROW_BYTES);
  }, 60_000);
