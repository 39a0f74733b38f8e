import type { ModelConfig } from '../core/config.ts';
import type { CommitCosts } from './costs.ts';
import type { SpeedResult } from './speed.ts';

/** Speeds as shares of what the calibration of the same moment allows: comparable between machines, and between a busy one and itself. */
export interface Ratios {
  readonly context: number;
  /** Decoding speed over what a matrix-vector product at the calibrated 4-bit speed would give: all weights once a token. */
  readonly decodeOfBound: number;
  /** Decoding speed over that at the first context of the run. */
  readonly decodeOfFirst: number;
  /** Prefill speed over the calibrated int8 dot's, for all weights but the output layer's, attention not counted. */
  readonly prefillOfBound: number;
  /** Attention in decoding over the calibrated int8 dot, counted over the cells that are held. */
  readonly attentionOfDot: number;
  readonly attentionOfStep: number;
  readonly trackingOfStep: number;
  /** Planning and applying plans, of the prefill's time. */
  readonly planningOfPrefill: number;
  readonly commit: CommitCosts['turn'];
  /** Computing a cache over restoring it. */
  readonly recomputeOverRestore: number;
}

/** Multiply-adds of a token: the layers' products, and the output layer's. */
export function productsPerToken(model: ModelConfig): { layers: number; output: number } {
  const { layers, hidden, heads, kvHeads, headDim, ffn, vocab } = model;
  const attention = hidden * headDim * (2 * heads + 2 * kvHeads);
  return { layers: layers * (attention + 3 * hidden * ffn), output: vocab * hidden };
}

export function ratios(
  model: ModelConfig,
  { context, calibration, costs, ...result }: SpeedResult,
  first: SpeedResult,
): Ratios {
  const { layers, output } = productsPerToken(model);
  return {
    context,
    decodeOfBound: (result.decodeTokensPerSecond * (layers + output)) / (calibration.q4GMACs * 1e9),
    decodeOfFirst: result.decodeTokensPerSecond / first.decodeTokensPerSecond,
    prefillOfBound: (result.prefillTokensPerSecond * layers) / (calibration.dotGMACs * 1e9),
    attentionOfDot: costs.attentionGMACs / calibration.dotGMACs,
    attentionOfStep: costs.attentionShare,
    trackingOfStep: costs.trackingShare,
    planningOfPrefill: result.planningShare,
    commit: result.commit.turn,
    recomputeOverRestore: result.restore.recomputeMs / result.restore.ms,
  };
}
