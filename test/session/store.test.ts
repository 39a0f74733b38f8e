import { copyFileSync, existsSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { Checkpointer } from '../../src/session/store/checkpointer.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import { NodeSqliteStore } from '../../src/session/store/node-sqlite.ts';
import { storeConformance } from './store-conformance.ts';

storeConformance('memory', (body) => body(new MemoryStore(), undefined));

async function inFolder<T>(body: (folder: string) => T | Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), 'adkvc-'));
  try {
    return await body(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

storeConformance('node:sqlite', (body) =>
  inFolder(async (folder) => {
    const stores: NodeSqliteStore[] = [];
    const open = () => {
      const store = new NodeSqliteStore(join(folder, 'session.sqlite'));
      stores.push(store);
      return store;
    };
    try {
      await body(open(), open);
    } finally {
      for (const store of stores) store.close();
    }
  }),
);

test('node:sqlite: a long log is carried over into the file beside its writer', () =>
  inFolder(async (folder) => {
    const path = join(folder, 'session.sqlite');
    const store = new NodeSqliteStore(path, new Checkpointer());
    const row = (turn: number, id: number) => new Uint8Array(250_000).fill(turn * 40 + id);
    for (let turn = 0; turn < 4; turn++) {
      store.transaction(() => {
        for (let id = 0; id < 40; id++) store.put(id, row(turn, id));
      });
      await store.sync();
      await store.settled();
      // The file alone, without its log.
      const copy = join(folder, `copy${turn}.sqlite`);
      copyFileSync(path, copy);
      const other = new NodeSqliteStore(copy);
      for (let id = 0; id < 40; id++)
        expect(Buffer.compare(other.get(id) ?? new Uint8Array(0), row(turn, id))).toBe(0);
      other.close();
    }
    // 40 MB were written: the log began anew each time.
    expect(statSync(`${path}-wal`).size).toBeLessThan(16e6);
    await store.destroy();
    expect(readdirSync(folder).filter((name) => name.startsWith('session'))).toEqual([]);
  }));

test('node:sqlite: reads make no file, destroy leaves none', () =>
  inFolder(async (folder) => {
    const path = join(folder, 'session.sqlite');
    const store = new NodeSqliteStore(path);
    store.ids();
    store.get(1);
    store.size();
    expect(existsSync(path)).toBe(false);
    store.transaction(() => store.put(1, new Uint8Array(9)));
    expect(existsSync(path)).toBe(true);
    await store.destroy();
    expect(readdirSync(folder)).toEqual([]);
  }));
