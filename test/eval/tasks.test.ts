import { readdirSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { DEFAULT_CACHE } from '../../src/cache/policy.ts';
import { SETTLE_POSITIONS } from '../../src/cache/schedule.ts';
import { decayedQueries } from '../../src/cache/trackers/ema.ts';
import { loadWasmKernels } from '../../src/cli/load-engine.ts';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { loadEngine } from '../../src/engine/load.ts';
import { Aside } from '../../src/eval/aside.ts';
import { DataFolder } from '../../src/eval/data.ts';
import { cutMiddle } from '../../src/eval/prompt-task.ts';
import { TASKS } from '../../src/eval/registry.ts';
import { relevanceOf } from '../../src/eval/relevance.ts';
import { passes } from '../../src/eval/sandbox.ts';
import type { Method, Outcome, Prefix, SampleContext, Skipped } from '../../src/eval/task.ts';
import { CODE_PROBLEMS } from '../../src/eval/tasks/code-problems.ts';
import { leaveOut } from '../../src/eval/tasks/leave-one-out.ts';
import { fillPrompt, LONGBENCH, scoreExample } from '../../src/eval/tasks/longbench.ts';
import { needlePrompt, RULER } from '../../src/eval/tasks/needle.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { evalFixture } from '../helpers/eval-fixture.ts';

const method = (policy: string, ratio?: number): Method => ({
  policy,
  ratio,
  config: { ...DEFAULT_CACHE, policy, ...(ratio === undefined ? {} : { ratio }) },
});
const FULL = method('full');

let fixture: Awaited<ReturnType<typeof evalFixture>>;
let engine: ModelEngine;
let data: DataFolder;

beforeAll(async () => {
  fixture = await evalFixture({ context: 2048 });
  engine = await loadEngine({
    source: folderSource(fixture.bundle),
    kernels: await loadWasmKernels(200e6),
  });
  data = new DataFolder(fixture.data);
});
afterAll(() => fixture.remove());

const context = (own: Partial<SampleContext>): SampleContext => ({
  ...{ engine, data, length: 0, sample: 0, seed: 0, stopping: () => false, prefix: {} },
  reference: { policy: 'full', config: { ...DEFAULT_CACHE, policy: 'full' } },
  aside: new Aside(join(fixture.folder, 'aside'), 'test'),
  ...own,
});

async function runTask(name: string, methods: readonly Method[], length = 0, sample = 0) {
  const outcomes = new Map<string, Outcome | Skipped>();
  await TASKS[name]!.run(context({ length, sample }), methods, (m, outcome) =>
    outcomes.set(m.policy, outcome),
  );
  return outcomes as Map<string, Outcome & Skipped>;
}

const SMALL = ['longbench-qasper', 'babilong-4k', 'kv-retrieval-10', 'qmsum-turns', 'locomo-turns'];

describe('every task', () => {
  test.each(Object.values(TASKS))('$name has a score, and lengths to run at', (task) => {
    expect(task.metrics.length).toBeGreaterThan(0);
    expect(task.lengths.length).toBeGreaterThan(0);
  });
  test.each(SMALL)('%s gives finite scores and figures on made-up data', async (name) => {
    expect(await TASKS[name]!.count(data)).toBeGreaterThan(0);
    const outcome = (await runTask(name, [FULL], 300)).get('full')!;
    for (const metric of TASKS[name]!.metrics) expect(outcome.scores[metric.name]).toBeGreaterThanOrEqual(0);
    expect(outcome.tokens).toBeGreaterThan(50);
    expect(outcome.cache.bytes).toBeGreaterThan(0);
    expect(outcome.cache.averageBytes).toBeLessThanOrEqual(outcome.cache.peakBytes);
    const { prefillTokensPerSecond, ttftMs, restoreMs } = outcome.speed;
    expect(Math.min(prefillTokensPerSecond, ttftMs, restoreMs)).toBeGreaterThan(0);
  });
  test('a missing file is named, with the remedy', async () => {
    const empty = new DataFolder('/nowhere');
    expect(() => empty.require(['books/x.jsonl.gz'])).toThrow(/books\/x\.jsonl\.gz is missing.*--data/);
    await expect(TASKS.pg19!.count(empty)).rejects.toThrow(/is missing/);
  });
});

describe('perplexity', () => {
  test('the full cache differs from itself in nothing; a coarse one does', async () => {
    const outcomes = await runTask('pg19', [FULL, method('uniform', 4)], 512);
    expect(outcomes.get('full')!.scores).toMatchObject({ lossDelta: 0, kl: 0, top1: 1 });
    const coarse = outcomes.get('uniform')!.scores;
    expect(coarse.kl).toBeGreaterThan(0);
    expect(coarse.klLast).toBeGreaterThan(coarse.kl!);
    expect(coarse.loss! - outcomes.get('full')!.scores.loss!).toBeCloseTo(coarse.lossDelta!, 9);
    expect(outcomes.get('uniform')!.cache.ratio).toBeGreaterThan(1.5);
  });
  test('scores do not depend on which methods run beside', async () => {
    const alone = (await runTask('pg19', [method('window', 4)], 384)).get('window')!;
    const beside = (await runTask('pg19', [FULL, method('uniform', 2), method('window', 4)], 384)).get(
      'window',
    )!;
    expect(alone.scores).toEqual(beside.scores);
    expect(alone.cache).toEqual(beside.cache);
  });
  test('put aside again and again, it ends with the same scores and figures', async () => {
    const methods = [FULL, method('adkvc', 4), method('uniform', 2), method('snapkv', 4)];
    const whole = await runTask('pg19', methods, 700);
    const outcomes = new Map<string, Outcome>();
    let runs = 0;
    for (; outcomes.size === 0; runs++)
      await TASKS.pg19!.run(context({ length: 700, stopping: () => true }), methods, (m, o) =>
        outcomes.set(m.policy, o as Outcome),
      );
    expect(runs).toBe(6);
    for (const [policy, { scores, cache }] of outcomes)
      expect({ scores, cache }).toEqual({
        scores: whole.get(policy)!.scores,
        cache: whole.get(policy)!.cache,
      });
    expect(readdirSync(join(fixture.folder, 'aside'))).toEqual([]);
  });
  test('what lies aside and cannot be read is begun anew', () => {
    const folder = join(fixture.folder, 'torn');
    const aside = new Aside(folder, 'test');
    aside.put('a', [{ at: 1 }, new Uint8Array(100)]);
    expect(aside.take('a')).toEqual([{ at: 1 }, new Uint8Array(100)]);
    expect(new Aside(folder, 'other').take('a')).toBeUndefined();
    const part = readdirSync(folder).find((name) => name.endsWith('.1'))!;
    truncateSync(join(folder, part), 20);
    expect(aside.take('a')).toBeUndefined();
    expect(readdirSync(folder)).toEqual([]);
  });
  test('a text that is too short is skipped and says so', async () => {
    const short = (await runTask('pg19', [FULL], 60_000)).get('full')!;
    expect(short.skipped).toMatch(/60000 were asked for/);
  });
});

describe('needles', () => {
  const sampleOf = (length: number, sample: number) => ({ engine, data, length, sample, seed: 3 });
  test.each([
    ['essay', 1],
    ['essay', 4],
    ['noise', 1],
  ] as const)('%s with %d keys: fits, and the needle lies where the detail says', async (haystack, keys) => {
    for (let sample = 0; sample < 4; sample++) {
      const prompt = await needlePrompt(sampleOf(1500, sample), { haystack, wording: RULER, keys });
      expect(prompt.ids.length + prompt.maxTokens).toBeLessThanOrEqual(1500);
      expect(prompt.ids.length).toBeGreaterThan(1300);
      const [value] = prompt.answers;
      const text = engine.tokenizer.decode(prompt.ids);
      expect(text.split(`is: ${value}.`).length).toBe(2);
      expect(text.match(/One of the special magic numbers/g)!.length).toBe(keys);
      expect(text.endsWith(`for ${prompt.detail!.key} mentioned in the provided text is`)).toBe(true);
      const needle = engine.tokenizer.decode(prompt.ids.slice(prompt.needle.start, prompt.needle.end));
      expect(needle).toContain(value);
      expect(needle.length).toBeLessThan(80);
      const depth = prompt.needle.start / prompt.ids.length;
      expect(Math.abs(depth - (prompt.detail!.depth as number))).toBeLessThan(0.35);
    }
  });
  test('the same sample gives the same prompt, another seed another', async () => {
    const options = { haystack: 'essay', wording: RULER, keys: 1 } as const;
    const a = await needlePrompt(sampleOf(1200, 1), options);
    expect((await needlePrompt(sampleOf(1200, 1), options)).ids).toEqual(a.ids);
    const b = await needlePrompt({ ...sampleOf(1200, 1), seed: 4 }, options);
    expect(b.answers).not.toEqual(a.answers);
  });
});

describe('needles in one haystack', () => {
  test.each(['full', 'adkvc', 'snapkv'])(
    '%s: going on from what an earlier sample has read changes nothing',
    async (policy) => {
      const { run, group } = TASKS['needle-essay']!;
      const one = method(policy, policy === 'full' ? undefined : 4);
      const prefix: Prefix = {};
      const samples = [2, 0, 1, 3].sort((a, b) => group!.order(a) - group!.order(b));
      let fed = 0;
      const counted = Object.create(engine, {
        feedEach: {
          value: (...args: Parameters<ModelEngine['feedEach']>) => {
            fed += args[1].length;
            return engine.feedEach(...args);
          },
        },
      }) as ModelEngine;
      const answers = async (own: Partial<SampleContext>) => {
        const all: Outcome[] = [];
        for (const sample of samples)
          await run(context({ length: 1500, sample, ...own, prefix: own.prefix ?? {} }), [one], (_, o) =>
            all.push(o as Outcome),
          );
        return all.map(({ scores, detail, tokens, cache }) => ({ scores, detail, tokens, cache }));
      };
      const apart = await answers({});
      expect(await answers({ prefix, engine: counted })).toEqual(apart);
      expect(fed).toBeLessThan(0.9 * apart.reduce((sum, a) => sum + a.tokens, 0));
    },
  );
});

describe('LongBench', () => {
  test('fills the official fields only, whatever the texts hold', () =>
    expect(fillPrompt('{context} | {input} | {other}', { context: '$& {input}', input: '{context}' })).toBe(
      '$& {input} | {context} | {other}',
    ));
  test('cuts the middle out', () => {
    const ids = engine.tokenizer.encode('abcdefghijklmnop');
    const cut = engine.tokenizer.encode(cutMiddle(engine, 'abcdefghijklmnop', 6));
    expect(cut).toEqual([...ids.slice(0, 3), ...ids.slice(-3)]);
    expect(cutMiddle(engine, 'short', 100)).toBe('short');
  });
  test('takes the best answer, and the first line where that is the rule', () => {
    const item = {
      _id: '',
      input: '',
      context: '',
      answers: ['Paris', 'the city of light'],
      all_classes: null,
    };
    expect(scoreExample('qasper', 'City of light', item)).toBe(1);
    expect(scoreExample('triviaqa', '\nParis\nLondon', item)).toBe(1);
    expect(scoreExample('qasper', '\nParis\nLondon', item)).toBeLessThan(1);
  });
  test('has the sixteen English tasks', () => expect(Object.keys(LONGBENCH)).toHaveLength(16));
});

describe('dialogues', () => {
  test('every method hears the true answers, at the same positions', async () => {
    const outcomes = await runTask('qmsum-turns', [FULL, method('window', 4)], 300);
    const positions = (policy: string) =>
      (outcomes.get(policy)!.detail!.turns as { position: number }[]).map((t) => t.position);
    expect(positions('window')).toEqual(positions('full'));
    expect(positions('full')).toHaveLength(3);
    expect(outcomes.get('full')!.speed.restoreMs).toBeGreaterThan(0);
  });
  test('LoCoMo asks what the sessions that fit can answer, and nothing adversarial', async () => {
    const outcome = (await runTask('locomo-turns', [FULL], 300)).get('full')!;
    expect(outcome.detail!.answers).toEqual(['a cat']);
  });
});

describe('code', () => {
  test.each(CODE_PROBLEMS)('$name: its own body passes, an empty one does not', async (problem) => {
    expect(await passes(`${problem.head}\n${problem.body}\n}`, problem.test)).toBe(true);
    expect(await passes(`${problem.head}\n}`, problem.test)).toBe(false);
  });
  test('code that never ends, leaves or reads files fails', async () => {
    expect(await passes('for (;;) {}', '')).toBe(false);
    expect(await passes("require('node:fs').readFileSync('/etc/hostname')", '')).toBe(false);
    expect(await passes('process.exit(0)', '')).toBe(false);
  });
});

describe('analyses', () => {
  const analysed = method('adkvc', 1);
  test('queries seen: a token of the present epoch, and one of older epochs, decayed', () => {
    expect(decayedQueries(100, 128, 0.5)).toBe(28);
    expect(decayedQueries(0, 256, 0.5)).toBe(128 + 64);
  });
  test('relevance has the mean 1 in every head, and a policy without mass is refused', async () => {
    const cache = engine.createCache(analysed.config);
    await engine.feed(
      cache,
      engine.tokenizer.encode('a b c d e f g h i j k '.repeat(40)).slice(0, 512 + SETTLE_POSITIONS),
      'none',
    );
    const { start, values } = await relevanceOf(cache);
    expect(start).toBe(4);
    for (const heads of values)
      for (const head of heads) {
        expect(head.length).toBe(512 - DEFAULT_CACHE.window - DEFAULT_CACHE.sinks);
        expect(head.reduce((a, b) => a + b, 0) / head.length).toBeCloseTo(1, 6);
      }
    cache.dispose();
    const plain = engine.createCache(FULL.config);
    await expect(relevanceOf(plain)).rejects.toThrow(/tracks no attention mass/);
    plain.dispose();
  });
  test('leaving a block out drops exactly its positions, in one layer', async () => {
    const cache = engine.createCache(analysed.config);
    await engine.feed(
      cache,
      engine.tokenizer.encode('abc '.repeat(200)).slice(0, 512 + SETTLE_POSITIONS),
      'none',
    );
    const before = cache.report().tiers.drop ?? 0;
    leaveOut(cache, 1, 100, 164);
    expect((cache.report().tiers.drop ?? 0) - before).toBe(64 * engine.model.kvHeads);
    cache.dispose();
  });
  test('both analyses run and say something of every layer', async () => {
    const relevance = (await runTask('needle-relevance', [analysed], 1400)).get('adkvc')!;
    expect(relevance.detail!.layers).toHaveLength(engine.model.layers);
    expect(relevance.scores.needlePercentile).toBeGreaterThan(0);
    const left = (await runTask('leave-one-out', [analysed], 384)).get('adkvc')!;
    const layers = left.detail!.layers as { rise: number[]; rankCorrelation: number }[];
    expect(layers).toHaveLength(engine.model.layers);
    for (const layer of layers) expect(Math.abs(layer.rankCorrelation)).toBeLessThanOrEqual(1);
    expect(layers.some((l) => l.rise.some((r) => r !== 0))).toBe(true);
    for (const { cache, speed } of [relevance, left]) {
      expect(Math.min(cache.averageBytes, cache.peakBytes, cache.bytes)).toBeGreaterThan(0);
      expect(Math.min(speed.prefillTokensPerSecond, speed.ttftMs, speed.restoreMs)).toBeGreaterThan(0);
    }
  });
});
