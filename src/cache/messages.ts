import { CorruptDataError } from '../core/errors.ts';

/** Token ids that a message of a role begins with under the model's chat template. */
export interface MessageMark {
  readonly role: 'system' | 'user' | 'assistant';
  readonly ids: readonly number[];
}

/** What a message is to quotas: instructions, a long text that was handed over, or what was said in turn. */
export type SpanClass = 'system' | 'documents' | 'turns';
export const SPAN_CLASSES: readonly SpanClass[] = ['system', 'documents', 'turns'];
/** A message of the user or the assistant with so many tokens is a document. */
export const DOCUMENT_TOKENS = 512;

/** Positions [start, end) of one message, its markup included. */
export interface MessageSpan {
  readonly start: number;
  readonly end: number;
  readonly class: SpanClass;
}

interface Start {
  readonly at: number;
  readonly role: MessageMark['role'];
}

/**
 * Where messages begin in the token ids that a cache was fed: a pure function of the ids, however they were divided. What somebody writes cannot begin
 * a message, since a template's special tokens are never made from text.
 */
export class MessageMap {
  readonly #marks: readonly MessageMark[];
  readonly #longest: number;
  /** Before and after the ids heard last: a chunk that failed is heard again. */
  #before: { end: number; tail: readonly number[]; starts: readonly Start[] };
  #now: { end: number; tail: readonly number[]; starts: readonly Start[] };

  constructor(marks: readonly MessageMark[]) {
    this.#marks = marks;
    this.#longest = Math.max(...marks.map((m) => m.ids.length));
    this.#now = { end: 0, tail: [], starts: [] };
    this.#before = this.#now;
  }

  /** Ids at position and following. */
  hear(position: number, ids: readonly number[]): void {
    if (position === this.#before.end) this.#now = this.#before;
    if (position !== this.#now.end)
      throw new Error(`ids of ${position} come after those of ${this.#now.end}`);
    this.#before = this.#now;
    const { tail, starts } = this.#now;
    const line = [...tail, ...ids];
    const first = position - tail.length;
    const found = [...starts];
    for (let i = 0; i < line.length; i++)
      for (const { role, ids: mark } of this.#marks)
        if (line[i] === mark[0] && i + mark.length > tail.length && mark.every((id, j) => line[i + j] === id))
          found.push({ at: first + i, role });
    this.#now = {
      end: position + ids.length,
      tail: line.slice(Math.max(0, line.length - this.#longest + 1)),
      starts: found,
    };
  }

  /** The messages of positions before `end`; what comes before the first counts as a turn. */
  spans(end: number): MessageSpan[] {
    const starts = this.#now.starts.filter(({ at }) => at < end);
    const from = starts[0]?.at === 0 ? starts : [{ at: 0, role: undefined }, ...starts];
    return from.map(({ at, role }, i) => {
      const until = from[i + 1]?.at ?? end;
      const long = role !== undefined && until - at >= DOCUMENT_TOKENS;
      return { start: at, end: until, class: role === 'system' ? 'system' : long ? 'documents' : 'turns' };
    });
  }

  /** For a stored state: `system 0, user 57 | 1 520`, the last ids behind the bar. */
  get text(): string {
    const { starts, tail } = this.#now;
    return `${starts.map(({ role, at }) => `${role} ${at}`).join(', ')} | ${tail.join(' ')}`;
  }
  /** @throws CorruptDataError */
  restore(text: string, position: number): void {
    const [starts, tail, ...more] = text.split(' | ');
    const ids = (tail ?? '')
      .split(' ')
      .filter((id) => id !== '')
      .map(Number);
    const parsed = (starts ?? '')
      .split(', ')
      .filter((part) => part !== '')
      .map((part): Start => {
        const [role, at] = part.split(' ');
        const mark = this.#marks.find((m) => m.role === role);
        if (!mark || !(Number(at) < position)) throw new CorruptDataError(`messages say "${part}"`);
        return { role: mark.role, at: Number(at) };
      });
    if (
      more.length > 0 ||
      ids.some((id) => !Number.isInteger(id)) ||
      ids.length !== Math.min(position, this.#longest - 1) ||
      parsed.some(({ at }, i) => !Number.isInteger(at) || at < 0 || (i > 0 && at <= parsed[i - 1]!.at))
    )
      throw new CorruptDataError(`messages "${text}" do not parse`);
    this.#now = { end: position, tail: ids, starts: parsed };
    this.#before = this.#now;
  }
}
