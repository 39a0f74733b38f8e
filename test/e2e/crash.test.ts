import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventsOf } from '../../scripts/event-stream.ts';
import { startServer, type TestServer } from '../helpers/server.ts';
import { storedState } from '../helpers/stored-state.ts';
import { type TinyServed, tinyServed } from '../helpers/tiny-bundle.ts';
import { prose } from '../helpers/turns.ts';

/** Crashes of the whole server or of workerd, and what is left: the same tokens and the same stored bytes as without them. */
const SESSION = 'crash-test';
const TURNS = [prose(300, 1), prose(40, 2), prose(260, 3), prose(20, 4)];

interface Answer {
  text: string;
  cached: number;
  total: number;
}

/** ADKVC_FAULTS=50 for the full count; each costs a start of the server. */
const KILLS = Number(process.env.ADKVC_FAULTS ?? 2);
const KILL_SEED = 9;
const LONGEST_MS = 1_500;
/** Of TURNS: those that are killed in the middle of a stream. */
const LONG_TURNS = [1, 2];
const momentOf = (round: number): number =>
  Math.floor((((Math.imul(round + KILL_SEED, 0x9e3779b1) >>> 0) % 10_007) / 10_007) * LONGEST_MS);

let tiny: TinyServed;
let undisturbed: Answer[];
let expected: Awaited<ReturnType<typeof storedState>>;

async function turn(server: TestServer, n: number, onText?: (text: string) => void): Promise<Answer> {
  // A ratio of its own: what an isolate gives a conversation by default would hold all of this one at 8 bits.
  if (n === 0)
    await fetch(`${server.url}/v1/sessions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ id: SESSION, policy: 'adkvc', ratio: 4 }),
    });
  const response = await fetch(`${server.url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({
      model: tiny.modelId,
      session_id: SESSION,
      session_append: true,
      messages: [{ role: 'user', content: TURNS[n] }],
      temperature: 0.7,
      seed: 11 + n,
      // Long enough to be killed in its midst.
      max_tokens: LONG_TURNS.includes(n) ? 400 : 60,
      stream: true,
      stream_options: { include_usage: true },
    }),
  });
  if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
  let text = '';
  let usage: { prompt_tokens_details: { cached_tokens: number }; total_tokens: number } | undefined;
  for await (const chunk of eventsOf(response)) {
    if (chunk.error) throw new Error(chunk.error.message);
    text += chunk.choices[0]?.delta.content ?? '';
    usage = chunk.usage ?? usage;
    if (text !== '') onText?.(text);
  }
  if (!usage) throw new Error('the stream ended early');
  return { text, cached: usage.prompt_tokens_details.cached_tokens, total: usage.total_tokens };
}

const start = (name: string): Promise<TestServer> =>
  startServer({ dataDir: join(tiny.folder, name), assetsDir: tiny.assetsDir });

beforeAll(async () => {
  tiny = await tinyServed({ endless: true, context: 4096 });
  const server = await start('undisturbed');
  undisturbed = [];
  for (const n of TURNS.keys()) undisturbed.push(await turn(server, n));
  await server.stop();
  expected = await storedState(join(tiny.folder, 'undisturbed'), tiny.bundleDir, SESSION);
  expect(expected.log.fed).toBeGreaterThan(640);
});
afterAll(() => tiny?.remove());

describe('a conversation goes on from its stored cache', () => {
  test('after SIGKILL of the process group between any two turns', async () => {
    for (const n of TURNS.keys()) {
      const server = await start('between');
      try {
        // Text, and how much was reused: nothing before the last commit was computed again.
        expect(await turn(server, n)).toEqual(undisturbed[n]);
      } finally {
        await server.stop();
      }
    }
    expect(await storedState(join(tiny.folder, 'between'), tiny.bundleDir, SESSION)).toEqual(expected);
  });

  test('after SIGKILL of the process group in the middle of a stream', async () => {
    let server = await start('mid-stream');
    try {
      expect(await turn(server, 0)).toEqual(undisturbed[0]);
      expect(await turn(server, 1)).toEqual(undisturbed[1]);
      let killed = false;
      await expect(
        turn(server, 2, (text) => {
          if (killed || text.length < 10) return;
          killed = true;
          server.kill('group');
        }),
      ).rejects.toThrow();
      expect(killed).toBe(true);
      await server.waitClosed();
      server = await start('mid-stream');
      expect(await turn(server, 2)).toEqual(undisturbed[2]);
      expect(await turn(server, 3)).toEqual(undisturbed[3]);
    } finally {
      await server.stop();
    }
    expect(await storedState(join(tiny.folder, 'mid-stream'), tiny.bundleDir, SESSION)).toEqual(expected);
  });

  test(
    `after SIGKILL of the process group at ${KILLS} random moments, seed ${KILL_SEED}`,
    async () => {
      let server = await start('random');
      let kills = 0;
      let done = 0;
      let told = 0;
      const where: string[] = [];
      try {
        for (let round = 0; kills < KILLS || done < TURNS.length; round++) {
          // A conversation that has ended is done again from its first turn, in the same files.
          if (done === TURNS.length) {
            expect((await fetch(`${server.url}/v1/sessions/${SESSION}`, { method: 'DELETE' })).status).toBe(
              200,
            );
            done = 0;
          }
          const moment = kills < KILLS ? momentOf(round) : Number.POSITIVE_INFINITY;
          const timer = Number.isFinite(moment) ? setTimeout(() => server.kill('group'), moment) : undefined;
          const outcome = await turn(server, done).catch((error: Error) => error);
          if (!(outcome instanceof Error)) {
            expect(outcome).toEqual(undisturbed[done]);
            done++;
          }
          if (!timer) continue;
          // Still to come: it falls between two turns.
          while (!server.ended) await new Promise((resolve) => setTimeout(resolve, 5));
          clearTimeout(timer);
          kills++;
          where.push(`${outcome instanceof Error ? 'in' : 'after'} turn ${done} (${moment} ms)`);
          await server.waitClosed();
          server = await start('random');
          // Whatever was committed last: the session can be read, and holds whole turns and perhaps a part of the next.
          const { data } = (await (await fetch(`${server.url}/v1/sessions/${SESSION}/messages`)).json()) as {
            data?: { role: string; content: string }[];
          };
          expect(data?.length ?? 0).toBeGreaterThanOrEqual(2 * done);
          // Killed between the commit and the last event: the answer is there, and an appended message is not sent twice.
          if (outcome instanceof Error && data && data.length >= 2 * done + 2) {
            expect(data.at(-1)).toEqual({ role: 'assistant', content: undisturbed[done]!.text });
            done++;
            told++;
          }
        }
      } finally {
        await server.stop();
      }
      console.log(
        `seed ${KILL_SEED}, ${kills} kills, ${told} of them between a commit and its last event: ${where.join(', ')}`,
      );
      expect(await storedState(join(tiny.folder, 'random'), tiny.bundleDir, SESSION)).toEqual(expected);
    },
    120_000 + KILLS * 40_000,
  );

  test('after SIGKILL of workerd alone in the middle of a stream', async () => {
    const server = await start('workerd-only');
    try {
      expect(await turn(server, 0)).toEqual(undisturbed[0]);
      let killed = false;
      await expect(
        turn(server, 1, (text) => {
          if (killed || text.length < 10) return;
          killed = true;
          server.kill('workerd');
        }),
      ).rejects.toThrow();
      expect(killed).toBe(true);
      await server.waitReady();
      for (const n of [1, 2, 3]) expect(await turn(server, n)).toEqual(undisturbed[n]);
    } finally {
      await server.stop();
    }
    expect(await storedState(join(tiny.folder, 'workerd-only'), tiny.bundleDir, SESSION)).toEqual(expected);
  });
});
