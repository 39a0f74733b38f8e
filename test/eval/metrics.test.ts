import { describe, expect, test } from 'vitest';
import { classification } from '../../src/eval/metrics/classification.ts';
import { codeSimilarity, ratioPercent } from '../../src/eval/metrics/code-similarity.ts';
import { distribution, divergence, lossOf } from '../../src/eval/metrics/divergence.ts';
import { meanInterval, pairedRateInterval, rateInterval, t95 } from '../../src/eval/metrics/interval.ts';
import { containsAll, containsAny, startsWith } from '../../src/eval/metrics/match.ts';
import { count, retrieval } from '../../src/eval/metrics/numbers.ts';
import { passAtK } from '../../src/eval/metrics/pass-at-k.ts';
import { normalizeAnswer, qaF1 } from '../../src/eval/metrics/qa-f1.ts';
import { rankCorrelation, ranks } from '../../src/eval/metrics/rank-correlation.ts';
import { rougeL } from '../../src/eval/metrics/rouge-l.ts';

describe('qaF1', () => {
  test('normalises case, punctuation, articles and blanks', () =>
    expect(normalizeAnswer('  The Cat,  an "Animal"!  ')).toBe('cat animal'));
  // Python's \b knows letters of all alphabets.
  test('takes nothing for an article that stands within a word', () =>
    expect(normalizeAnswer('España, the señal é a Ðan')).toBe('españa señal é ðan'));
  test.each([
    ['The Eiffel Tower', 'Eiffel tower.', 1],
    ['in Paris, France', 'Paris', 0.5],
    ['a b b', 'b b b', 0.8],
    ['London', 'Paris', 0],
    ['', 'Paris', 0],
    ['an', 'The', 0],
  ])('%j against %j is %d', (prediction, truth, f1) => expect(qaF1(prediction, truth)).toBeCloseTo(f1, 12));
});

/** Printed by PyPI's rouge 1.0.1. */
const ROUGE: [string, string, number][] = [
  ['the cat sat on the mat', 'the cat is on the mat', 0.7999999950000002],
  [
    'The project manager opened the meeting. They talked about the remote control. It should be cheap.',
    'The meeting was opened by the project manager. The group discussed the remote control and its price.',
    0.3999999950000001,
  ],
  ['a b c d. e f', 'f e. d c b a', 0.3333333283333334],
  ['One.', 'Two.', 0],
  ['...', 'a b', 0],
  ['x x x x', 'x y x y', 0.6666666622222223],
  [
    'Industrial Designer desired to integrate remote controls.\nMarketing disagreed . ',
    'Marketing pointed out that remote controls are costly .',
    0.33333332839506175,
  ],
];
test.each(ROUGE)('rougeL of %j and %j is that of the package', (prediction, reference, f) =>
  expect(rougeL(prediction, reference)).toBeCloseTo(f, 14),
);

/** Printed by PyPI's fuzzywuzzy 0.18.0 on Python's difflib. */
const RATIOS: [string, string, number][] = [
  ['        if (nilCard != null) {', '        if (card == null) {', 88],
  ['return a+b', '    return a + b;', 74],
  ['abcabba', 'cbabac', 46],
  ['', 'x', 0],
  ['same', 'same', 100],
  ['for i in range(10):', 'while True:', 20],
  [`${'x'.repeat(150)}${'ab'.repeat(40)}q`, `${'ab'.repeat(100)}q${'x'.repeat(30)}`, 35],
  ['aaaaaaaa', 'aaabcdef', 38],
];
describe('codeSimilarity', () => {
  test.each(RATIOS)('the ratio of %j and %j is that of the package', (a, b, percent) =>
    expect(ratioPercent(a, b)).toBe(percent),
  );
  test('takes the first line that is no comment and no fence', () => {
    expect(codeSimilarity('\n\n```js\n// adds\n# adds\nreturn a;\nreturn b;', 'return a;')).toBe(1);
    expect(codeSimilarity('// only a comment', 'return a;')).toBe(0);
  });
});

describe('classification', () => {
  const classes = ['Food', 'Date', 'Definition of something', 'Number of something', 'Number'];
  test.each([
    ['Food', 'Food', 1],
    ['Food or Date', 'Date', 0.5],
    ['Date', 'Food', 0],
    ['nothing', 'Food', 0],
    // A class within the truth does not count.
    ['Number of something', 'Number of something', 1],
  ])('%j against %j is %d', (prediction, truth, score) =>
    expect(classification(prediction, truth, classes)).toBe(score),
  );
  test('skips the class after a removed one, as the original does', () =>
    expect(classification('a b ab', 'ab', ['a', 'b', 'ab'])).toBe(1 / 2));
});

describe('retrieval and count', () => {
  test.each([
    ['Paragraph 12', 'Paragraph 12', 1],
    ['Paragraph 12 or 13', 'Paragraph 12', 0.5],
    ['the first', 'Paragraph 1', 0],
    ['Paragraph 1', 'Paragraph 12', 0],
  ])('retrieval of %j against %j is %d', (prediction, truth, score) =>
    expect(retrieval(prediction, truth)).toBe(score),
  );
  test('a truth without a paragraph is refused', () => expect(() => retrieval('1', 'one')).toThrow(/one/));
  test('count wants the number itself', () => {
    expect(count('There are 5, not 15', '5')).toBe(0.5);
    expect(count('many', '5')).toBe(0);
  });
});

test('needle matches', () => {
  expect(containsAll('is 12345 and ABC', ['12345', 'abc', '777', '8'])).toBe(0.5);
  expect(containsAny('in the Kitchen', ['kitchen'])).toBe(1);
  expect(containsAny('in the garden', ['kitchen'])).toBe(0);
  expect(startsWith(' 12345.', '12345')).toBe(1);
  expect(startsWith('is 12345.', '12345')).toBe(0);
});

describe('passAtK', () => {
  test.each([
    [5, 1, 1, 0.2],
    [5, 1, 5, 1],
    [10, 3, 5, 1 - 21 / 252],
    [4, 0, 2, 0],
  ])('%d samples, %d passed, k %d: %d', (n, c, k, expected) =>
    expect(passAtK(n, c, k)).toBeCloseTo(expected, 12),
  );
  test('needs k samples', () => expect(() => passAtK(2, 1, 3)).toThrow(/3/));
});

test('loss and divergence of distributions worked out by hand', () => {
  const p = distribution(Float32Array.of(Math.log(1), Math.log(2), Math.log(1)));
  const q = distribution(Float32Array.of(Math.log(4), Math.log(2), Math.log(2)));
  expect(lossOf(p, 1)).toBeCloseTo(Math.log(2), 6);
  expect(p.top).toBe(1);
  expect(q.top).toBe(0);
  // p = (1/4, 1/2, 1/4), q = (1/2, 1/4, 1/4)
  expect(divergence(p, q)).toBeCloseTo(0.25 * Math.log(0.5) + 0.5 * Math.log(2), 6);
  expect(divergence(p, p)).toBe(0);
});

test('ranks share ties; rank correlation of known orders', () => {
  expect(ranks([10, 20, 20, 5])).toEqual([2, 3.5, 3.5, 1]);
  expect(rankCorrelation([1, 2, 3, 4], [10, 100, 1000, 10000])).toBeCloseTo(1, 12);
  expect(rankCorrelation([1, 2, 3, 4], [4, 3, 2, 1])).toBeCloseTo(-1, 12);
  // d = (0, -1, 1, 0): 1 - 6*2 / (4*15)
  expect(rankCorrelation([1, 2, 3, 4], [1, 3, 2, 4])).toBeCloseTo(0.8, 12);
  expect(rankCorrelation([1, 1, 1], [1, 2, 3])).toBeNaN();
});

describe('intervals', () => {
  test('the mean of five values', () => {
    const e = meanInterval([1, 2, 3, 4, 5]);
    expect(e.mean).toBe(3);
    // 2.776 * sqrt(2.5 / 5)
    expect(e.high - e.mean).toBeCloseTo(1.963, 3);
  });
  test('one value has no interval', () => expect(meanInterval([1]).low).toBeNaN());
  test('quantiles beyond the table', () => {
    expect(t95(60)).toBeCloseTo(2.0, 2);
    expect(t95(1e9)).toBeCloseTo(1.96, 3);
  });
  test("Wilson's interval of 9 hits in 10 and of none", () => {
    expect(rateInterval(9, 10)).toMatchObject({
      low: expect.closeTo(0.5958, 3),
      high: expect.closeTo(0.9821, 3),
    });
    expect(rateInterval(0, 10)).toMatchObject({ low: 0, high: expect.closeTo(0.2775, 3) });
  });
  test("Newcombe's paired difference, his example (36, 12, 2, 0)", () => {
    const pairs = [
      ...Array.from({ length: 36 }, () => [1, 1] as const),
      ...Array.from({ length: 12 }, () => [1, 0] as const),
      ...Array.from({ length: 2 }, () => [0, 1] as const),
    ];
    const e = pairedRateInterval(pairs);
    expect(e.mean).toBeCloseTo(0.2, 12);
    expect(e.low).toBeCloseTo(0.0569, 4);
    expect(e.high).toBeCloseTo(0.3404, 4);
  });
  test('two pairs that agree leave the difference open', () => {
    const e = pairedRateInterval([
      [1, 1],
      [1, 1],
    ]);
    expect(e.mean).toBe(0);
    expect(e.low).toBeLessThan(-0.5);
  });
});
