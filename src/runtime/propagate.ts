import type { KvCache } from '../cache/cache.ts';
import type { PropagatingCache } from '../cache/propagating-cache.ts';
import { InvalidInputError } from '../core/errors.ts';
import type { Chunk } from './chunk.ts';

/** What the forward pass lends for it. */
export interface PropagationParts {
  /** Runs steps of a chunk whose rope tables are filled. */
  runSteps(cache: KvCache, chunk: Chunk): Promise<void>;
  /** Where a layer's output alone goes on. */
  after(layer: number): { readonly step: number; readonly value: string };
  /** The first `rows` rows of a value, valid until kernel memory grows. */
  view(value: string, rows: number): Float32Array;
  /** Makes row `at` of the rope tables that of a position. */
  fillRope(position: number, rows: number, at: number): void;
}

/**
 * A chunk under token-selective propagation: up to the propagation layer all its rows; the layers above run once the prompt is whole, over the
 * rows that go on alone, and then with every row. Neither where chunks end nor how many there are changes anything: a prompt's end is fixed.
 * @throws InvalidInputError when logits are wanted of rows that do not reach the last layer
 */
export async function runPropagating(
  parts: PropagationParts,
  cache: PropagatingCache,
  chunk: Chunk,
): Promise<void> {
  const { rows, wanted, sink } = chunk;
  const base = cache.layers;
  const { step, value } = parts.after(base - 1);
  if (cache.upper) {
    cache.upper.reserve(rows);
    await parts.runSteps(cache, { ...chunk, to: step });
    await parts.runSteps(cache.upper, { ...chunk, from: step, base });
    cache.upper.advance(rows);
    return;
  }
  const whole = cache.position + rows === cache.promptTokens;
  if (wanted.some((row) => !whole || row !== rows - 1))
    throw new InvalidInputError(
      "under policy fastkv a prompt's last token alone has logits: the others do not reach the last layer",
      'policy',
    );
  await parts.runSteps(cache, { ...chunk, to: step });
  cache.keep(parts.view(value, rows), rows);
  if (!whole) return;
  const { upper, positions } = cache.propagate(rows);
  for (let at = 0; at < positions.length; ) {
    const tile = positions.slice(at, at + upper.room);
    at += tile.length;
    upper.reserve(tile.length);
    const states = parts.view(value, tile.length);
    tile.forEach((position, row) => {
      const state = cache.hidden(position);
      states.set(state, row * state.length);
      parts.fillRope(position, 1, row);
    });
    await parts.runSteps(upper, {
      ...chunk,
      rows: tile.length,
      wanted: at === positions.length && wanted.length > 0 ? [tile.length - 1] : [],
      sink: (_, logits) => sink(rows - 1, logits),
      from: step,
      base,
    });
    upper.advance(tile.length);
  }
  cache.propagated();
}
