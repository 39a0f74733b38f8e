import { describe, expect, it } from 'vitest';
import { uniform01 } from '../../src/core/random.ts';
import { GREEDY, sample, topK } from '../../src/engine/sampler.ts';

const logits = (...values: number[]): Float32Array => Float32Array.from(values);
const draws = (l: number[], options: Partial<typeof GREEDY>, n = 4000): number[] => {
  const counts = new Array<number>(l.length).fill(0);
  for (let p = 0; p < n; p++) counts[sample(logits(...l), { ...GREEDY, ...options }, p, [], []).id]!++;
  return counts.map((c) => c / n);
};

describe('sample', () => {
  it('is greedy at temperature 0, the smallest id winning ties', () => {
    expect(sample(logits(1, 3, 3, 2), GREEDY, 0, [], []).id).toBe(1);
  });

  it('draws the softmax distribution at temperature 1, within 0.03 of it', () => {
    const shares = draws([0, 1, 2], { temperature: 1, seed: 5 });
    const total = 1 + Math.E + Math.E ** 2;
    [1, Math.E, Math.E ** 2].forEach((e, i) => {
      expect(Math.abs(shares[i]! - e / total)).toBeLessThan(0.03);
    });
  });

  it('draws from a whole vocabulary what exact exponentials summed in order give', () => {
    const values = Array.from({ length: 5000 }, (_, i) => 6 * Math.sin(i * i) - (i % 7));
    const max = Math.max(...values);
    for (let position = 0; position < 200; position++) {
      const total = values.reduce((sum, l) => sum + Math.exp(l - max), 0);
      let left = uniform01(5, position) * total;
      const expected = values.findIndex((l) => (left -= Math.exp(l - max)) < 0);
      const options = { ...GREEDY, temperature: 1, seed: 5 };
      expect(sample(logits(...values), options, position, [], []).id).toBe(expected);
    }
  });

  it('is a pure function of seed and position', () => {
    const draw = (seed: number, position: number): number =>
      sample(logits(0, 0, 0, 0, 0, 0, 0, 0), { ...GREEDY, temperature: 1, seed }, position, [], []).id;
    expect(draw(3, 17)).toBe(draw(3, 17));
    expect(new Set(Array.from({ length: 40 }, (_, p) => draw(3, p))).size).toBeGreaterThan(4);
    expect(Array.from({ length: 40 }, (_, p) => draw(3, p))).not.toEqual(
      Array.from({ length: 40 }, (_, p) => draw(4, p)),
    );
  });

  it('top_k, top_p and min_p cut the tail', () => {
    expect(draws([0, 1, 2, 3], { temperature: 1, topK: 2 }).slice(0, 2)).toEqual([0, 0]);
    // p = 0.032, 0.087, 0.237, 0.644: the nucleus of 0.85 is the best two.
    expect(draws([0, 1, 2, 3], { temperature: 1, topP: 0.85 }).slice(0, 2)).toEqual([0, 0]);
    expect(draws([0, 1, 2, 3], { temperature: 1, minP: 0.2 }).slice(0, 2)).toEqual([0, 0]);
  });

  it('penalties count what was generated; repetition counts the whole context', () => {
    const l = [2, 1.9, 0];
    expect(sample(logits(...l), { ...GREEDY, presencePenalty: 0.5 }, 0, [0], [0]).id).toBe(1);
    expect(sample(logits(...l), { ...GREEDY, presencePenalty: 0.5 }, 0, [0], []).id).toBe(0);
    expect(sample(logits(...l), { ...GREEDY, frequencyPenalty: 0.06 }, 0, [0, 0], [0, 0]).id).toBe(1);
    expect(sample(logits(...l), { ...GREEDY, repetitionPenalty: 1.2 }, 0, [0], []).id).toBe(1);
  });

  it("reports log-probabilities of the model's own distribution", () => {
    const result = sample(
      logits(0, Math.log(3), Math.log(6)),
      { ...GREEDY, topLogprobs: 2, presencePenalty: 9 },
      0,
      [],
      [2],
    );
    expect(result.id).toBe(1);
    expect(result.logprob).toBeCloseTo(Math.log(0.3), 5);
    expect(result.top!.map((t) => t.id)).toEqual([2, 1]);
    expect(result.top![0]!.logprob).toBeCloseTo(Math.log(0.6), 5);
    // Temperature and cuts change what is drawn, and nothing of what is reported; without alternatives the drawn token has its own.
    for (const topLogprobs of [0, 3]) {
      const options = { ...GREEDY, temperature: 5, topK: 2, topP: 0.9, minP: 0.01, topLogprobs };
      const drawn = sample(logits(0, Math.log(3), Math.log(6)), options, 0, [], []);
      expect(drawn.logprob).toBeCloseTo(Math.log([0.1, 0.3, 0.6][drawn.id]!), 5);
      expect(drawn.top!.map((t) => t.id)).toEqual([2, 1, 0].slice(0, topLogprobs));
    }
  });
});

it('topK is sorted, ties by id; none are none', () => {
  expect(topK(logits(1, 5), 0)).toEqual([]);
  expect(topK(logits(1, 5, 5, 2), 3).map((t) => t.id)).toEqual([1, 2, 3]);
});

it('uniform01 is uniform: mean and variance of 20,000 draws within 2 %', () => {
  const xs = Array.from({ length: 20_000 }, (_, i) => uniform01(11, i));
  const mean = xs.reduce((a, b) => a + b) / xs.length;
  const variance = xs.reduce((a, b) => a + (b - mean) ** 2, 0) / xs.length;
  expect(Math.abs(mean - 0.5)).toBeLessThan(0.01);
  expect(Math.abs(variance * 12 - 1)).toBeLessThan(0.02);
});
