import type { Engine } from '../engine/types.ts';
import type { ImportOptions } from './api.ts';
import type { ByteReader } from './byte-reader.ts';
import { FIRST_FREE_ROW, type Head, writeHead } from './head.ts';
import { RowAllocator, RowKind, RowStream } from './row.ts';
import { encodeState } from './state.ts';
import type { SessionStore } from './store/session-store.ts';
import { type Imported, readExport } from './transfer.ts';

interface AdoptOptions extends ImportOptions {
  readonly id: string;
  /** ms */
  readonly now: number;
}

/**
 * Writes an exported conversation into an empty store as one of its own. Rows are no session until the head is written, last: who fails
 * here leaves rows that the caller clears away.
 * @throws what readExport throws; InvalidInputError for a configuration that no cache could have
 */
export async function adopt(
  store: SessionStore,
  engine: Engine,
  file: ByteReader,
  options: AdoptOptions,
): Promise<Head> {
  const putRow = (row: number, bytes: Uint8Array): void => store.transaction(() => store.put(row, bytes));
  const imported = await readExport(file, engine, putRow, options.foreignNumerics);
  engine.worstCaseBytes(imported.cacheConfig, 1);
  return store.transaction(() => {
    const head = headOf(store, imported, options);
    writeHead(store, head);
    return head;
  });
}

/** Within the transaction that writes the head: the state record gets its rows beside those that it names. */
function headOf(store: SessionStore, imported: Imported, options: AdoptOptions): Head {
  const { state, ttlSeconds, ...rest } = imported;
  const base = {
    ...rest,
    id: options.id,
    createdAt: options.now,
    lastUsedAt: options.now,
    ttlSeconds: options.ttlSeconds ?? ttlSeconds,
    implicit: false,
    ...(options.listing && { listing: options.listing }),
  };
  if (!state) return { ...base, states: [] };
  const existing = store.ids();
  const rows = new RowStream(
    store,
    new RowAllocator(existing, new Set(existing), FIRST_FREE_ROW),
    RowKind.state,
  );
  rows.push(encodeState(state));
  return { ...base, states: [{ refs: rows.end(), position: state.header.position }] };
}
