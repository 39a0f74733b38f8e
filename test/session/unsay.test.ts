import { expect, test } from 'vitest';
import type { ChatMessage } from '../../src/engine/types.ts';
import { readHead } from '../../src/session/head.ts';
import { assistant, GREEDY, prose, user, World } from '../helpers/sessions.ts';

const OPTIONS = { maxTokens: 30, sampling: { ...GREEDY, temperature: 1, seed: 3 } };

/** Two turns as in every world, then a third that may be taken back. */
async function scene(third: boolean) {
  const world = new World({ layers: 2, tokenBytes: 4 });
  const messages: ChatMessage[] = [];
  for (let turn = 0; turn < (third ? 3 : 2); turn++) {
    messages.push(user(turn === 2 ? `SECRET${prose(600, 7)}` : prose(300, turn + 1)));
    messages.push(assistant((await world.turn(messages, { ...OPTIONS, note: `n${turn}` })).text));
  }
  return { world, messages };
}

test('the newest answer goes with its question and every byte of both; the session goes on as if it had never been', async () => {
  const { world } = await scene(true);
  const holds = () =>
    world
      .store()
      .ids()
      .some((id) => new TextDecoder('latin1').decode(world.store().get(id)!).includes('SECRET'));
  expect(holds()).toBe(true);
  await world.host.unsay('k', 6);
  expect(holds()).toBe(false);
  const { world: never, messages } = await scene(false);
  expect((await world.host.messages('k')).map(({ content }) => content)).toEqual(
    messages.map(({ content }) => content),
  );
  const { head } = readHead(world.store())!;
  for (const { position } of head.states) expect(position).toBeLessThanOrEqual(head.log.ids.length);
  const next = [...messages, user('go on')];
  const [a, b] = [await world.turn(next, OPTIONS), await never.turn(next, OPTIONS)];
  expect(a.ids).toEqual(b.ids);
  expect(a.finished.recovered).toBeUndefined();
  // From a checkpoint, not from the beginning.
  expect(a.started.cachedTokens).toBeGreaterThan(300);
  // Also when it is read from the store again.
  world.reopen();
  expect((await world.host.messages('k')).length).toBe(6);
  expect(world.engine.live.size).toBe(0);
});

test('an older answer stays as what the later ones go on from, without its record', async () => {
  const { world, messages } = await scene(true);
  await world.host.unsay('k', 2);
  const said = await world.host.messages('k');
  expect(said[1]).toEqual({ role: 'assistant', content: messages[1]!.content, withdrawn: true });
  expect(said[3]!.made).toMatchObject({ note: 'n1', reason: 'length', completionTokens: 30 });
  // It stays so through turns, forks and restarts.
  const next = [...messages, user('go on')];
  expect((await world.turn(next, OPTIONS)).started.cachedTokens).toBeGreaterThan(900);
  await world.host.fork('k', { key: 'f', id: 'f' });
  world.reopen();
  for (const key of ['k', 'f']) {
    const again = await world.host.messages(key);
    expect([again[1]!.withdrawn, again[3]!.made!.note]).toEqual([true, 'n1']);
  }
});

test('what is no answer is refused, and a session that is not there is not made', async () => {
  const { world } = await scene(false);
  for (const count of [0, 1, 5, 99])
    await expect(world.host.unsay('k', count)).rejects.toMatchObject({ code: 'invalid_input' });
  await expect(world.host.unsay('none', 2)).rejects.toMatchObject({ code: 'session_not_found' });
  await world.host.unsay('k', 4);
  await world.host.unsay('k', 2);
  expect(await world.host.messages('k')).toEqual([]);
  expect(world.store().ids().length).toBe(2);
  expect((await world.turn([user('anew')], OPTIONS)).started.cachedTokens).toBe(0);
});
