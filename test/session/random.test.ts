import fc from 'fast-check';
import { expect, test } from 'vitest';
import type { ChatMessage } from '../../src/engine/types.ts';
import { readHead } from '../../src/session/head.ts';
import { FakeEngine } from '../helpers/fake-engine.ts';
import { fakeGenerate } from '../helpers/fake-generate.ts';
import { bytesOf } from '../helpers/held-state.ts';
import { GREEDY, pause, prose, request, user, World } from '../helpers/sessions.ts';

/** One thing that may happen to a conversation. */
const step = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant('say' as const),
      tokens: fc.integer({ min: 1, max: 400 }),
      answer: fc.integer({ min: 1, max: 80 }),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant('say' as const),
      tokens: fc.integer({ min: 900, max: 1_800 }),
      answer: fc.constant(10),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant('again' as const),
      back: fc.integer({ min: 0, max: 3 }),
      answer: fc.integer({ min: 1, max: 60 }),
      seed: fc.integer({ min: 0, max: 3 }),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant('abort' as const),
      tokens: fc.integer({ min: 1, max: 600 }),
      after: fc.integer({ min: 1, max: 20 }),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant('crash' as const),
      tokens: fc.integer({ min: 1, max: 1_500 }),
      slice: fc.integer({ min: 1, max: 60 }),
    }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('sleep' as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('damage' as const), row: fc.nat(), at: fc.nat() }) },
);

/**
 * The law of sessions: whatever happened, an answer is what a new cache, fed the log's ids from the start, would have said, and the state that
 * is kept is the one that such a cache would be in.
 */
test('whatever happens to a conversation, its state is a function of its log', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 3, maxLength: 12 }), async (steps) => {
      const world = new World({ layers: 2, tokenBytes: 4 });
      let count = 0;
      for (const one of steps) {
        const said: ChatMessage[] = world.store().ids().length > 0 ? await world.host.messages('k') : [];
        const options = { maxTokens: 20, sampling: { ...GREEDY, temperature: 1, seed: 1 } };
        let messages = [...said, user(prose('tokens' in one ? one.tokens : 1, ++count))];
        if (one.do === 'sleep') {
          world.reopen();
          continue;
        }
        if (one.do === 'damage') {
          const ids = world.store().ids();
          const id = ids[one.row % Math.max(1, ids.length)];
          if (id === undefined) continue;
          const bytes = world.store().get(id)!;
          bytes[one.at % bytes.length]! ^= 4;
          world.store().transaction(() => world.store().put(id, bytes));
          world.reopen();
          continue;
        }
        if (one.do === 'say') options.maxTokens = one.answer;
        if (one.do === 'again') {
          const questions = said.flatMap(({ role }, i) => (role === 'user' ? [i] : []));
          const at = questions.at(-1 - (one.back % Math.max(1, questions.length)));
          if (at === undefined) continue;
          messages = said.slice(0, at + 1);
          options.maxTokens = one.answer;
          options.sampling = { ...options.sampling, seed: one.seed };
        }
        const controller = new AbortController();
        if (one.do === 'crash') {
          let slices = 0;
          world.engine.onSlice = () => {
            if (++slices === one.slice) throw new Error('crash');
          };
        }
        const ids: number[] = [];
        let last: string | undefined;
        let events = 0;
        for await (const event of await world.host.turn(
          'k',
          'k',
          request(messages, options),
          controller.signal,
        )) {
          if (event.type === 'token') ids.push(event.id);
          last = event.type;
          if (one.do === 'abort' && ++events === one.after) controller.abort();
        }
        world.engine.onSlice = undefined;
        await pause(0);
        await check(world, last === 'finished' ? { ids, options, messages } : undefined);
      }
      expect(world.engine.live.size).toBeLessThanOrEqual(1);
    }),
    { numRuns: 15, seed: 5, endOnFailure: false },
  );
}, 120_000);

async function check(
  world: World,
  finished:
    | { ids: number[]; options: { maxTokens: number; sampling: typeof GREEDY }; messages: ChatMessage[] }
    | undefined,
): Promise<void> {
  const head = world.store().ids().length > 0 ? readHead(world.store())!.head : undefined;
  if (!head) return;
  const { log } = head;
  const engine = new FakeEngine({ layers: 2, tokenBytes: 4 });
  if (finished) {
    const answer = log.messages.at(-1)!;
    expect(log.messages.slice(0, -1).map(({ role, content }) => ({ role, content }))).toEqual(
      finished.messages,
    );
    expect(log.ids.slice(answer.prompt)).toEqual(finished.ids);
    const straight = engine.createCache(head.cacheConfig);
    const sampled: number[] = [];
    const options = { ...finished.options, stop: [] };
    for await (const event of fakeGenerate(engine, straight, log.ids.slice(0, answer.prompt), options))
      if (event.type === 'token') sampled.push(event.id);
    expect(finished.ids).toEqual(sampled);
  }
  for (const cache of world.engine.live) {
    const straight = engine.createCache(head.cacheConfig);
    for (const id of log.ids.slice(0, log.fed)) straight.feedOne(id);
    expect(bytesOf(cache)).toEqual(bytesOf(straight));
  }
}
