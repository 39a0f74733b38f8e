import { argmax, logSumExp } from '../../engine/sampler.ts';

/** A model's distribution over the next token, kept to compare others with it. */
export interface Distribution {
  readonly logits: Float32Array;
  readonly logSum: number;
  readonly top: number;
}

/** Copies nothing: the logits must outlive the distribution. */
export const distribution = (logits: Float32Array): Distribution => ({
  logits,
  logSum: logSumExp(logits),
  top: argmax(logits),
});

/** Negative log-likelihood of a token, in nats. */
export const lossOf = (d: Distribution, id: number): number => d.logSum - d.logits[id]!;

/** KL(reference || other) in nats, in float64. */
export function divergence(reference: Distribution, other: Distribution): number {
  const p = reference.logits;
  const q = other.logits;
  const shift = other.logSum - reference.logSum;
  let sum = 0;
  for (let i = 0; i < p.length; i++) sum += Math.exp(p[i]! - reference.logSum) * (p[i]! - q[i]! + shift);
  // Rounding may leave a few 1e-17 below nothing.
  return Math.max(sum, 0);
}

export const perplexity = (meanLoss: number): number => Math.exp(meanLoss);
