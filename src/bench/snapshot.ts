import type { PersistableCache } from '../cache/persist.ts';
import type { ModelEngine } from '../engine/engine.ts';

/** Copies a cache's state as a session would store it. */
export function snapshot(cache: PersistableCache): {
  reader: Parameters<ModelEngine['restoreCache']>[0];
  bytes: number;
} {
  const pending = cache.completePlan();
  let bytes = 0;
  const layers = Array.from({ length: cache.layers }, (_, layer) => {
    const hot = cache.hot(layer);
    bytes += hot.length;
    const blocks = Array.from({ length: cache.segmentsOf(layer) }, (_, s) => {
      const block = { version: cache.blockVersion(layer, s), bytes: cache.block(layer, s) };
      bytes += block.bytes.length;
      return block;
    });
    return { hot, blocks };
  });
  // The plan that some layers still wait for.
  const journal = pending ? [pending] : [];
  for (const entry of journal) bytes += entry.bytes.length;
  return {
    bytes,
    reader: {
      header: cache.header,
      bytes,
      hot: (layer) => layers[layer]!.hot,
      block: (layer, segment) => layers[layer]!.blocks[segment]!,
      journal,
    },
  };
}
