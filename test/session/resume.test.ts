import { expect, test } from 'vitest';
import type { ChatMessage } from '../../src/engine/types.ts';
import { assistant, prose, system, user, World } from '../helpers/sessions.ts';

test('a conversation that is put to sleep between turns says the same, and feeds nothing twice', async () => {
  const one = new World({ layers: 4 });
  const two = new World({ layers: 4 });
  const messages: ChatMessage[] = [system('Be brief.')];
  for (let turn = 0; turn < 6; turn++) {
    messages.push(user(prose(turn === 1 ? 900 : 90, turn + 1)));
    const a = await one.turn(messages, { maxTokens: 60 });
    const b = await two.turn(messages, { maxTokens: 60 });
    expect(b.ids).toEqual(a.ids);
    expect(b.started).toEqual(a.started);
    expect(b.finished.recovered).toBeUndefined();
    messages.push(assistant(a.text));
    two.reopen();
  }
  expect(two.engine.fed).toBe(one.engine.fed);
});
