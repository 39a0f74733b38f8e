import type { CacheConfig } from '../cache/policy.ts';
import { ContextLengthError } from '../core/errors.ts';
import type { Engine } from '../engine/types.ts';

/**
 * The bytes that a turn is admitted by: the most that its cache can take up to `tokens`, messages and answer.
 * @param capacity bytes of the isolate for a turn that is alone
 * @throws ContextLengthError naming the tokens that would fit
 */
export function bytesToAdmit(
  capacity: number,
  engine: Pick<Engine, 'positionLimit' | 'worstCaseBytes'>,
  config: CacheConfig,
  promptTokens: number,
  tokens: number,
): number {
  const limit = engine.positionLimit(config);
  if (promptTokens >= limit)
    throw new ContextLengthError(
      `messages take ${promptTokens} tokens, ${limit - 1} fit before an answer: shorten them or start a new session`,
      { tokens: promptTokens, limit: limit - 1 },
    );
  const bytes = engine.worstCaseBytes(config, tokens);
  if (bytes <= capacity) return bytes;
  let low = 0;
  for (let high = tokens; low < high; ) {
    const middle = Math.ceil((low + high) / 2);
    if (engine.worstCaseBytes(config, middle) <= capacity) low = middle;
    else high = middle - 1;
  }
  throw new ContextLengthError(
    `${tokens} tokens (messages and max_tokens) need ${bytes} bytes under policy ${config.policy}, ${capacity} are there: at most ${low} tokens fit`,
    { tokens, limit: low },
  );
}
