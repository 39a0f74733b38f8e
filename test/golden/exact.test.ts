import { beforeAll, expect, it } from 'vitest';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { generate } from '../../src/engine/generate.ts';
import { GREEDY } from '../../src/engine/sampler.ts';
import { EXACT_FULL, golden } from '../helpers/golden.ts';
import { logitGoldens } from '../helpers/golden-suites.ts';
import { describeShared } from '../helpers/shared.ts';
import { smollm } from '../helpers/smollm.ts';

/** Two float32 implementations may part where the best two logits are this close. */
const NEAR_TIE = 0.002;

interface GreedyPrompt {
  name: string;
  prompt_ids: number[];
  generated_ids: number[];
  margin: number[];
  finish: string;
}

describeShared('the exact form against an independent float32 implementation: short prompts', () => {
  let engine: ModelEngine;
  beforeAll(async () => {
    engine = await smollm('exact');
  });

  logitGoldens(
    () => engine,
    [
      'plain-1',
      'plain-7',
      'plain-33',
      'plain-129',
      'plain-512',
      'chat-short',
      'chat-system-code',
      'chat-multiturn-unicode',
    ],
    240_000,
  );

  it(`greedy continuations equal up to the first margin below ${NEAR_TIE}`, {
    timeout: 900_000,
  }, async () => {
    const prompts: GreedyPrompt[] = golden('greedy.json').prompts;
    let compared = 0;
    for (const prompt of prompts) {
      const cache = engine.createCache(EXACT_FULL);
      const ids: number[] = [];
      for await (const event of generate(engine, cache, prompt.prompt_ids, {
        sampling: GREEDY,
        stop: [],
        maxTokens: prompt.generated_ids.length,
      }))
        if (event.type === 'token') ids.push(event.id);
      cache.dispose();
      const tie = prompt.margin.findIndex((margin) => margin < NEAR_TIE);
      const until = tie < 0 ? prompt.generated_ids.length : tie;
      expect(ids.slice(0, until), prompt.name).toEqual(prompt.generated_ids.slice(0, until));
      compared += until;
    }
    expect(compared).toBeGreaterThan(500);
  });
});
