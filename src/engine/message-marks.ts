import type { MessageMark } from '../cache/messages.ts';
import { InvalidInputError } from '../core/errors.ts';
import type { ChatMessage, ChatTemplate } from './types.ts';

/** What a message may begin with: letters, digits, and whitespace that a tokenizer joins with the template's own. */
const CONTENTS = ['Apples', '7', '\n\nx', '  x'] as const;
/** Conversations that end with a message of each role, the likelier first. */
const CONVERSATIONS = [
  [['system']],
  [['system', 'user'], ['user']],
  [
    ['system', 'user', 'assistant'],
    ['user', 'assistant'],
  ],
] as const;

/**
 * The ids that each role's messages begin with whatever they say, found by rendering. A role that the template refuses has none.
 * @throws InvalidInputError where messages cannot be told apart by them
 */
export function messageMarks(template: ChatTemplate): MessageMark[] {
  const marks = CONVERSATIONS.flatMap((ways): MessageMark[] => {
    for (const roles of ways) {
      const begin = (content: string): number[] => {
        const last = roles.length - 1;
        const messages = roles.map((role, i): ChatMessage => ({ role, content: i === last ? content : 'x' }));
        const { ids, spans } = template.encode(messages);
        return ids.slice(spans[last]!.start);
      };
      try {
        const [first, ...others] = CONTENTS.map(begin) as [number[], ...number[][]];
        const end = first.findIndex((id, i) => others.some((other) => other[i] !== id));
        return [{ role: roles[roles.length - 1]!, ids: first.slice(0, Math.max(end, 0)) }];
      } catch (error) {
        if (!(error instanceof InvalidInputError)) throw error;
      }
    }
    return [];
  });
  const begins = (a: MessageMark, b: MessageMark): boolean =>
    a !== b && a.ids.every((id, i) => b.ids[i] === id);
  if (marks.length === 0 || marks.some((a) => marks.some((b) => begins(a, b))))
    throw new InvalidInputError(
      "quotas need a chat template whose roles begin with tokens of their own: this model's do not",
      'quotas',
    );
  return marks;
}
