import { expect, test } from 'vitest';
import { uniform01 } from '../../src/core/random.ts';
import { BlockFileStore } from '../../src/session/store/block-file.ts';
import { type CrashingFile, Files } from '../helpers/crashing-file.ts';
import { storeConformance } from './store-conformance.ts';

storeConformance('a file of blocks', async (body) => {
  const files = new Files();
  await body(new BlockFileStore('k', files), () => new BlockFileStore('k', files));
});

const contents = (store: BlockFileStore) => new Map(store.ids().map((id) => [id, store.get(id)!.join()]));

test('whenever the machine stops: the last synced state, one after it, or the one that was being written; never a mixture', async () => {
  let draws = 0;
  const random = () => uniform01(7, draws++);
  const survives = (file: CrashingFile, states: readonly Map<number, string>[]) => {
    const after = new Files();
    after.named.set('k', file.crash(random));
    const found = contents(new BlockFileStore('k', after));
    expect(states.some((state) => same(state, found))).toBe(true);
  };
  for (let round = 0; round < 200; round++) {
    const files = new Files();
    const store = new BlockFileStore('k', files);
    const model = new Map<number, string>();
    /** Since the last sync, that one first. */
    let states = [new Map(model)];
    const steps = 1 + Math.floor(random() * 12);
    for (let step = 0; step < steps; step++) {
      store.transaction(() => {
        for (let i = 0; i < 1 + random() * 4; i++) {
          const id = Math.floor(random() * 6);
          if (random() < 0.25) {
            store.delete([id]);
            model.delete(id);
          } else {
            const bytes = Uint8Array.from({ length: Math.floor(random() * 2_000) }, () => random() * 256);
            store.put(id, bytes);
            model.set(id, bytes.join());
          }
        }
        // In the middle of a transaction, too.
        const file = files.named.get('k');
        if (file) survives(file, states);
      });
      states.push(new Map(model));
      if (random() < 0.5) {
        await store.sync();
        states = [new Map(model)];
      }
      expect(contents(store)).toEqual(model);
    }
    const file = files.named.get('k');
    if (file) survives(file, states);
  }
});

const same = (a: Map<number, string>, b: Map<number, string>): boolean =>
  a.size === b.size && [...a].every(([id, bytes]) => b.get(id) === bytes);

test('a write that fails leaves what was there, and the store goes on', () => {
  for (let failAfter = 0; failAfter < 6; failAfter++) {
    const files = new Files();
    const store = new BlockFileStore('k', files);
    store.transaction(() => store.put(1, new Uint8Array(3_000).fill(1)));
    const before = contents(store);
    const file = files.named.get('k')!;
    file.failAfter = failAfter;
    const write = () =>
      store.transaction(() => {
        for (let id = 0; id < 3; id++) store.put(id, new Uint8Array(1_000).fill(failAfter));
      });
    if (failAfter < 5) {
      expect(write).toThrow(expect.objectContaining({ code: 'storage_full' }));
      expect(contents(store)).toEqual(before);
      expect(contents(new BlockFileStore('k', files))).toEqual(before);
      file.failAfter = Number.POSITIVE_INFINITY;
    }
    write();
    expect(store.ids()).toEqual([0, 1, 2]);
    expect(contents(new BlockFileStore('k', files))).toEqual(contents(store));
  }
});

test('blocks of replaced rows are used again, and the end of the file is given back', async () => {
  const files = new Files();
  const store = new BlockFileStore('k', files);
  for (let i = 0; i < 50; i++) {
    store.transaction(() => store.put(1, new Uint8Array(100_000).fill(i)));
    await store.sync();
  }
  const file = files.named.get('k')!;
  // The row, the copy that was written while it was there, two indexes and the heads.
  expect(file.getSize()).toBeLessThan(210_000);
  store.transaction(() => store.delete([1]));
  await store.sync();
  store.transaction(() => store.put(2, new Uint8Array(10)));
  await store.sync();
  expect(file.getSize()).toBeLessThan(5_000);
});
