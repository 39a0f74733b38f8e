import { describe, expect, it } from 'vitest';
import { MIN_BUDGET_TOKENS } from '../../src/cache/byte-budget.ts';
import type { KvCache } from '../../src/cache/cache.ts';
import { DOCUMENT_TOKENS, MessageMap, type MessageMark } from '../../src/cache/messages.ts';
import { parseQuotas } from '../../src/cache/policies/quotas.ts';
import type { CacheConfig } from '../../src/cache/policy.ts';
import { STREAMING_POLICIES } from '../../src/cache/registry.ts';
import { restoreCache } from '../../src/cache/restore.ts';
import { fp16BytesPerToken, type ModelConfig } from '../../src/core/config.ts';
import { CorruptDataError } from '../../src/core/errors.ts';
import { DROP, tierNamed } from '../../src/kernels/layout.ts';
import { cacheDriver, finishedBytes, readerOf, SHAPE, stateOf } from '../helpers/cache-driver.ts';

const MARKS: MessageMark[] = [
  { role: 'system', ids: [1, 10, 2] },
  { role: 'user', ids: [1, 11] },
  { role: 'assistant', ids: [1, 12] },
];
/** Instructions, a question with its answer, a document, another question. */
const LENGTHS = [
  ['system', 150],
  ['user', 60],
  ['assistant', 90],
  ['user', 900],
  ['assistant', 80],
] as const;
const IDS = LENGTHS.flatMap(([role, tokens]) => {
  const { ids } = MARKS.find((m) => m.role === role)!;
  return [...ids, ...Array.from({ length: tokens - ids.length }, (_, i) => 20 + (i % 7))];
});
const TOKENS = IDS.length;
const [SYSTEM_END, DOCUMENT] = [150, 300] as const;

describe('messages in token ids', () => {
  const heard = (chunk: number): MessageMap => {
    const map = new MessageMap(MARKS);
    for (let at = 0; at < TOKENS; at += chunk) map.hear(at, IDS.slice(at, at + chunk));
    return map;
  };
  it.each([1, 2, 17, 64, 128])('are found whatever the chunks: %d', (chunk) => {
    expect(heard(chunk).spans(TOKENS)).toEqual([
      { start: 0, end: 150, class: 'system' },
      { start: 150, end: 210, class: 'turns' },
      { start: 210, end: 300, class: 'turns' },
      { start: 300, end: 1200, class: 'documents' },
      { start: 1200, end: 1280, class: 'turns' },
    ]);
    expect(heard(chunk).text).toBe(heard(128).text);
  });
  it('a turn becomes a document once it is long enough, and not by later positions', () => {
    const map = heard(128);
    expect(map.spans(300 + DOCUMENT_TOKENS - 1).at(-1)!.class).toBe('turns');
    expect(map.spans(300 + DOCUMENT_TOKENS).at(-1)!.class).toBe('documents');
  });
  it('a chunk that failed is heard again, and may be another one then', () => {
    const map = new MessageMap(MARKS);
    map.hear(0, IDS.slice(0, 100));
    map.hear(100, [1, 11, 5]);
    map.hear(100, [5, 5, 5]);
    expect(map.spans(103)).toEqual([{ start: 0, end: 103, class: 'system' }]);
    expect(() => map.hear(50, [1])).toThrow(/ids of 50/);
  });
  it('are restored from their text, and refused where it is none', () => {
    for (const position of [0, 1, 2, 151, TOKENS]) {
      const map = new MessageMap(MARKS);
      map.hear(0, IDS.slice(0, position));
      const copy = new MessageMap(MARKS);
      copy.restore(map.text, position);
      for (const m of [map, copy]) m.hear(position, IDS.slice(position));
      expect(copy.spans(TOKENS)).toEqual(map.spans(TOKENS));
    }
    for (const text of [
      '',
      'system 0',
      'system 0, nobody 4 | 1 2',
      'system 9, user 3 | 1 2',
      'user x | 1 2',
      ' | 1 x',
    ])
      expect(() => new MessageMap(MARKS).restore(text, 50)).toThrow(CorruptDataError);
  });
});

it('quotas are read, or refused with what would be right', () => {
  expect(parseQuotas('system=4,4 documents=25%:2,1')).toEqual([
    { class: 'system', share: 1, tier: tierNamed('4,4') },
    { class: 'documents', share: 0.25, tier: tierNamed('2,1') },
  ]);
  for (const text of [
    '',
    'system',
    'system=9,9',
    'system=drop',
    'tools=4,4',
    'turns=0%:2,2',
    'turns=101%:2,2',
    'system=q8_0',
  ])
    expect(() => parseQuotas(text)).toThrow(/write system \| documents \| turns/);
  expect(() => parseQuotas('turns=2,2 turns=4,4')).toThrow(/each class once/);
  expect(() => cacheDriver({ policy: 'uniform-int8', quotas: 'system=4,4' }).create()).toThrow(
    /all tokens alike/,
  );
  expect(() => cacheDriver({ policy: 'adkvc', quotas: 'system=4,4' }).create()).toThrow(/chat template/);
});

const driverOf = (own: Partial<CacheConfig>, model: ModelConfig = SHAPE) =>
  cacheDriver({ ratio: 10, ...own }, { model, ids: IDS, marks: MARKS });

/** How every head holds the tokens of positions from (included) to (not) that lie in segments. */
function tiersOf(cache: KvCache, from: number, to: number): number[][] {
  const { layers, kvHeads } = cache.context.model;
  return Array.from({ length: layers * kvHeads }, (_, head) =>
    cache.spans.flatMap((span, s) => {
      const tiers = new Uint8Array(span.tokens);
      cache.reader(cache.blocks[Math.floor(head / kvHeads)]![s]!).tiers(head % kvHeads, tiers, 0);
      return [...tiers].filter((_, i) => span.start + i >= from && span.start + i < to);
    }),
  );
}
const finished = (own: Partial<CacheConfig>, model?: ModelConfig): KvCache => {
  const driver = driverOf(own, model);
  const cache = driver.create();
  driver.feedTo(cache, TOKENS);
  cache.finish();
  return cache;
};
const POLICIES = STREAMING_POLICIES.filter((name) => !/^(full|uniform|adkvc-(fixed|quantize))/.test(name));
/** The embedded model's heads; a tenth of its layers. */
const MODEL: ModelConfig = { ...SHAPE, layers: 3, heads: 9, kvHeads: 3, headDim: 64, attentionScale: 0.125 };
describe.each(POLICIES)('quotas under policy %s', (policy) => {
  it("hold the system's message at 10x, where it vanished without them, and the budget", () => {
    const worst = Math.max(...tiersOf(finished({ policy }, MODEL), 0, SYSTEM_END).flat());
    expect(worst).toBeGreaterThan(tierNamed('4,4'));
    const driver = driverOf({ policy, quotas: 'system=4,4' }, MODEL);
    const cache = driver.create();
    for (const position of [128, 512, 1024, TOKENS]) {
      driver.feedTo(cache, position);
      const budget = (Math.max(position, MIN_BUDGET_TOKENS) * fp16BytesPerToken(MODEL)) / 10;
      const bytes = finishedBytes(driver, cache);
      expect(bytes).toBeLessThanOrEqual(budget);
      if (position >= MIN_BUDGET_TOKENS) expect(bytes).toBeGreaterThan(budget * 0.96);
    }
    cache.finish();
    for (const tiers of tiersOf(cache, 0, SYSTEM_END)) {
      expect(tiers.length).toBe(SYSTEM_END - driver.config.sinks);
      expect(Math.max(...tiers)).toBeLessThanOrEqual(tierNamed('4,4'));
    }
  });

  it('are a function of the tokens: chunks of 128, 64, 17 and 1 leave the same bytes, which are restored bit for bit', () => {
    const own = { policy, quotas: 'system=4,4 documents=25%:2,1' };
    const states = [128, 64, 17, 1].map((chunk) => {
      const driver = driverOf(own);
      const cache = driver.create();
      driver.feedTo(cache, 420, chunk);
      const state = stateOf(cache);
      const copy = restoreCache(driver.context, readerOf(cache));
      expect(stateOf(copy)).toEqual(state);
      driver.feedTo(copy, 530);
      driver.feedTo(cache, 530);
      expect(stateOf(copy)).toEqual(stateOf(cache));
      return state;
    });
    for (const other of states.slice(1)) expect(other).toEqual(states[0]);
  });
});

it('a share of each document is kept: every head has a quarter of its tokens', () => {
  const kept = (own: Partial<CacheConfig>): number[] =>
    tiersOf(finished({ policy: 'h2o', ...own }, MODEL), DOCUMENT, 1200).map(
      (tiers) => tiers.filter((tier) => tier !== DROP).length / tiers.length,
    );
  expect(Math.min(...kept({ quotas: 'documents=25%:2,1' }))).toBeGreaterThanOrEqual(0.25);
  expect(Math.min(...kept({}))).toBeLessThan(0.2);
});

it('where quotas do not all fit, the last gives way and the budget holds', () => {
  const cache = finished({ policy: 'adkvc', quotas: 'system=4,4 documents=8,8' }, MODEL);
  expect(cache.bytes).toBeLessThanOrEqual((TOKENS * fp16BytesPerToken(MODEL)) / 10);
  expect(Math.max(...tiersOf(cache, 0, SYSTEM_END).flat())).toBeLessThanOrEqual(tierNamed('4,4'));
  expect(Math.max(...tiersOf(cache, DOCUMENT, 1200).flat())).toBe(DROP);
});
