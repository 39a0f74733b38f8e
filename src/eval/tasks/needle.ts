import { hash32, uniform01 } from '../../core/random.ts';
import type { ModelEngine } from '../../engine/engine.ts';
import type { DataFolder } from '../data.ts';
import { containsAll, startsWith } from '../metrics/match.ts';
import { chatIds, type Prompt, promptTask } from '../prompt-task.ts';
import type { Sample, Task } from '../task.ts';

const ESSAYS = 'haystack/paulgraham_49essays.jsonl.gz';
/** RULER's noise haystack. */
const NOISE = 'The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n';
const KEYS =
  'anchor basket candle desert engine feather glacier hammer insect jacket kitten lemon mountain notebook ocean parrot quarry river sailor tunnel uncle village whistle yard zipper bridge castle dolphin eagle fountain guitar harvest'.split(
    ' ',
  );
const DIGITS = 5;
/** A number, a full stop and a little more. */
const ANSWER_TOKENS = DIGITS + 5;
/** Samples spread over the depths of the text in this many steps, whatever their number; so many in a row look into the same haystack. */
const DEPTHS = 10;

export type Haystack = 'essay' | 'noise';

interface Wording {
  readonly intro: string;
  readonly needle: (key: string, value: string) => string;
  readonly question: (key: string) => string;
  readonly answer: (key: string) => string;
}

/** RULER's niah (NVIDIA/RULER, scripts/data/synthetic), one query and one value, with 5 digits for its 7; the answer's beginning stands in the assistant's turn. */
export const RULER: Wording = {
  intro:
    'A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the number afterwards.\n',
  needle: (key, value) => `One of the special magic numbers for ${key} is: ${value}.`,
  question: (key) => `\nWhat is the special magic number for ${key} mentioned in the provided text?`,
  answer: (key) => `The special magic number for ${key} mentioned in the provided text is`,
};

const PASSKEY: Wording = {
  intro:
    'There is an important pass key hidden in the text below. Find it and memorize it. I will quiz you about the pass key afterwards.\n\n',
  needle: (_, value) => `The pass key is ${value}. Remember it. ${value} is the pass key.`,
  question: () => '\n\nWhat is the pass key?',
  answer: () => 'The pass key is',
};

export interface NeedleOptions {
  readonly haystack: Haystack;
  readonly wording: Wording;
  /** Needles in the text; the first is asked for. */
  readonly keys: number;
}

export interface NeedlePrompt extends Prompt {
  /** The asked needle's place: token positions [start, end) in ids. */
  readonly needle: { readonly start: number; readonly end: number };
}

/** Depth of the i-th sample, 0 to 1: neighbours in number lie apart in depth, so that few samples cover all of it. */
const depthOf = (sample: number): number => ((sample * 7) % DEPTHS) / DEPTHS + 0.5 / DEPTHS;

/** A prompt of at most `length` tokens, answer included, and at most a sentence shorter. */
export async function needlePrompt(
  { engine, data, length, sample, seed }: Sample,
  { haystack, wording, keys }: NeedleOptions,
): Promise<NeedlePrompt> {
  const order = KEYS.map((key, i) => ({ key, at: hash32(seed, sample, length, i) })).sort(
    (a, b) => a.at - b.at,
  );
  const needles = order.slice(0, keys).map(({ key }, i) => ({
    key,
    value: Array.from({ length: DIGITS }, (_, d) => hash32(seed, sample, length, 100 + i, d) % 10).join(''),
    depth: i === 0 ? depthOf(sample) : uniform01(seed, sample, length, 200 + i),
  }));
  const asked = needles[0]!;
  const source = await haystackText(
    data,
    haystack,
    uniform01(seed, Math.floor(sample / DEPTHS), length, 300),
  );
  const overhead = chatIds(
    engine,
    wording.intro +
      needles.map((n) => `\n${wording.needle(n.key, n.value)}\n`).join('') +
      wording.question(asked.key),
    wording.answer(asked.key),
  ).length;
  for (let room = length - ANSWER_TOKENS - overhead; ; ) {
    if (room < 1) throw new Error(`no room for a haystack in ${length} tokens: raise --lengths`);
    const text = cutTo(engine, source, room);
    const { body, at } = hide(
      text,
      needles.map((n) => ({ ...n, text: wording.needle(n.key, n.value) })),
    );
    const content = wording.intro + body + wording.question(asked.key);
    const ids = chatIds(engine, content, wording.answer(asked.key));
    const excess = ids.length + ANSWER_TOKENS - length;
    if (excess > 0) {
      room -= excess;
      continue;
    }
    // The template writes what follows the content; counted from the end, the needle's place needs no knowledge of what comes before.
    const rest = (from: number): number => engine.tokenizer.encode(content.slice(from)).length;
    const tail = ids.length - contentEnd(engine, ids, content);
    const start = ids.length - tail - rest(wording.intro.length + at);
    const end =
      ids.length - tail - rest(wording.intro.length + at + wording.needle(asked.key, asked.value).length);
    return {
      ids,
      answers: [asked.value],
      maxTokens: ANSWER_TOKENS,
      needle: { start, end },
      // Up to the needle the text is the haystack's own; other needles may stand anywhere.
      shared: keys === 1 ? start : 0,
      detail: { depth: asked.depth, key: asked.key, needle: [start, end] },
    };
  }
}

/** Where the user's content ends in the ids of the conversation. */
function contentEnd(engine: ModelEngine, ids: readonly number[], content: string): number {
  const last = engine.tokenizer.encode(content.slice(-40)).at(-1)!;
  const end = ids.lastIndexOf(last);
  if (end < 0) throw new Error('the chat template changes the content of messages');
  return end + 1;
}

async function haystackText(data: DataFolder, haystack: Haystack, at: number): Promise<string> {
  if (haystack === 'noise') return NOISE;
  const essays = await data.jsonLines<{ text: string }>(ESSAYS);
  const all = essays.map((e) => `${e.text.trim()}\n\n`).join('');
  const from = all.indexOf('. ', Math.floor(all.length * at)) + 2;
  return all.slice(from) + all.slice(0, from);
}

/** Text of at most `tokens` tokens, the source repeated where it is too short. */
function cutTo(engine: ModelEngine, source: string, tokens: number): string {
  const wanted = tokens * 8;
  const text = source.repeat(Math.ceil(wanted / source.length)).slice(0, wanted);
  return engine.tokenizer.decode(engine.tokenizer.encode(text).slice(0, tokens));
}

/** Puts each needle on a line of its own after the sentence end that is nearest to its depth; `at`: where the first one begins. */
function hide(
  text: string,
  needles: readonly { text: string; depth: number }[],
): { body: string; at: number } {
  const ends = [0, ...[...text.matchAll(/[.!?](?=\s)/g)].map((m) => m.index + 1)];
  const placed = needles
    .map((n, i) => ({
      ...n,
      first: i === 0,
      place: ends.reduce((best, e) =>
        Math.abs(e - n.depth * text.length) < Math.abs(best - n.depth * text.length) ? e : best,
      ),
    }))
    .sort((a, b) => a.place - b.place);
  let body = '';
  let from = 0;
  let at = 0;
  for (const n of placed) {
    body += `${text.slice(from, n.place)}\n`;
    if (n.first) at = body.length;
    body += `${n.text}\n`;
    from = n.place;
  }
  return { body: body + text.slice(from), at };
}

function needleTask(name: string, description: string, options: NeedleOptions): Task {
  return promptTask({
    name,
    description,
    version: 2,
    metrics: [
      {
        name: 'exact',
        label: 'answer begins with the number',
        unit: '%',
        better: 'higher',
        kind: 'rate',
        chance: 1e-5,
      },
      {
        name: 'match',
        label: 'answer contains the number',
        unit: '%',
        better: 'higher',
        kind: 'rate',
        chance: 1e-5,
      },
    ],
    files: options.haystack === 'essay' ? [ESSAYS] : [],
    lengths: [1024, 2048],
    group: { size: DEPTHS, order: depthOf },
    count: async () => Number.POSITIVE_INFINITY,
    build: (context) => needlePrompt(context, options),
    score: (prediction, { answers }) => ({
      exact: startsWith(prediction, answers[0]!),
      match: containsAll(prediction, answers),
    }),
  });
}

export const needleTasks: readonly Task[] = [
  needleTask('needle-essay', 'RULER niah_single_2 with 5 digits: one number in essays', {
    haystack: 'essay',
    wording: RULER,
    keys: 1,
  }),
  needleTask('needle-noise', 'RULER niah_single_1 with 5 digits: one number in repeated sentences', {
    haystack: 'noise',
    wording: RULER,
    keys: 1,
  }),
  needleTask(
    'needle-multikey',
    'RULER niah_multikey_1 with 5 digits: four numbers in essays, one asked for',
    {
      haystack: 'essay',
      wording: RULER,
      keys: 4,
    },
  ),
  needleTask('passkey-essay', 'a pass key in essays', { haystack: 'essay', wording: PASSKEY, keys: 1 }),
  needleTask('passkey-noise', 'a pass key in repeated sentences', {
    haystack: 'noise',
    wording: PASSKEY,
    keys: 1,
  }),
];
