import { containsAny } from '../metrics/match.ts';
import { chatIds, promptTask } from '../prompt-task.ts';
import type { Task } from '../task.ts';

interface Item {
  readonly _id: string;
  readonly task: string;
  readonly input: string;
  readonly context: string;
  readonly answers: readonly string[];
}

/** An own, short wording: the published one shows examples, which a small model repeats instead of answering. */
const INTRO =
  'The following text hides facts about people, places and things among other sentences. Remember the facts: I will ask about them.\n\n';
const ANSWER_TOKENS = 12;
/** Always giving the most frequent answer of each of the five questions: (6 + 7 + 6 + 5 + 6) of 100. */
const MAJORITY = 0.3;

function babilong(size: '4k' | '8k'): Task {
  const file = `babilong/babilong_${size}.jsonl.gz`;
  return promptTask({
    name: `babilong-${size}`,
    description: `BABILong qa1 to qa5 in ${size} of PG-19 text`,
    version: 1,
    metrics: [
      {
        name: 'match',
        label: 'answer contains the word',
        unit: '%',
        better: 'higher',
        kind: 'rate',
        chance: MAJORITY,
      },
    ],
    files: [file],
    lengths: [0],
    count: async (data) => (await data.jsonLines<Item>(file)).length,
    async build({ engine, data, sample }) {
      const all = await data.jsonLines<Item>(file);
      // The file holds one kind of question after the other: take them in turn.
      const kinds = [...new Set(all.map((i) => i.task))];
      const ofKind = all.filter((i) => i.task === kinds[sample % kinds.length]);
      const item = ofKind[Math.floor(sample / kinds.length) % ofKind.length]!;
      const content = `${INTRO}${item.context}\n\nAnswer in one word. ${item.input.trim()}`;
      return {
        ids: chatIds(engine, content, 'Answer:'),
        maxTokens: ANSWER_TOKENS,
        answers: item.answers,
        detail: { id: item._id, kind: item.task },
      };
    },
    score: (prediction, { answers }) => ({ match: containsAny(prediction, answers) }),
  });
}

export const babilongTasks: readonly Task[] = [babilong('4k'), babilong('8k')];
