import { evictDurableObject, runInDurableObject } from 'cloudflare:test';
import { env } from 'cloudflare:workers';
import { expect, test } from 'vitest';

test('objects have SQLite storage and survive an eviction', async () => {
  const stub = env.CONVERSATIONS.getByName('x');
  await runInDurableObject(stub, (_object, state) => {
    state.storage.sql.exec('CREATE TABLE t (a)');
    state.storage.sql.exec('INSERT INTO t VALUES (7)');
  });
  await evictDurableObject(stub);
  const rows = await runInDurableObject(stub, (_object, state) =>
    state.storage.sql.exec('SELECT a FROM t').toArray(),
  );
  expect(rows).toEqual([{ a: 7 }]);
});
