import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
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
