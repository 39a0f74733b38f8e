import { hash32 } from '../../core/random.ts';
import { containsAll, startsWith } from '../metrics/match.ts';
import { chatIds, promptTask } from '../prompt-task.ts';
import type { Task } from '../task.ts';

interface Item {
  readonly _id: string;
  readonly ordered_kv_records: readonly (readonly [string, string])[];
}
const FILE = 'kv_retrieval/kv-retrieval-75_keys.jsonl.gz';
/** A UUID takes up to 36 tokens where digits stand alone. */
const ANSWER_TOKENS = 40;

/** Lost-in-the-middle's key-value retrieval (nelson-liu/lost-in-the-middle), its records cut to the first `keys`. */
function kvRetrieval(keys: number): Task {
  const chance = 1 / keys;
  return promptTask({
    name: `kv-retrieval-${keys}`,
    description: `value of one of ${keys} UUID keys in a JSON object`,
    version: 1,
    metrics: [
      {
        name: 'exact',
        label: 'answer begins with the value',
        unit: '%',
        better: 'higher',
        kind: 'rate',
        chance,
      },
      {
        name: 'match',
        label: 'answer contains the value',
        unit: '%',
        better: 'higher',
        kind: 'rate',
        chance,
      },
    ],
    files: [FILE],
    lengths: [0],
    count: async (data) => (await data.jsonLines<Item>(FILE)).length,
    async build({ engine, data, sample, seed }) {
      const item = (await data.jsonLines<Item>(FILE))[sample]!;
      const records = item.ordered_kv_records.slice(0, keys);
      const place = hash32(seed, sample, keys) % records.length;
      const [key, value] = records[place]!;
      const json = `{${records.map(([k, v]) => `"${k}": "${v}"`).join(',\n ')}}`;
      const content = `Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n${json}\n\nKey: "${key}"\nCorresponding value:`;
      return {
        ids: chatIds(engine, content, `"${key}": "`),
        maxTokens: ANSWER_TOKENS,
        answers: [value],
        detail: { id: item._id, depth: place / records.length },
      };
    },
    score: (prediction, { answers }) => ({
      exact: startsWith(prediction, answers[0]!),
      match: containsAll(prediction, answers),
    }),
  });
}

export const kvRetrievalTasks: readonly Task[] = [10, 30, 75].map(kvRetrieval);
