import { CorruptDataError, InvalidInputError } from '../core/errors.ts';
import type { Head } from './head.ts';
import { FIRST_FREE_ROW, headWithin, writeHead } from './head.ts';
import { EMPTY_LOG, prefixOf } from './log.ts';
import { readState, refsOf, type StateEntry } from './state.ts';
import type { SessionStore } from './store/session-store.ts';

/**
 * The session without an answer. Where nothing follows the answer, it and what was asked for it go, with every row that only they needed; where
 * something does, its text is a part of that and stays, and only its record goes: it can be neither read nor gone on from any more.
 * @param count the answer is message `count`, from 1
 * @throws InvalidInputError when there is no such answer
 */
export function unsay(store: SessionStore, head: Head, count: number): Head {
  const { messages } = head.log;
  const answer = messages[count - 1];
  if (answer?.role !== 'assistant')
    throw new InvalidInputError(`message ${count} of the session is no answer`, 'message');
  if (count < messages.length) {
    const { made: _, ...rest } = answer;
    const next: Head = {
      ...head,
      log: { ...head.log, messages: messages.with(count - 1, { ...rest, withdrawn: true }) },
    };
    store.transaction(() => writeHead(store, next));
    return next;
  }
  // Answers that the client brought were a part of the question, and what was deleted earlier stayed for this answer alone.
  const keep =
    messages
      .slice(0, count - 1)
      .findLastIndex(({ role, given, withdrawn }) => role === 'assistant' && !given && !withdrawn) + 1;
  const cut = keep === 0 ? EMPTY_LOG : prefixOf(head.log, keep);
  const used = new Set<number>();
  const states: StateEntry[] = [];
  for (const entry of head.states) {
    if (entry.position > cut.ids.length) continue;
    try {
      const refs = [...entry.refs, ...refsOf(readState(store, entry))];
      for (const [row] of refs) used.add(row);
      states.push(entry);
    } catch (error) {
      // A damaged state is of no use; the log leads to the same.
      if (!(error instanceof CorruptDataError)) throw error;
    }
  }
  const next: Head = {
    ...headWithin(head, cut.ids.length),
    report: null,
    log: { ...cut, fed: states.at(-1)?.position ?? 0 },
    states,
  };
  store.transaction(() => {
    store.delete(store.ids().filter((row) => row >= FIRST_FREE_ROW && !used.has(row)));
    writeHead(store, next);
  });
  return next;
}
