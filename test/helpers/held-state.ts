import type { PersistableCache } from '../../src/cache/persist.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import type { SessionStore } from '../../src/session/store/session-store.ts';

/** Every layer's bytes, and its blocks' versions. */
export function layersOf(cache: PersistableCache): unknown[] {
  const parts: unknown[] = [];
  for (let layer = 0; layer < cache.layers; layer++) {
    parts.push(cache.hot(layer));
    for (let s = 0; s < cache.segmentsOf(layer); s++)
      parts.push(cache.block(layer, s), cache.blockVersion(layer, s));
  }
  return parts;
}

/** All that a cache holds: equal caches have equal ones. */
export const bytesOf = (cache: PersistableCache): unknown[] => [cache.header, ...layersOf(cache)];

export const rowsOf = (store: SessionStore): Map<number, Uint8Array> =>
  new Map(store.ids().map((id) => [id, store.get(id)!]));

export function storeOf(rows: ReadonlyMap<number, Uint8Array>): MemoryStore {
  const store = new MemoryStore();
  store.transaction(() => {
    for (const [id, bytes] of rows) store.put(id, bytes);
  });
  return store;
}
