import { DEFAULT_CACHE } from '../cache/policy.ts';
import { EPOCH } from '../core/config.ts';
import { InvalidInputError } from '../core/errors.ts';
import { uniform01 } from '../core/random.ts';
import type { ModelEngine } from '../engine/engine.ts';
import { GREEDY, sample } from '../engine/sampler.ts';
import type { CalibrationItem } from './calibrate.ts';

/** Tokens scored after a prefix: the most that fit an epoch. */
const TAIL = EPOCH - 1;
const DIGITS = 5;
const KEYS =
  'barley cobalt dagger ember flute gravel harp ivory jasper kiln lemon moss nectar otter plum quill raven spruce thimble velvet'.split(
    ' ',
  );

export interface CalibrationPlan {
  /** Ids that texts and haystacks are cut from, one list a source. */
  readonly sources: readonly (readonly number[])[];
  readonly texts: number;
  readonly needles: number;
  /** Tokens of a text's past and of a needle's haystack; multiples of 128. */
  readonly context: number;
  readonly needleContext: number;
  readonly seed: number;
  /** false: the model has no chat template, and its needle prompts are plain text. */
  readonly chat?: boolean;
}

/** What turns text into ids. */
type TextParts = Pick<ModelEngine, 'tokenizer' | 'template'>;

/** Cuts texts and makes needle prompts. @throws Error when the sources are too short */
export function calibrationItems(engine: TextParts, plan: CalibrationPlan): CalibrationItem[] {
  const cut = (index: number, length: number, what: number): number[] => {
    const usable = plan.sources.filter((s) => s.length >= length);
    if (usable.length === 0)
      throw new InvalidInputError(
        `no calibration text has ${length} tokens: give longer ones with --text, or a smaller --context`,
        '--text',
      );
    const source = usable[index % usable.length]!;
    const at = Math.floor(uniform01(plan.seed, what, index) * (source.length - length + 1));
    return source.slice(at, at + length);
  };
  const texts = Array.from({ length: plan.texts }, (_, i): CalibrationItem => {
    const prefix = plan.context;
    return { kind: 'text', ids: cut(i, prefix + TAIL, 1), prefix };
  });
  const needles = Array.from({ length: plan.needles }, (_, i) =>
    needleItem(engine, plan, i, (length) => cut(i, length, 2)),
  );
  return [...texts, ...needles];
}

/** A number hidden in a text, asked for afterwards: the question stands after the past, the answer is known. */
function needleItem(
  engine: TextParts,
  plan: CalibrationPlan,
  index: number,
  cut: (length: number) => number[],
): CalibrationItem {
  const { tokenizer, template } = engine;
  const key = KEYS[Math.floor(uniform01(plan.seed, 3, index) * KEYS.length)]!;
  const value = Array.from({ length: DIGITS }, (_, d) =>
    Math.floor(uniform01(plan.seed, 4, index, d) * 10),
  ).join('');
  const [before, after] = plan.chat === false ? ['', '\n'] : aroundContent(template);
  const encode = (text: string): number[] => tokenizer.encode(text, { specials: true });
  const head = encode(
    `${before}Somewhere in this text a secret number is given. Remember it, you will be asked for it later.\n`,
  );
  const needle = encode(`\nThe secret number of the ${key} is: ${value}.\n`);
  const tail = encode(
    `\nWhat is the secret number of the ${key} that the text gives?${after}The secret number of the ${key} that the text gives is`,
  );
  const answer = encode(` ${value}`);
  const room = plan.needleContext - head.length - needle.length;
  const hay = cut(room);
  // Clear of the start and of what is still in the window: only the past is damaged.
  const last = room - DEFAULT_CACHE.window - 32;
  const at = Math.floor(((index + 0.5) / plan.needles) * last);
  const ids = [...head, ...hay.slice(0, at), ...needle, ...hay.slice(at), ...tail, ...answer];
  return { kind: 'needle', ids, prefix: plan.needleContext, answer: answer.length };
}

/** What the template writes before and after a user's message that is to be answered. */
function aroundContent(template: TextParts['template']): [before: string, after: string] {
  const mark = '\u0001';
  const rendered = template.render([{ role: 'user', content: mark }], { addGenerationPrompt: true });
  return rendered.split(mark) as [string, string];
}

/** Text that the model itself writes, for models to which nobody gave any: at temperature 1 from an open beginning. */
export async function generateSource(engine: ModelEngine, tokens: number, seed: number): Promise<number[]> {
  const cache = engine.createCache({ ...DEFAULT_CACHE, policy: 'full', arithmetic: 'integer' });
  try {
    const ids = engine.tokenizer.encode(OPENINGS[seed % OPENINGS.length]!);
    let logits = await engine.feed(cache, ids, 'last');
    while (ids.length < tokens) {
      for (const id of engine.eosIds) logits[id] = Number.NEGATIVE_INFINITY;
      const { id } = sample(logits, { ...GREEDY, temperature: 1, topP: 0.95, seed }, ids.length, ids, []);
      ids.push(id);
      if (ids.length < tokens) logits = await engine.feed(cache, [id], 'last');
    }
    return ids;
  } finally {
    cache.dispose();
  }
}
const OPENINGS = [
  'It was late in the autumn when the letter came, and',
  'The history of the region begins with',
  'In this chapter we describe how to',
  'She had never liked the house on the hill. When',
];
