/**
 * Chance that at least one of k samples passes, estimated without bias from `passed` of `samples`: 1 - C(n-c, k) / C(n, k).
 * Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code".
 */
export function passAtK(samples: number, passed: number, k: number): number {
  if (!(k >= 1 && k <= samples))
    throw new Error(`pass@${k} needs at least ${k} samples, ${samples} are there`);
  if (samples - passed < k) return 1;
  let none = 1;
  for (let i = samples - passed + 1; i <= samples; i++) none *= 1 - k / i;
  return 1 - none;
}
