import { expect, test } from 'vitest';
import { readHead, writeHead } from '../../src/session/head.ts';
import { newHead } from '../../src/session/new-head.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import { FakeEngine } from '../helpers/fake-engine.ts';

test('a log that outgrows its rows is refused by name, and the one before stays', () => {
  const store = new MemoryStore();
  const head = newHead('one', 1, { implicit: false, engine: new FakeEngine() });
  store.transaction(() => writeHead(store, head));
  const said = (characters: number) => ({
    ...head,
    log: { ...head.log, messages: [{ role: 'user' as const, content: 'x'.repeat(characters), end: 0 }] },
  });
  const write = (characters: number) => store.transaction(() => writeHead(store, said(characters)));
  write(5_000_000);
  expect(() => write(9_000_000)).toThrow(
    expect.objectContaining({ code: 'session_too_large', message: expect.stringMatching(/are allowed$/) }),
  );
  expect(readHead(store)).toEqual({ head: said(5_000_000), damage: undefined });
});
