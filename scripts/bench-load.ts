import { cpus } from 'node:os';
import { parseArgs } from 'node:util';
import { ask, post, prose, Refused, type Served, servedModel, type Timed, workerdUse } from './served.ts';

/**
 * `npm run bench:load [-- --part load,fairness,fork,alternate,cost]`: the embedded model in one workerd on loopback, under a bounded number of clients
 * that each wait for their answer before they send the next message. Prints JSON, a part after the other:
 * - load: `--load 1x1,4x4,8x8,16x4,32x32`, clients x conversations; clients of one conversation queue for it. A refused client waits as long as
 *   Retry-After says and sends the message again.
 * - fairness: a short turn (`--short` tokens) alone, and beside a prefill of `--prefill` tokens in another conversation, whose cache may take `--bytes`.
 * - fork: the time to the first token of a conversation over a shared document of `--document` tokens: read anew, and forked from a stored prefix.
 * - alternate: two conversations of `--prefill` tokens each, whose caches of the default size cannot be in memory at once, asked at once, three turns each;
 *   and the same two one after the other, whose answers must be the same.
 * - cost: what a turn of a growing conversation takes in processor time, rows and bytes.
 */
const { values } = parseArgs({
  options: {
    part: { type: 'string', default: 'load,fairness,fork,cost' },
    load: { type: 'string', default: '1x1,4x4,8x8,16x4,32x32' },
    turns: { type: 'string', default: '2' },
    tokens: { type: 'string', default: '16' },
    prefill: { type: 'string', default: '7000' },
    bytes: { type: 'string', default: '12000000' },
    short: { type: 'string', default: '8' },
    samples: { type: 'string', default: '30' },
    document: { type: 'string', default: '2000' },
  },
});
const TURNS = Number(values.turns);
const TOKENS = Number(values.tokens);
/** A client gives up a message after so many refusals. */
const MAX_TRIES = 40;

const round = (x: number): number => Math.round(x);
const mb = (bytes: number | undefined): number | null =>
  bytes === undefined ? null : round(bytes / 1e5) / 10;
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Nearest rank. */
function percentiles(all: readonly number[]) {
  const sorted = all.toSorted((a, b) => a - b);
  const at = (share: number): number => round(sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? 0);
  return { p50: at(0.5), p95: at(0.95), p99: at(0.99), max: round(sorted.at(-1) ?? 0), n: sorted.length };
}

const user = (content: string) => ({ role: 'user' as const, content });
let sessions = 0;
const newSession = async ({ url }: Served): Promise<string> => {
  const id = `load-${process.pid}-${++sessions}`;
  await post(url, '/v1/sessions', { id });
  return id;
};
const remove = async ({ url }: Served, id: string): Promise<void> => {
  await fetch(`${url}/v1/sessions/${id}`, { method: 'DELETE' });
};

/** A message to a conversation, until it is answered. */
async function insist(server: Served, session: string, content: string, refusals: string[]) {
  const start = performance.now();
  for (let tries = 0; ; tries++)
    try {
      const answer = await ask(server.url, {
        session_id: session,
        session_append: true,
        messages: [user(content)],
        max_tokens: TOKENS,
      });
      return { ...answer, withWaitMs: performance.now() - start };
    } catch (error) {
      if (!(error instanceof Refused) || error.retryAfter === undefined || tries === MAX_TRIES) throw error;
      refusals.push(error.code);
      await sleep(error.retryAfter * 1000);
    }
}

async function load(server: Served, clients: number, conversations: number) {
  const ids: string[] = [];
  for (let i = 0; i < conversations; i++) ids.push(await newSession(server));
  const refusals: string[] = [];
  const before = workerdUse(server);
  const start = performance.now();
  const answers = (
    await Promise.all(
      Array.from({ length: clients }, async (_, client) => {
        const mine = [];
        for (let turn = 0; turn < TURNS; turn++)
          mine.push(await insist(server, ids[client % conversations]!, prose(30, client + turn), refusals));
        return mine;
      }),
    )
  ).flat();
  const seconds = (performance.now() - start) / 1000;
  const after = workerdUse(server);
  for (const id of ids) await remove(server, id);
  const tokens = answers.reduce((sum, { completionTokens }) => sum + completionTokens, 0);
  return {
    clients,
    conversations,
    turns: answers.length,
    turnsPerSecond: Math.round((answers.length * 100) / seconds) / 100,
    tokensPerSecond: round(tokens / seconds),
    firstTokenMs: percentiles(answers.map(({ ttftMs }) => ttftMs)),
    latencyMs: percentiles(answers.map(({ totalMs }) => totalMs)),
    latencyWithRetriesMs: percentiles(answers.map(({ withWaitMs }) => withWaitMs)),
    refused429: refusals.length,
    refusedBy: Object.fromEntries(
      [...new Set(refusals)].map((code) => [code, refusals.filter((one) => one === code).length]),
    ),
    cpuSeconds: before && after ? round((after.cpuMs - before.cpuMs) / 100) / 10 : null,
    peakMB: mb(after?.peakBytes),
  };
}

async function fairness(server: Served) {
  const short = async (): Promise<Timed> =>
    ask(server.url, { messages: [user('Hello there.')], max_tokens: Number(values.short), store: false });
  const sampled = async (goOn: (n: number) => boolean) => {
    const all: Timed[] = [];
    while (goOn(all.length)) all.push(await short());
    return {
      firstTokenMs: percentiles(all.map(({ ttftMs }) => ttftMs)),
      latencyMs: percentiles(all.map(({ totalMs }) => totalMs)),
    };
  };
  const samples = Number(values.samples);
  const alone = await sampled((n) => n < samples);
  // One conversation of the default budget fills an isolate's memory; beside this one there is room for a short one.
  const id = `load-${process.pid}-prefill`;
  await post(server.url, '/v1/sessions', { id, bytes: Number(values.bytes) });
  const gone = new AbortController();
  const start = performance.now();
  let ended = false;
  const long = ask(
    server.url,
    { messages: [user(prose(Number(values.prefill), 7))], max_tokens: 1, session_id: id },
    gone.signal,
  )
    .then((answer) => ({ promptTokens: answer.promptTokens, seconds: round(answer.ttftMs / 1000) }))
    .catch((error: Error) => (gone.signal.aborted ? 'ended by this bench' : `failed: ${error.message}`))
    .finally(() => (ended = true));
  await sleep(500);
  const beside = await sampled((n) => n < samples && !ended);
  const besideSeconds = round((performance.now() - start) / 1000);
  gone.abort();
  return {
    prefillBytes: Number(values.bytes),
    shortTokens: Number(values.short),
    alone,
    beside,
    besideSeconds,
    prefill: await long,
  };
}

async function fork(server: Served) {
  const document = { role: 'system' as const, content: prose(Number(values.document), 3) };
  const questions = ['What is it about?', 'Who asks why?', 'Where does the river go?'];
  const first = (id: string, question: string) =>
    ask(server.url, { session_id: id, messages: [document, user(question)], max_tokens: 4 });
  const source = await newSession(server);
  const stored = await first(source, 'Say yes.');
  const fresh: Timed[] = [];
  const forked: { timed: Timed; forkMs: number }[] = [];
  for (const question of questions) {
    const anew = await newSession(server);
    fresh.push(await first(anew, question));
    await remove(server, anew);
    const start = performance.now();
    const { id } = await post(server.url, `/v1/sessions/${source}/fork`, { messages: 1 });
    const forkMs = performance.now() - start;
    forked.push({ forkMs, timed: await first(String(id), question) });
    await remove(server, String(id));
  }
  await remove(server, source);
  const best = (all: readonly number[]): number => round(Math.min(...all));
  return {
    documentTokens: stored.promptTokens,
    freshFirstTokenMs: best(fresh.map(({ ttftMs }) => ttftMs)),
    forkMs: best(forked.map(({ forkMs }) => forkMs)),
    forkedFirstTokenMs: best(forked.map(({ timed }) => timed.ttftMs)),
    forkedCachedTokens: forked[0]!.timed.cachedTokens,
  };
}

async function alternate(server: Served) {
  const talk = async (seed: number, atOnce: boolean) => {
    const id = await newSession(server);
    const turns: (Timed & { withWaitMs: number; refused: number })[] = [];
    for (const content of [prose(Number(values.prefill), seed), 'Where does it go?', 'And why?']) {
      const refusals: string[] = [];
      turns.push({ ...(await insist(server, id, content, refusals)), refused: refusals.length });
    }
    await remove(server, id);
    return {
      atOnce,
      texts: turns.map(({ text }) => text),
      turns: turns.map((turn, i) => ({
        promptTokens: turn.promptTokens,
        cachedTokens: turn.cachedTokens,
        // All that was said before but the last token, which nobody has fed yet.
        reuseIsExact:
          turn.cachedTokens ===
          (i === 0 ? 0 : turns[i - 1]!.promptTokens + turns[i - 1]!.completionTokens - 1),
        seconds: round(turn.withWaitMs / 100) / 10,
        waitedSeconds: round(turn.timing.wait_ms! / 100) / 10,
        restoredMs: round(turn.timing.restore_ms!),
        refused: turn.refused,
      })),
    };
  };
  const start = performance.now();
  const seeds = [11, 12];
  const together = await Promise.all(seeds.map((seed) => talk(seed, true)));
  const seconds = round((performance.now() - start) / 1000);
  const apart: Awaited<ReturnType<typeof talk>>[] = [];
  for (const seed of seeds) apart.push(await talk(seed, false));
  return {
    seconds,
    peakMB: mb(workerdUse(server)?.peakBytes),
    sameAnswers: together.map(({ texts }, i) => JSON.stringify(texts) === JSON.stringify(apart[i]!.texts)),
    conversations: [...together, ...apart].map(({ atOnce, turns }) => ({ atOnce, turns })),
  };
}

async function cost(server: Served) {
  const id = await newSession(server);
  const turns = [];
  for (let turn = 0; turn < 8; turn++) {
    const before = workerdUse(server);
    const answer = await ask(server.url, {
      session_id: id,
      session_append: true,
      messages: [user(prose(80, turn))],
      max_tokens: 120,
    });
    const after = workerdUse(server);
    turns.push({
      promptTokens: answer.promptTokens,
      completionTokens: answer.completionTokens,
      seconds: Math.round(answer.totalMs / 10) / 100,
      cpuMs: before && after ? round(after.cpuMs - before.cpuMs) : null,
      rows: answer.rows,
      bytes: answer.bytes,
    });
  }
  const { stored_bytes } = (await (await fetch(`${server.url}/v1/sessions/${id}`)).json()) as {
    stored_bytes: number;
  };
  await remove(server, id);
  return { turns, storedBytes: stored_bytes };
}

const { serve, remove: removeFolder } = await servedModel();
const server = await serve();
try {
  // Weights come with the first turn.
  await ask(server.url, { messages: [user('Hello.')], max_tokens: 2, store: false });
  const parts = values.part.split(',');
  const print = (part: string, result: unknown) => console.log(JSON.stringify({ part, result }));
  console.log(JSON.stringify({ host: `workerd over HTTP, ${cpus()[0]?.model.trim()}` }));
  if (parts.includes('load'))
    for (const mix of values.load.split(',')) {
      const [clients, conversations] = mix.split('x').map(Number);
      print('load', await load(server, clients!, conversations!));
    }
  if (parts.includes('fairness')) print('fairness', await fairness(server));
  if (parts.includes('fork')) print('fork', await fork(server));
  if (parts.includes('alternate')) print('alternate', await alternate(server));
  if (parts.includes('cost')) print('cost', await cost(server));
} finally {
  server.kill();
  removeFolder();
}
