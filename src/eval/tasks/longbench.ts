import { type DataFolder, MissingDataError } from '../data.ts';
import { classification } from '../metrics/classification.ts';
import { codeSimilarity } from '../metrics/code-similarity.ts';
import { count, retrieval } from '../metrics/numbers.ts';
import { qaF1 } from '../metrics/qa-f1.ts';
import { rougeL } from '../metrics/rouge-l.ts';
import { chatIds, cutMiddle, promptTask } from '../prompt-task.ts';
import type { MetricSpec, Task } from '../task.ts';

/** One line of a LongBench file. */
export interface LongBenchItem {
  readonly _id: string;
  readonly input: string;
  readonly context: string;
  readonly answers: readonly string[];
  readonly all_classes: readonly string[] | null;
}

const PROMPTS = 'config/longbench_dataset2prompt.json';
const LENGTHS = 'config/longbench_dataset2maxlen.json';
/** Completed as raw text, without the chat template. Source: LongBench pred.py. */
export const RAW = new Set(['trec', 'triviaqa', 'samsum', 'lsht', 'lcc', 'repobench-p']);
/** Only the first line of the answer counts. Source: LongBench eval.py. */
export const FIRST_LINE = new Set(['trec', 'triviaqa', 'samsum', 'lsht']);
/** Tokens of the template around the prompt. */
const TEMPLATE_ROOM = 64;

type Score = (prediction: string, truth: string, classes: readonly string[]) => number;
interface Dataset {
  readonly score: Score;
  readonly label: string;
  readonly chance?: number;
  /** Whether there is a file of items that fit into 8k tokens, and one of longer ones, which are cut in the middle. */
  readonly files: readonly ('fits' | 'over8k')[];
}

const qa = (...files: Dataset['files']): Dataset => ({ score: qaF1, label: 'F1', files });
const summary = (...files: Dataset['files']): Dataset => ({ score: rougeL, label: 'ROUGE-L', files });
const code = (): Dataset => ({ score: codeSimilarity, label: 'edit similarity', files: ['fits', 'over8k'] });

export const LONGBENCH: Readonly<Record<string, Dataset>> = {
  narrativeqa: qa('over8k'),
  qasper: qa('fits'),
  multifieldqa_en: qa('fits', 'over8k'),
  hotpotqa: qa('fits', 'over8k'),
  '2wikimqa': qa('fits', 'over8k'),
  musique: qa('over8k'),
  gov_report: summary('fits', 'over8k'),
  qmsum: summary('fits', 'over8k'),
  multi_news: summary('fits', 'over8k'),
  trec: { score: classification, label: 'accuracy', chance: 1 / 50, files: ['fits', 'over8k'] },
  triviaqa: qa('fits', 'over8k'),
  samsum: summary('fits', 'over8k'),
  passage_count: { score: count, label: 'accuracy', chance: 0.05, files: ['fits', 'over8k'] },
  passage_retrieval_en: { score: retrieval, label: 'accuracy', chance: 1 / 30, files: ['fits', 'over8k'] },
  lcc: code(),
  'repobench-p': code(),
};

/** Best score over the answers, as LongBench's eval.py counts an example. */
export function scoreExample(
  dataset: string,
  prediction: string,
  item: Pick<LongBenchItem, 'answers' | 'all_classes'>,
): number {
  const text = FIRST_LINE.has(dataset) ? prediction.replace(/^\n+/, '').split('\n')[0]! : prediction;
  const { score } = LONGBENCH[dataset]!;
  return Math.max(...item.answers.map((truth) => score(text, truth, item.all_classes ?? [])));
}

/** Fills {context} and {input}; texts that hold such words themselves are left as they are. */
export const fillPrompt = (template: string, item: Pick<LongBenchItem, 'context' | 'input'>): string =>
  template.replaceAll(/\{(context|input)\}/g, (_, field: 'context' | 'input') => item[field]);

async function items(data: DataFolder, files: readonly string[]): Promise<LongBenchItem[]> {
  return (await Promise.all(files.map((file) => data.jsonLines<LongBenchItem>(file)))).flat();
}

function longBenchTask(dataset: string): Task {
  const { label, chance, files } = LONGBENCH[dataset]!;
  const paths = files.map((f) => `longbench/${dataset}${f === 'fits' ? '' : '.over8k'}.jsonl.gz`);
  const metric: MetricSpec = {
    name: 'score',
    label,
    unit: '%',
    better: 'higher',
    kind: 'percent',
    ...(chance === undefined
      ? {
          rescore: (prediction, answers) => scoreExample(dataset, prediction, { answers, all_classes: null }),
        }
      : { chance }),
  };
  const itemOf = new WeakMap<object, LongBenchItem>();
  return promptTask({
    name: `longbench-${dataset}`,
    description: `LongBench ${dataset}, official prompt, truncation and metric`,
    version: 1,
    metrics: [metric],
    files: [...paths, PROMPTS, LENGTHS],
    lengths: [0],
    count: async (data) => (await items(data, paths)).length,
    async build({ engine, data, sample, length }) {
      const item = (await items(data, paths))[sample]!;
      const template = (await data.json<Record<string, string>>(PROMPTS))[dataset];
      const maxTokens = (await data.json<Record<string, number>>(LENGTHS))[dataset];
      if (template === undefined || maxTokens === undefined)
        throw new MissingDataError(PROMPTS, data.folder, `has no entry for ${dataset}`);
      const most = (length || engine.model.contextLength) - maxTokens - TEMPLATE_ROOM;
      const text = cutMiddle(engine, fillPrompt(template, item), most);
      const prompt = {
        ids: RAW.has(dataset) ? engine.tokenizer.encode(text) : chatIds(engine, text),
        maxTokens,
        stopAtNewline: dataset === 'samsum',
        answers: item.answers,
        detail: { id: item._id },
      };
      itemOf.set(prompt, item);
      return prompt;
    },
    score: (prediction, prompt) => ({ score: scoreExample(dataset, prediction, itemOf.get(prompt)!) }),
  });
}

export const longBenchTasks: readonly Task[] = Object.keys(LONGBENCH).map(longBenchTask);
