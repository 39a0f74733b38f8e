import type { Engine } from '../engine/types.ts';
import type { TurnRequest } from './api.ts';
import type { Log, Prompt } from './log.ts';

/** What must be equal for a request to sample the same tokens; set on answers that were not ended by the model. */
export const answerKey = ({
  sampling,
  stop,
  format,
}: Pick<TurnRequest, 'sampling' | 'stop' | 'format'>): string =>
  JSON.stringify(format ? [sampling, stop, format] : [sampling, stop]);

/**
 * The tokens of an interrupted answer that the same request would sample again: draws depend on the position alone, so they need not be
 * computed a second time. Only what generation can be gone on from without its own memory of the answer's beginning:
 * no penalties (they count the answer's tokens), no log-probabilities (they were not stored), and nothing held
 * back at the end (half a character, the beginning of a stop string).
 */
export function storedAnswer(
  log: Log,
  prompt: Prompt,
  request: Pick<TurnRequest, 'sampling' | 'stop' | 'maxTokens' | 'format'>,
  { tokenizer, eosIds }: Pick<Engine, 'tokenizer' | 'eosIds'>,
): number[] {
  const last = log.messages.at(-1);
  const { frequencyPenalty, presencePenalty, repetitionPenalty, topLogprobs } = request.sampling;
  if (
    last?.unfinished !== answerKey(request) ||
    last.prompt !== prompt.ids.length ||
    prompt.shared !== last.prompt
  )
    return [];
  if (frequencyPenalty !== 0 || presencePenalty !== 0 || repetitionPenalty !== 1 || topLogprobs !== undefined)
    return [];
  // At least one token is left to sample, so that the answer ends as it would have.
  const ids = log.ids.slice(last.prompt, Math.min(last.end, last.prompt + request.maxTokens - 1));
  while (
    ids.length > 0 &&
    (eosIds.includes(ids.at(-1)!) || holdsBack(tokenizer.decode(ids, { skipSpecials: true }), request.stop))
  )
    ids.pop();
  return ids;
}

/** The text's end is not certain yet, or generation would have stopped in it. */
function holdsBack(text: string, stop: readonly string[]): boolean {
  if (text.endsWith('\uFFFD')) return true;
  return stop.some((one) => {
    if (text.includes(one)) return true;
    for (let n = Math.min(text.length, one.length - 1); n > 0; n--)
      if (text.endsWith(one.slice(0, n))) return true;
    return false;
  });
}
