import { expect, it } from 'vitest';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { EXACT_FULL, golden, maxDifference, mean, readNpy, score } from './golden.ts';

/** Tolerances of the goldens' README for float32 arithmetic on dequantised weights. */
export const LOGIT_TOLERANCE = 1e-3;
export const NLL_TOLERANCE = 1e-3;
export const MEAN_NLL_TOLERANCE = 5e-5;

interface LogitPrompt {
  name: string;
  ids: number[];
  nll: number[];
  nll_mean: number;
  top1: number[];
  top1_margin: number[];
  top20: { position: number; top_ids: number[]; top_logits: number[] }[];
  full_logits_file?: string;
}

/** One test for each of the named prompts of logits.json. */
export function logitGoldens(engine: () => ModelEngine, names: readonly string[], timeout: number): void {
  for (const name of names)
    it(`${name}: logits within ${LOGIT_TOLERANCE}, NLL within ${NLL_TOLERANCE}, mean within ${MEAN_NLL_TOLERANCE}, same best token`, {
      timeout,
    }, async () => {
      const prompt: LogitPrompt = golden('logits.json').prompts.find((p: LogitPrompt) => p.name === name);
      const last = prompt.ids.length - 1;
      const result = await score(engine(), EXACT_FULL, prompt.ids, [
        ...prompt.top20.map((t) => t.position),
        last,
      ]);
      for (const top of prompt.top20) {
        const row = result.logits.get(top.position)!;
        expect(
          maxDifference(
            top.top_ids.map((id) => row[id]!),
            top.top_logits,
          ),
        ).toBeLessThan(LOGIT_TOLERANCE);
      }
      if (prompt.full_logits_file)
        expect(maxDifference(result.logits.get(last)!, readNpy(prompt.full_logits_file))).toBeLessThan(
          LOGIT_TOLERANCE,
        );
      expect(result.nll.length).toBe(prompt.nll.length);
      expect(maxDifference(result.nll, prompt.nll)).toBeLessThan(NLL_TOLERANCE);
      if (prompt.nll.length > 100)
        expect(Math.abs(mean(result.nll) - prompt.nll_mean)).toBeLessThan(MEAN_NLL_TOLERANCE);
      const wrong = result.top1.filter(
        (id, i) => id !== prompt.top1[i] && prompt.top1_margin[i]! > 2 * LOGIT_TOLERANCE,
      );
      expect(wrong).toEqual([]);
    });
}

/** One test for each of the named items of perplexity.json. */
export function perplexityGoldens(
  engine: () => ModelEngine,
  names: readonly string[],
  timeout: number,
): void {
  for (const name of names)
    it(`${name}: NLL within ${NLL_TOLERANCE}, mean within ${MEAN_NLL_TOLERANCE}`, { timeout }, async () => {
      const item = golden('perplexity.json').items.find((i: { name: string }) => i.name === name);
      const { nll } = await score(engine(), EXACT_FULL, item.ids);
      expect(nll.length).toBe(item.nll.length);
      expect(maxDifference(nll, item.nll)).toBeLessThan(NLL_TOLERANCE);
      expect(Math.abs(mean(nll) - item.nll_mean)).toBeLessThan(MEAN_NLL_TOLERANCE);
    });
}
