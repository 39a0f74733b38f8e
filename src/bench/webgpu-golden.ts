import type { CacheConfig } from '../cache/policy.ts';
import type { ModelEngine } from '../engine/engine.ts';
import { generate } from '../engine/generate.ts';
import { GREEDY, logSumExp } from '../engine/sampler.ts';

/** Continuations by an independent implementation; `margin`: by how much each token led. */
export interface GreedyGolden {
  readonly name: string;
  readonly prompt_ids: readonly number[];
  readonly generated_ids: readonly number[];
  readonly margin: readonly number[];
}
export interface LogitGolden {
  readonly name: string;
  readonly ids: readonly number[];
  readonly nll: readonly number[];
  readonly top20: readonly {
    readonly position: number;
    readonly top_ids: readonly number[];
    readonly top_logits: readonly number[];
  }[];
}

export interface GoldenResult {
  readonly greedy: {
    readonly prompts: number;
    readonly compared: number;
    readonly different: readonly string[];
  };
  readonly logits: { readonly prompts: number; readonly tokens: number; readonly largest: number };
  readonly nll: { readonly largest: number };
}

/** Two logits that lie so close may change places where sums run in another order. */
const NEAR_TIE = 0.01;

/** Greedy continuations up to the first near-tie, logits and losses, against an independent implementation's. */
export async function compareGoldens(
  engine: ModelEngine,
  config: CacheConfig,
  greedy: readonly GreedyGolden[],
  logits: readonly LogitGolden[],
): Promise<GoldenResult> {
  const different: string[] = [];
  let compared = 0;
  for (const prompt of greedy) {
    const cache = engine.createCache(config);
    const ids: number[] = [];
    const maxTokens = prompt.generated_ids.length;
    for await (const event of generate(engine, cache, prompt.prompt_ids, {
      ...{ sampling: GREEDY, stop: [], maxTokens },
    }))
      if (event.type === 'token') ids.push(event.id);
    cache.dispose();
    const tie = prompt.margin.findIndex((margin) => margin < NEAR_TIE);
    const until = tie < 0 ? maxTokens : tie;
    if (ids.slice(0, until).join() !== prompt.generated_ids.slice(0, until).join())
      different.push(prompt.name);
    compared += until;
  }
  let largest = 0;
  let largestNll = 0;
  let tokens = 0;
  for (const { ids, nll, top20 } of logits) {
    const cache = engine.createCache(config);
    await engine.feedEach(
      cache,
      ids,
      () => true,
      (i, row) => {
        tokens++;
        const next = ids[i + 1];
        if (next !== undefined)
          largestNll = Math.max(largestNll, Math.abs(logSumExp(row) - row[next]! - nll[i]!));
        for (const top of top20)
          if (top.position === i)
            top.top_ids.forEach((id, k) => {
              largest = Math.max(largest, Math.abs(row[id]! - top.top_logits[k]!));
            });
      },
    );
    cache.dispose();
  }
  return {
    greedy: { prompts: greedy.length, compared, different },
    logits: { prompts: logits.length, tokens, largest },
    nll: { largest: largestNll },
  };
}
