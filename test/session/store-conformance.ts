import { expect, test } from 'vitest';
import { MAX_ROW_BYTES, type SessionStore } from '../../src/session/store/session-store.ts';

/**
 * What every SessionStore must do. `run` gives a function a store that was never written to, and `again`, another store object over
 * the same bytes, as after a restart (undefined: the store lives in this object only).
 */
export function storeConformance(
  name: string,
  run: (
    body: (store: SessionStore, again: (() => SessionStore) | undefined) => Promise<void>,
  ) => Promise<void>,
): void {
  const bytes = (...values: number[]) => new Uint8Array(values);
  const check = (
    title: string,
    body: (store: SessionStore, again: (() => SessionStore) | undefined) => Promise<void>,
  ) => test(`${name}: ${title}`, () => run(body));

  check('a store that was never written to is empty, and reads create nothing', async (store, again) => {
    for (const one of [store, again?.() ?? store]) {
      expect(one.get(1)).toBeUndefined();
      expect(one.ids()).toEqual([]);
      expect(one.size()).toEqual({ rows: 0, bytes: 0 });
    }
    expect(store.counters.rowsWritten).toBe(0);
  });

  check('rows are written, overwritten, listed in order, deleted and counted', async (store) => {
    store.transaction(() => {
      store.put(70, bytes(1, 2, 3));
      store.put(3, bytes(4));
      store.put(0, bytes());
      expect(store.get(70)).toEqual(bytes(1, 2, 3));
    });
    store.transaction(() => store.put(70, bytes(9, 9)));
    expect(store.get(70)).toEqual(bytes(9, 9));
    expect(store.get(0)).toEqual(bytes());
    expect(store.ids()).toEqual([0, 3, 70]);
    expect(store.size()).toEqual({ rows: 3, bytes: 3 });
    store.transaction(() => store.delete([3, 4, 5]));
    expect(store.ids()).toEqual([0, 70]);
    expect(store.counters).toMatchObject({ rowsWritten: 5, bytesWritten: 6 });
  });

  check(
    'a transaction returns its value; one that throws leaves nothing, its first one not even a table',
    async (store) => {
      const fail = () =>
        store.transaction(() => {
          store.put(1, bytes(1));
          throw new Error('on purpose');
        });
      expect(fail).toThrow('on purpose');
      expect(store.ids()).toEqual([]);
      const value = store.transaction(() => {
        store.put(1, bytes(1));
        return 'value';
      });
      expect(value).toBe('value');
      expect(() =>
        store.transaction(() => {
          store.put(1, bytes(2));
          store.put(2, bytes(3));
          store.delete([1]);
          throw new Error('on purpose');
        }),
      ).toThrow('on purpose');
      expect(store.ids()).toEqual([1]);
      expect(store.get(1)).toEqual(bytes(1));
    },
  );

  check(
    'writes outside a transaction, transactions within one and asynchronous ones are refused',
    async (store) => {
      expect(() => store.put(1, bytes(1))).toThrow('within a transaction');
      expect(() => store.delete([1])).toThrow('within a transaction');
      store.transaction(() => {
        store.put(1, bytes(1));
        expect(() => store.transaction(() => 0)).toThrow('do not nest');
        store.put(2, bytes(2));
      });
      expect(store.ids()).toEqual([1, 2]);
      expect(() =>
        store.transaction(async () => {
          store.put(3, bytes(3));
        }),
      ).toThrow('synchronous');
      expect(store.ids()).toEqual([1, 2]);
    },
  );

  check(`rows hold up to ${MAX_ROW_BYTES} bytes and are copied both ways`, async (store) => {
    const big = new Uint8Array(MAX_ROW_BYTES + 8).map((_, i) => (i * 7919) >> 3).subarray(8);
    const copy = big.slice();
    store.transaction(() => {
      store.put(1, big);
      expect(() => store.put(2, new Uint8Array(MAX_ROW_BYTES + 1))).toThrow(RangeError);
      expect(() => store.put(-1, bytes())).toThrow(RangeError);
      expect(() => store.put(1.5, bytes())).toThrow(RangeError);
    });
    big.fill(0);
    const read = store.get(1)!;
    expect(read.byteLength).toBe(MAX_ROW_BYTES);
    expect(same(read, copy)).toBe(true);
    read.fill(0);
    expect(same(store.get(1)!, copy)).toBe(true);
  });

  check('more rows are deleted at once than a statement has parameters', async (store) => {
    const ids = Array.from({ length: 250 }, (_, i) => i * 3);
    store.transaction(() => {
      for (const id of ids) store.put(id, bytes(1));
    });
    store.transaction(() => store.delete(ids.slice(0, 240)));
    expect(store.ids()).toEqual(ids.slice(240));
  });

  check('what was synced is there in another store object', async (store, again) => {
    store.transaction(() => store.put(5, bytes(1, 2)));
    await store.sync();
    if (again) expect(again().get(5)).toEqual(bytes(1, 2));
  });

  check('destroy leaves nothing, and the store can be used again', async (store, again) => {
    store.transaction(() => store.put(5, bytes(1, 2)));
    await store.destroy();
    expect(store.ids()).toEqual([]);
    expect(store.get(5)).toBeUndefined();
    if (again) expect(again().ids()).toEqual([]);
    store.transaction(() => store.put(6, bytes(3)));
    expect(store.ids()).toEqual([6]);
  });
}

const same = (a: Uint8Array, b: Uint8Array): boolean =>
  a.length === b.length && a.every((byte, i) => byte === b[i]);
