import { expect, test } from 'vitest';
import { uniform01 } from '../../src/core/random.ts';
import { BlockFileStore, type SyncFile, type SyncFiles } from '../../src/session/store/block-file.ts';
import { storeConformance } from './store-conformance.ts';

/** A file whose writes are durable with the next flush; until then a crash may keep any of them, whole or in part. */
class CrashingFile implements SyncFile {
  #durable: Uint8Array;
  #now: Uint8Array;
  #lost: { at: number; bytes: Uint8Array }[] = [];
  /** Writes until one fails. */
  failAfter = Number.POSITIVE_INFINITY;

  constructor(bytes: Uint8Array = new Uint8Array()) {
    this.#durable = bytes.slice();
    this.#now = bytes.slice();
  }
  read(into: Uint8Array, { at }: { at: number }): number {
    const part = this.#now.subarray(at, at + into.byteLength);
    into.set(part);
    return part.byteLength;
  }
  write(from: Uint8Array, { at }: { at: number }): number {
    if (this.failAfter-- <= 0) throw Object.assign(new Error('full'), { name: 'QuotaExceededError' });
    this.#now = placed(this.#now, from, at);
    this.#lost.push({ at, bytes: from.slice() });
    return from.byteLength;
  }
  truncate(size: number): void {
    this.#now = this.#now.slice(0, size);
  }
  getSize(): number {
    return this.#now.byteLength;
  }
  flush(): void {
    this.#durable = this.#now.slice();
    this.#lost = [];
  }
  close(): void {}
  /** What the disk holds after the machine went down now. */
  crash(random: () => number): CrashingFile {
    let bytes = this.#durable;
    for (const { at, bytes: lost } of this.#lost)
      if (random() < 0.5) bytes = placed(bytes, lost.subarray(0, Math.ceil(lost.length * random())), at);
    return new CrashingFile(bytes);
  }
}

function placed(into: Uint8Array, bytes: Uint8Array, at: number): Uint8Array {
  const grown = new Uint8Array(Math.max(into.byteLength, at + bytes.byteLength));
  grown.set(into);
  grown.set(bytes, at);
  return grown;
}

class Files implements SyncFiles {
  readonly named = new Map<string, CrashingFile>();
  find(name: string) {
    return this.named.get(name);
  }
  take(name: string) {
    const file = this.named.get(name) ?? new CrashingFile();
    this.named.set(name, file);
    return file;
  }
  async ready() {}
  give(name: string) {
    this.named.delete(name);
  }
}

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
