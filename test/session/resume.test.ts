import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import type { ChatMessage } from '../../src/engine/types.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import { NodeSqliteStore } from '../../src/session/store/node-sqlite.ts';
import { assistant, prose, system, user, World } from '../helpers/sessions.ts';

const folder = mkdtempSync(join(tmpdir(), 'adkvc-'));
afterAll(() => rmSync(folder, { recursive: true }));

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
