import { mkdirSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { writeBundle } from '../../src/prepare/bundle.ts';
import { openModel } from '../../src/prepare/open-model.ts';
import { type TinyOptions, writeTinyGguf } from './tiny-gguf.ts';

const WORDS =
  'the meeting began at ten and nobody had read the report that the manager wrote last week'.split(' ');

/** Text without meaning, the same each time. */
export const filler = (words: number, from = 0): string =>
  Array.from(
    { length: words },
    (_, i) => `${WORDS[((i + from) * 7 + ((i + from) >> 3)) % WORDS.length]}${i % 11 === 10 ? '.' : ''}`,
  ).join(' ');

const item = (i: number) => ({
  _id: `item-${i}`,
  input: `What is number ${i}?`,
  context: filler(60, i),
  answers: [`number ${i}`],
  all_classes: null,
});

/** A tiny model of random weights, prepared, and data in the shape of the evaluation's, made up. */
export async function evalFixture(options: TinyOptions = {}) {
  const folder = await mkdtemp(join(tmpdir(), 'adkvc-eval-'));
  const bundle = join(folder, 'bundle');
  const data = join(folder, 'data');
  const source = await openModel(writeTinyGguf(join(folder, 'tiny.gguf'), options));
  const exactBundle = join(folder, 'bundle-exact');
  await writeBundle(source, bundle, { form: 'compact' });
  await writeBundle(source, exactBundle, { form: 'exact' });
  await source.close();
  const file = (name: string, text: string): void => {
    const path = join(data, name);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, name.endsWith('.gz') ? gzipSync(text) : text);
  };
  const lines = (name: string, values: readonly unknown[]): void =>
    file(name, values.map((v) => `${JSON.stringify(v)}\n`).join(''));
  lines(
    'books/pg19_test.jsonl.gz',
    [0, 1, 2].map((i) => ({ _id: `book-${i}`, text: 'x'.repeat(20_000) + filler(2000, i * 31) })),
  );
  lines('haystack/paulgraham_49essays.jsonl.gz', [{ text: filler(400) }, { text: filler(400, 77) }]);
  lines('longbench/qasper.jsonl.gz', [item(0), item(1)]);
  file(
    'config/longbench_dataset2prompt.json',
    JSON.stringify({ qasper: 'Article: {context}\n\nQuestion: {input}\nAnswer:' }),
  );
  file('config/longbench_dataset2maxlen.json', JSON.stringify({ qasper: 8 }));
  lines('babilong/babilong_4k.jsonl.gz', [
    { _id: 'b-0', task: 'qa1', input: 'Where is Mary? ', context: filler(40), answers: ['garden'] },
    { _id: 'b-1', task: 'qa2', input: 'Where is the milk? ', context: filler(40, 5), answers: ['kitchen'] },
  ]);
  lines('kv_retrieval/kv-retrieval-75_keys.jsonl.gz', [
    { _id: 'kv-0', ordered_kv_records: Array.from({ length: 75 }, (_, i) => [`key-${i}`, `value-${i}`]) },
  ]);
  lines('chat/qmsum_multiquery.jsonl.gz', [
    {
      _id: 'meeting-0',
      context: filler(80),
      queries: [0, 1, 2].map((i) => ({ input: `Question ${i}?`, answer: `Answer ${i}.` })),
    },
  ]);
  lines('chat/locomo10.jsonl.gz', [
    {
      _id: 'talk-0',
      sessions: [
        {
          session: 1,
          date_time: '1 May',
          turns: [
            { speaker: 'Ann', dia_id: 'D1:1', text: 'I have a cat.' },
            { speaker: 'Bo', dia_id: 'D1:2', text: filler(12) },
          ],
        },
        { session: 2, date_time: '9 May', turns: [{ speaker: 'Ann', dia_id: 'D2:1', text: filler(2000) }] },
      ],
      qa: [
        { question: 'What does Ann have?', answer: 'a cat', evidence: ['D1:1'], category: 1 },
        { question: 'What came later?', answer: 'rain', evidence: ['D2:1'], category: 1 },
        { question: 'Which dog?', evidence: ['D1:1'], category: 5 },
      ],
    },
  ]);
  return { folder, bundle, exactBundle, data, remove: () => rm(folder, { recursive: true, force: true }) };
}
