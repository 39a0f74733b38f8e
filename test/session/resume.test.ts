import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import type { ChatMessage } from '../../src/engine/types.ts';
import { RowKind } from '../../src/session/row.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import { NodeSqliteStore } from '../../src/session/store/node-sqlite.ts';
import { assistant, prose, system, user, World } from '../helpers/sessions.ts';

const folder = mkdtempSync(join(tmpdir(), 'adkvc-'));
afterAll(() => rmSync(folder, { recursive: true }));

class WatchedStore extends MemoryStore {
  readonly read: { kind: number; row: Uint8Array }[] = [];

  override get(id: number): Uint8Array | undefined {
    const row = super.get(id);
    if (row) this.read.push({ kind: row[5]!, row });
    return row;
  }
}

test('restoring leaves no row of the cache to the collector', async () => {
  const world = new World({ layers: 4 });
  const store = new WatchedStore();
  world.stores.set('k', store);
  const messages: ChatMessage[] = [];
  for (const words of [900, 400, 20]) {
    world.reopen();
    store.read.length = 0;
    messages.push(user(prose(words, words)));
    const { text } = await world.turn(messages, { maxTokens: 20 });
    messages.push(assistant(text));
    const rows = store.read.filter(({ kind }) =>
      [RowKind.hot, RowKind.extent, RowKind.exact].includes(kind as 3),
    );
    if (words < 900) {
      for (const kind of [RowKind.hot, RowKind.extent, RowKind.exact])
        expect(rows.some((row) => row.kind === kind)).toBe(true);
    }
    expect(rows.every(({ row }) => (row.buffer as ArrayBuffer).detached)).toBe(true);
  }
});

test.for([
  ['memory', () => new MemoryStore()],
  ['node:sqlite', () => new NodeSqliteStore(join(folder, 'k.sqlite'))],
] as const)(
  '%s: a conversation that is put to sleep between turns says the same, and feeds nothing twice',
  async ([, open]) => {
    const awake = new World({ layers: 4 });
    const asleep = new World({ layers: 4 });
    asleep.stores.set('k', open());
    const messages: ChatMessage[] = [system('Be brief.')];
    for (let turn = 0; turn < 6; turn++) {
      messages.push(user(prose(turn === 1 ? 900 : 90, turn + 1)));
      const a = await awake.turn(messages, { maxTokens: 60 });
      const b = await asleep.turn(messages, { maxTokens: 60 });
      expect(b.ids).toEqual(a.ids);
      expect(b.started).toEqual(a.started);
      expect(b.finished.recovered).toBeUndefined();
      messages.push(assistant(a.text));
      asleep.reopen();
    }
    expect(asleep.engine.fed).toBe(awake.engine.fed);
    await asleep.host.delete('k');
    expect(readdirSync(folder)).toEqual([]);
  },
);
