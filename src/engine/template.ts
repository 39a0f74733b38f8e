import { Template } from '@huggingface/jinja';
import { InvalidInputError, UnsupportedModelError } from '../core/errors.ts';
import type { ModelTokenizer } from './tokenizer.ts';
import type { ChatMessage, ChatTemplate } from './types.ts';

/**
 * The model's own chat template. `render` gives its text; `encode` gives ids in which special tokens come from the template alone: what a message
 * says is characters, whatever it looks like.
 * @param template the model's Jinja template; null where it has none: every call is then refused
 * @param ends what the template's `bos_token` and `eos_token` stand for
 * @throws UnsupportedModelError when the template cannot be parsed
 */
export function createTemplate(
  template: string | null,
  tokenizer: ModelTokenizer,
  ends: { readonly bosId: number | null; readonly eosIds: readonly number[] },
): ChatTemplate {
  const token = (id: number | null | undefined): string => (id == null ? '' : tokenizer.decode([id]));
  const globals = { bos_token: token(ends.bosId), eos_token: token(ends.eosIds[0]) };
  let parsed: Template | undefined;
  try {
    parsed = template === null ? undefined : new Template(template);
  } catch (error) {
    throw new UnsupportedModelError(`the chat template cannot be parsed: ${(error as Error).message}`);
  }

  const render: ChatTemplate['render'] = (messages, { addGenerationPrompt = false } = {}) => {
    if (!parsed)
      throw new InvalidInputError(
        'this model has no chat template: give token ids instead of messages',
        'messages',
      );
    try {
      return parsed.render({
        ...globals,
        messages: messages.map(({ role, content }) => ({ role, content })),
        add_generation_prompt: addGenerationPrompt,
      });
    } catch (error) {
      // Templates raise exceptions on roles or orders that the model does not know.
      throw new InvalidInputError(
        `the chat template refuses the messages: ${(error as Error).message}`,
        'messages',
      );
    }
  };

  return {
    render,
    encode(messages, { addGenerationPrompt = false } = {}) {
      const text = render(messages, { addGenerationPrompt });
      const contents = locateContents(
        messages,
        text,
        (marked) => render(marked, { addGenerationPrompt }),
        tokenizer,
      );
      const ends = messageEnds(messages, text, contents, render);
      const ids: number[] = [];
      const spans: { start: number; end: number }[] = [];
      let start = 0;
      for (const piece of tokenizer.split(text, contents)) {
        const pieceIds = piece.special === undefined ? tokenizer.encode(piece.text) : [piece.special];
        const pieceEnd = piece.start + piece.text.length;
        while (spans.length < ends.length && ends[spans.length]! <= pieceEnd) {
          const inside = ends[spans.length]! - piece.start;
          const end =
            inside === piece.text.length
              ? ids.length + pieceIds.length
              : ids.length + agreeing(tokenizer.encode(piece.text.slice(0, inside)), pieceIds);
          spans.push({ start, end });
          start = end;
        }
        for (const id of pieceIds) ids.push(id);
      }
      while (spans.length < ends.length) spans.push({ start: ids.length, end: ids.length });
      return { ids, spans };
    },
  };
}

/** A boundary within a run of text: the tokens before it are those that the text up to there has by itself. */
function agreeing(a: readonly number[], b: readonly number[]): number {
  let n = 0;
  while (n < a.length && a[n] === b[n]) n++;
  return n;
}

interface Range {
  readonly start: number;
  readonly end: number;
}

/** Noncharacters: valid in a string, meaningless in a text. https://www.unicode.org/faq/private_use.html#noncharacters */
const MARKERS = Array.from({ length: 32 }, (_, i) => String.fromCharCode(0xfdd0 + i));

/**
 * Where each message's content stands in the rendered text. The template is rendered once more with a mark before and after each
 * content (inside of its outer white space, which templates may trim), and must give the same text around the marks.
 */
function locateContents(
  messages: readonly ChatMessage[],
  text: string,
  render: (messages: ChatMessage[]) => string,
  tokenizer: ModelTokenizer,
): Range[] {
  const [open, close] = MARKERS.filter((mark) => messages.every((m) => !m.content.includes(mark)));
  if (open === undefined || close === undefined)
    throw new InvalidInputError('the messages hold too many different Unicode noncharacters', 'messages');
  const marked = messages.map(({ role, content }): ChatMessage => {
    const lead = content.length - content.trimStart().length;
    const end = Math.max(lead, content.trimEnd().length);
    return {
      role,
      content: content.slice(0, lead) + open + content.slice(lead, end) + close + content.slice(end),
    };
  });
  let found: { plain: string; ranges: Range[] } | undefined;
  try {
    found = strip(render(marked), open, close);
  } catch {
    found = undefined;
  }
  if (found?.plain === text && found.ranges.length === messages.length) return found.ranges;
  // The template rewrites contents. That is harmless as long as none of them could be mistaken for markup.
  messages.forEach((message, i) => {
    if (tokenizer.split(message.content).some((piece) => piece.special !== undefined))
      throw new InvalidInputError(
        `messages[${i}].content holds the text of a special token, which this model's template does not keep apart`,
        `messages[${i}].content`,
      );
  });
  return [];
}

function strip(marked: string, open: string, close: string): { plain: string; ranges: Range[] } | undefined {
  let plain = '';
  const ranges: Range[] = [];
  for (let at = 0; ; ) {
    const from = marked.indexOf(open, at);
    if (from < 0) {
      plain += marked.slice(at);
      return plain.includes(close) ? undefined : { plain, ranges };
    }
    const to = marked.indexOf(close, from);
    if (to < 0) return undefined;
    plain += marked.slice(at, from);
    const start = plain.length;
    plain += marked.slice(from + 1, to);
    ranges.push({ start, end: plain.length });
    at = to + 1;
  }
}

/**
 * Where each message ends in the rendered text, its markup included: the length of the conversation rendered up to it. Markup between two
 * contents repeats with the roles, so one rendering for each kind of passage is enough. Where a template does not render a prefix of the conversation
 * as a prefix of the text, a message ends where the next one's content begins.
 */
function messageEnds(
  messages: readonly ChatMessage[],
  text: string,
  contents: readonly Range[],
  render: ChatTemplate['render'],
): number[] {
  const tails = new Map<string, number | undefined>();
  const exact = (i: number): number | undefined => {
    let prefix: string;
    try {
      prefix = render(messages.slice(0, i + 1));
    } catch {
      return undefined;
    }
    return text.startsWith(prefix) ? prefix.length : undefined;
  };
  const ends: number[] = [];
  messages.forEach((message, i) => {
    const content = contents[i];
    const nextStart = contents[i + 1]?.start ?? text.length;
    let end: number | undefined;
    if (content) {
      const key = JSON.stringify([message.role, messages[i + 1]?.role, text.slice(content.end, nextStart)]);
      if (!tails.has(key)) {
        const at = exact(i);
        tails.set(key, at === undefined || at < content.end ? undefined : at - content.end);
      }
      const tail = tails.get(key);
      end = tail === undefined ? undefined : content.end + tail;
    } else end = exact(i);
    ends.push(Math.max(ends.at(-1) ?? 0, Math.min(end ?? nextStart, text.length)));
  });
  return ends;
}
