import { EPOCH } from '../../src/core/config.ts';
import type { SamplingOptions } from '../../src/engine/types.ts';
import type { Generate } from '../../src/session/services.ts';

/** Stands for engine/generate.ts, as plainly as its contract allows: greedy, or a draw that hashes (seed, position). */
export const fakeGenerate: Generate = async function* (engine, cache, ids, options) {
  const run = { signal: options.signal, yield: options.yield };
  let logits = new Float32Array(0);
  const { current = () => cache } = options;
  while (current().position < ids.length) {
    const { position } = current();
    const end = Math.min(ids.length, (Math.floor(position / EPOCH) + 1) * EPOCH);
    logits = (await engine.feed(
      current(),
      ids.slice(position, end),
      end === ids.length ? 'last' : 'none',
      run,
    )) as typeof logits;
    yield { type: 'prefill', position: end, total: ids.length };
  }
  const text = engine.tokenizer.stream();
  let held = '';
  for (let count = 1; ; count++) {
    const id = pick(logits, options.sampling, current().position);
    const eos = engine.eosIds.includes(id);
    held += text.push(id);
    const at = Math.min(...options.stop.map((stop) => held.indexOf(stop)).filter((found) => found >= 0));
    const stopped = Number.isFinite(at);
    if (stopped) held = held.slice(0, at);
    const keep = stopped ? 0 : Math.max(0, ...options.stop.map((stop) => overlap(held, stop)));
    const piece = held.slice(0, held.length - keep);
    held = held.slice(piece.length);
    yield { type: 'token', id, text: piece };
    if (eos || stopped || count >= options.maxTokens) {
      yield { type: 'finish', reason: eos || stopped ? 'stop' : 'length', text: held };
      return;
    }
    logits = (await engine.feed(current(), [id], 'last', run)) as typeof logits;
  }
};

function pick(logits: Float32Array, sampling: SamplingOptions, position: number): number {
  let best = 0;
  let most = Number.NEGATIVE_INFINITY;
  for (let id = 0; id < logits.length; id++) {
    const noise =
      sampling.temperature &&
      ((Math.imul(sampling.seed + 1, 2654435761) ^ Math.imul(position + id, 40503)) >>> 0) / 2 ** 32;
    const score = logits[id]! + noise;
    if (score > most) [best, most] = [id, score];
  }
  return best;
}

/** The longest end of `text` that begins `stop`. */
function overlap(text: string, stop: string): number {
  for (let n = Math.min(text.length, stop.length - 1); n > 0; n--)
    if (text.endsWith(stop.slice(0, n))) return n;
  return 0;
}
