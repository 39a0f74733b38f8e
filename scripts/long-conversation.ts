import { cpus } from 'node:os';
import { parseArgs } from 'node:util';
import { freePort } from '../src/cli/wrangler-dev.ts';
import { ISOLATE_BYTES } from '../src/engine/isolate.ts';
import { type IsolateBytes, openInspector, sum } from './inspector.ts';
import { ask, prose, type Served, servedModel, type Timed, workerdUse } from './served.ts';

/**
 * `npm run long [-- --tokens 8100] [--alive]`: a conversation that fills the model's context, in workerd over HTTP, under the cache that is served by default:
 * several turns, SIGKILL of the whole server, and on from the stored cache. Prints JSON: each turn, what was cached, how long the first token took cold
 * and warm, and the most that the isolate held while it was filled and after it was resumed, as workerd's inspector tells (garbage that waits for the
 * collector included; with --alive it is collected before each look, which takes time: such a run's times say nothing). Ends with an error if the
 * resumed turn had to compute anything again that was stored, and with --alive if the isolate held more than the platform gives it. About 3 minutes.
 */
const { values } = parseArgs({
  options: { tokens: { type: 'string', default: '8100' }, alive: { type: 'boolean', default: false } },
});
const TURN_TOKENS = 1300;
const ANSWER_TOKENS = 24;
/** A turn's markup, and what prose costs beyond one token a word. */
const SLACK = 40;
const SESSION = 'long-conversation';

const megabytes = (bytes: number): number => Math.round(bytes / 1e5) / 10;
const turn = (server: Served, content: string, session = SESSION): Promise<Timed> =>
  ask(server.url, {
    session_id: session,
    session_append: true,
    max_tokens: ANSWER_TOKENS,
    messages: [{ role: 'user', content }],
  });
/** SQLite's page cache cannot be read off in a Worker: its default counts whole. https://www.sqlite.org/pragma.html#pragma_cache_size */
const SQLITE_CACHE_BYTES = 2_048_000;
const isolateMB = (bytes: IsolateBytes): object => ({
  objects: megabytes(bytes.objects),
  buffers: megabytes(bytes.buffers),
  wasm: megabytes(bytes.wasm),
  sqlite: megabytes(SQLITE_CACHE_BYTES),
  together: megabytes(sum(bytes) + SQLITE_CACHE_BYTES),
});
const tokensOf = ({ promptTokens, completionTokens }: Timed): number => promptTokens + completionTokens;

/** The whole workerd process; what it is before the first turn is not the isolate's. */
const peakMB = (server: Served): number => megabytes(workerdUse(server)?.peakBytes ?? 0);

const { serve, remove } = await servedModel();
const inspectorPort = await freePort();
let server = await serve({ inspectorPort });
try {
  const target = Number(values.tokens);
  const emptyMB = peakMB(server);
  const turns: Timed[] = [];
  let inspector = await openInspector(inspectorPort);
  let watch = inspector.watch(values.alive);
  for (let held = 0; held < target - SLACK - ANSWER_TOKENS; held = tokensOf(turns.at(-1)!)) {
    const words = Math.min(TURN_TOKENS, target - held - SLACK - ANSWER_TOKENS);
    if (words < 1) break;
    turns.push(await turn(server, prose(words, turns.length)));
    process.stderr.write(`${JSON.stringify(turns.at(-1))}\n`);
  }
  const filling = await watch.stop();
  inspector.close();
  const filledMB = peakMB(server);
  server.kill();

  server = await serve({ inspectorPort });
  inspector = await openInspector(inspectorPort);
  watch = inspector.watch(values.alive);
  const resumed = await turn(server, 'And then?');
  const warm = await turn(server, 'Go on.');
  const other = await turn(server, 'Hello.', 'second-object');
  const resuming = await watch.stop();
  inspector.close();
  const fed = tokensOf(turns.at(-1)!) - 1;
  console.log(
    JSON.stringify(
      {
        host: `workerd over HTTP, ${cpus()[0]?.model.trim()}`,
        tokens: tokensOf(warm),
        prefillMs: turns.reduce((sum, { timing }) => sum + timing.prefill_ms!, 0),
        cache: resumed.cache,
        resumed: { cachedTokens: resumed.cachedTokens, fed, ttftMs: resumed.ttftMs, timing: resumed.timing },
        warmTtftMs: warm.ttftMs,
        secondObjectTtftMs: other.ttftMs,
        commits: turns.map(({ rows, bytes, timing }) => ({ rows, bytes, ms: timing.commit_ms })),
        isolateMB: { filling: isolateMB(filling), resumed: isolateMB(resuming) },
        workerdPeakMB: { empty: emptyMB, filled: filledMB, resumed: peakMB(server) },
      },
      null,
      1,
    ),
  );
  const most = Math.max(sum(filling), sum(resuming)) + SQLITE_CACHE_BYTES;
  if (values.alive && most > ISOLATE_BYTES)
    throw new Error(
      `the isolate held ${megabytes(most)} MB at once, the platform gives ${megabytes(ISOLATE_BYTES)}`,
    );
  if (resumed.cachedTokens < fed)
    throw new Error(
      `${resumed.cachedTokens} tokens were cached, ${fed} had been fed: something was computed again`,
    );
} finally {
  server.kill();
  remove();
}
