import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { DataFolder } from '../../src/eval/data.ts';
import { classification } from '../../src/eval/metrics/classification.ts';
import { codeSimilarity } from '../../src/eval/metrics/code-similarity.ts';
import { count, retrieval } from '../../src/eval/metrics/numbers.ts';
import { qaF1 } from '../../src/eval/metrics/qa-f1.ts';
import { rougeL } from '../../src/eval/metrics/rouge-l.ts';
import {
  FIRST_LINE,
  fillPrompt,
  LONGBENCH,
  type LongBenchItem,
  RAW,
  scoreExample,
} from '../../src/eval/tasks/longbench.ts';
import { describeShared, sharedPath } from '../helpers/shared.ts';

const METRICS: Record<string, unknown> = {
  ...{ qa_f1: qaF1, 'rouge-L F': rougeL, classification, retrieval, count, code_sim: codeSimilarity },
};
const NAMES = Object.keys(LONGBENCH);

/** The tasks beside the protocol, as it was read from the original's sources, and beside the original's data. */
describeShared('LongBench', () => {
  const folder = sharedPath('evaldata')!;
  const protocol = readFileSync(`${folder}/LONGBENCH_METRICS.md`, 'utf8');
  const data = new DataFolder(folder);
  const named = (pattern: RegExp): string[] => pattern.exec(protocol)![1]!.split(', ').sort();

  test('every dataset has the metric that the protocol names', () => {
    const metrics = new Map(
      [...protocol.matchAll(/^\| ([a-z0-9_ -]+) \| ([^|]+) \|$/gm)].flatMap(([, sets, metric]) =>
        sets!.split(' ').map((set): [string, string] => [set, metric!]),
      ),
    );
    for (const name of NAMES) expect(LONGBENCH[name]!.score).toBe(METRICS[metrics.get(name)!]);
  });

  test('raw prompts and first lines are where the protocol has them', () => {
    expect([...RAW].sort()).toEqual(named(/EXCEPT ([a-z, -]+) \(raw completion/));
    expect([...FIRST_LINE].sort()).toEqual(named(/For ([a-z, ]+) the prediction is first cut/));
  });

  test("answers are as long as the protocol's", async () => {
    const lengths = await data.json<Record<string, number>>('config/longbench_dataset2maxlen.json');
    const groups = /^\((qasper.+?)\)/m.exec(protocol)![1]!.split('; ');
    expect(groups).toHaveLength(4);
    for (const group of groups) {
      const [names, tokens] = group.split(' ') as [string, string];
      for (const pattern of names.split('/'))
        for (const name of NAMES.filter((n) => new RegExp(`^${pattern.replace('*', '.*')}$`).test(n)))
          expect(lengths[name]).toBe(Number(tokens));
    }
  });

  test.each(NAMES)('%s: its prompt takes the item as it is, and the truth gets all points', async (name) => {
    const prompts = await data.json<Record<string, string>>('config/longbench_dataset2prompt.json');
    const file = `longbench/${name}${LONGBENCH[name]!.files[0] === 'fits' ? '' : '.over8k'}.jsonl.gz`;
    const [item] = (await data.jsonLines<LongBenchItem>(file)) as [LongBenchItem];
    const pieces = prompts[name]!.split(/\{context\}|\{input\}/);
    const prompt = fillPrompt(prompts[name]!, item);
    const order = [...prompts[name]!.matchAll(/\{(context|input)\}/g)].map((m) => item[m[1] as 'context']);
    expect(order).toContain(item.context);
    expect(prompt).toBe(pieces.map((piece, i) => piece + (order[i] ?? '')).join(''));
    expect(scoreExample(name, item.answers[0]!, item)).toBeCloseTo(1, 6);
    expect(scoreExample(name, 'zzz', item)).toBe(0);
  });
});
