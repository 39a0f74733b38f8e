import { cpSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { KvCache } from '../../src/cache/cache.ts';
import { loadWasmKernels } from '../../src/cli/load-engine.ts';
import { loadEngine } from '../../src/engine/load.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { readHead } from '../../src/session/head.ts';
import { restore } from '../../src/session/recover.ts';
import { readState } from '../../src/session/state.ts';
import { NodeSqliteStore } from '../../src/session/store/node-sqlite.ts';
import { stateOf } from './cache-driver.ts';

/**
 * What a stopped server has stored of one session, read from its SQLite file and restored in Node: the log, and every byte of the cache.
 */
export async function storedState(dataDir: string, bundleDir: string, sessionId: string) {
  const copy = mkdtempSync(join(tmpdir(), 'adkvc-stored-'));
  try {
    cpSync(dataDir, copy, { recursive: true });
    const files = readdirSync(copy, { recursive: true, encoding: 'utf8' }).filter((f) =>
      f.endsWith('.sqlite'),
    );
    for (const file of files) {
      const store = new NodeSqliteStore(join(copy, file));
      try {
        if (store.ids().length === 0) continue;
        const head = readHead(store)?.head;
        if (head?.id !== sessionId) continue;
        const engine = await loadEngine({
          source: folderSource(bundleDir),
          kernels: await loadWasmKernels(256e6),
        });
        const cache = restore(store, engine, readState(store, head.states.at(-1)!)) as KvCache;
        return { log: head.log, ...stateOf(cache) };
      } finally {
        store.close();
      }
    }
    throw new Error(`no stored session ${sessionId} among ${files.length} files`);
  } finally {
    rmSync(copy, { recursive: true, force: true });
  }
}
