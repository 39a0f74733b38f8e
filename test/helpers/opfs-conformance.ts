import { expect, test } from 'vitest';
import { OpfsFolder } from '../../src/session/store/opfs.ts';
import { storeConformance } from '../session/store-conformance.ts';
import { runCollected } from './small-expect.ts';

/** Bundled, with small-expect.ts in vitest's place, and run in a worker of a real browser by test/e2e/browser.test.ts. */
let folders = 0;
storeConformance('a browser’s own files', async (body) => {
  const folder = await OpfsFolder.open(`conformance-${folders++}`);
  try {
    await body(folder.store('k'), () => folder.store('k'));
  } finally {
    folder.close();
  }
});

test('another visit finds what was kept, under its name; what was deleted is gone, and its files are used again', async () => {
  const name = `again-${Date.now()}`;
  let folder = await OpfsFolder.open(name);
  for (let i = 0; i < 20; i++) {
    const store = folder.store(`s${i}`);
    store.transaction(() => store.put(i, new Uint8Array(1_000).fill(i)));
    await store.sync();
  }
  for (let i = 0; i < 15; i++) await folder.store(`s${i}`).destroy();
  folder.close();
  folder = await OpfsFolder.open(name);
  expect(folder.names.sort()).toEqual(['s15', 's16', 's17', 's18', 's19']);
  expect(folder.store('s3').ids()).toEqual([]);
  expect(folder.store('s17').get(17)).toEqual(new Uint8Array(1_000).fill(17));
  folder.close();
  const root = await navigator.storage.getDirectory();
  let files = 0;
  for await (const _ of (
    (await root.getDirectoryHandle(name)) as unknown as { keys(): AsyncIterable<string> }
  ).keys())
    files++;
  // Those that hold something, and the spare ones.
  expect(files).toBe(5 + 8);
});

test('a folder that another worker has open is refused by name', async () => {
  const folder = await OpfsFolder.open('held');
  const store = folder.store('k');
  store.transaction(() => store.put(1, new Uint8Array(1)));
  let code: unknown;
  await OpfsFolder.open('held').catch((error) => {
    code = error.code;
  });
  expect(code).toBe('storage_unavailable');
  folder.close();
});

self.onmessage = async () => postMessage(await runCollected());
