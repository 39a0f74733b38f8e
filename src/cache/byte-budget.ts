import { fp16BytesPerToken, type ModelConfig } from '../core/config.ts';
import { DEFAULT_RATIO } from './policies/adkvc.ts';
import type { CacheConfig } from './policy.ts';

/** The budget never asks for less than what this many tokens would get: short conversations are hardly compressed. */
export const MIN_BUDGET_TOKENS = 1024;

/** Bytes that a cache may hold at a position under a policy with a budget. No more tokens than the trained length are ever held. */
export const byteBudget = (config: CacheConfig, model: ModelConfig, position: number): number =>
  config.bytes ??
  (Math.max(Math.min(position, model.contextLength), MIN_BUDGET_TOKENS) * fp16BytesPerToken(model)) /
    (config.ratio ?? DEFAULT_RATIO);
