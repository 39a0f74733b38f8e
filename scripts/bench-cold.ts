import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdtempSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { ask, prose, servedModel, type Timed } from './served.ts';

/**
 * `npm run bench:cold [-- --tokens 7000 --samples 5 --data FOLDER]`: how long the first token of a stored conversation takes in a workerd that has just
 * started, under the cache that is served by default. Each sample starts a server on a copy of the conversation, so that all find the same bytes.
 * `--data` keeps the conversation for later runs. Prints JSON: the whole time from outside and its parts as the answer tells them, sample by sample.
 */
const { values } = parseArgs({
  options: {
    tokens: { type: 'string', default: '7000' },
    samples: { type: 'string', default: '5' },
    data: { type: 'string' },
  },
});
const TURN_TOKENS = 1300;
const ANSWER_TOKENS = 24;
const SESSION = 'cold';
const turn = (url: string, content: string): Promise<Timed> =>
  ask(url, {
    ...{ session_id: SESSION, session_append: true, max_tokens: ANSWER_TOKENS },
    messages: [{ role: 'user', content }],
  });

const work = mkdtempSync(join(tmpdir(), 'adkvc-cold-'));
const stored = values.data ?? join(work, 'stored');
const { serve, remove } = await servedModel();
try {
  if (!existsSync(stored)) {
    const server = await serve({ dataDir: stored });
    try {
      for (let held = 0, n = 0; held < Number(values.tokens) - ANSWER_TOKENS; n++) {
        const words = Math.min(TURN_TOKENS, Number(values.tokens) - ANSWER_TOKENS - held);
        const { promptTokens, completionTokens } = await turn(server.url, prose(words, n));
        held = promptTokens + completionTokens;
        process.stderr.write(`${held} tokens\n`);
      }
    } finally {
      server.kill();
    }
  }
  const samples: object[] = [];
  for (let n = 0; n < Number(values.samples); n++) {
    const dataDir = join(work, 'sample');
    cpSync(stored, dataDir, { recursive: true });
    // The copy is on the disk before the server's own first sync has to wait for it.
    spawnSync('sync');
    const server = await serve({ dataDir });
    try {
      const { ttftMs, cachedTokens, promptTokens, timing } = await turn(server.url, 'And then?');
      const warm = await turn(server.url, 'Go on.');
      samples.push({
        ttftMs,
        cachedTokens,
        promptTokens,
        timing,
        warm: {
          ttftMs: warm.ttftMs,
          timing: warm.timing,
          promptTokens: warm.promptTokens,
          cachedTokens: warm.cachedTokens,
        },
      });
      process.stderr.write(`${JSON.stringify(samples.at(-1))}\n`);
    } finally {
      server.kill();
      rmSync(dataDir, { recursive: true, force: true });
    }
  }
  console.log(JSON.stringify({ host: `workerd over HTTP, ${cpus()[0]?.model.trim()}`, samples }, null, 1));
} finally {
  remove();
  rmSync(work, { recursive: true, force: true });
}
