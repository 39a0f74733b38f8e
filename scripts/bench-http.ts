import { mkdtempSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { bundleFolder } from '../src/cli/bundle-folder.ts';
import { layAssets } from '../src/cli/lay-assets.ts';
import { freePort, spawnWrangler, waitForHealth } from '../src/cli/wrangler-dev.ts';
import { buildWasm } from './build-wasm.ts';

/**
 * `npm run bench:http [-- --prompt 100,512,2000 --tokens 96 --runs 3]`: the embedded model in workerd, asked over HTTP, timed from outside (a
 * Worker's own clock stands still while it computes). Prints JSON: per prompt the best of the runs. Also the time to the first token of a
 * conversation that is resumed after the whole server was killed, beside what its first prefill took.
 */
const { values } = parseArgs({
  options: {
    prompt: { type: 'string', default: '100,512' },
    tokens: { type: 'string', default: '96' },
    runs: { type: 'string', default: '3' },
    ratio: { type: 'string', default: '4' },
    resume: { type: 'string', default: '2000' },
  },
});
const ROOT = join(import.meta.dirname, '..');
const WORDS =
  'the river kept its old course through the valley and nobody asked why it should do otherwise'.split(' ');
/** About one token a word. */
const prose = (words: number, seed: number): string =>
  Array.from({ length: words }, (_, i) => WORDS[(i * 7 + seed * 3 + (i >> 3)) % WORDS.length]).join(' ');

interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_tokens_details: { cached_tokens: number };
}
interface Timed {
  promptTokens: number;
  cachedTokens: number;
  completionTokens: number;
  ttftMs: number;
  decodeTokensPerSecond: number;
  cache: unknown;
  timing: unknown;
}

async function ask(url: string, body: object): Promise<Timed> {
  const start = performance.now();
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({
      model: 'SmolLM2-135M-Instruct',
      temperature: 1,
      seed: 5,
      max_tokens: Number(values.tokens),
      stream: true,
      stream_options: { include_usage: true },
      ...body,
    }),
  });
  if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
  const at: number[] = [];
  let rest = '';
  let usage: Usage | undefined;
  let own: { cache: unknown; timing: unknown } | undefined;
  for await (const piece of response.body!.pipeThrough(new TextDecoderStream())) {
    rest += piece;
    const lines = rest.split('\n');
    rest = lines.pop()!;
    for (const line of lines) {
      if (!line.startsWith('data: {')) continue;
      const chunk = JSON.parse(line.slice(6));
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.choices[0]?.delta.content) at.push(performance.now());
      usage = chunk.usage ?? usage;
      own = chunk.adkvc ?? own;
    }
  }
  if (!usage || at.length < 2) throw new Error('the answer was cut short');
  return {
    promptTokens: usage.prompt_tokens,
    cachedTokens: usage.prompt_tokens_details.cached_tokens,
    completionTokens: usage.completion_tokens,
    ttftMs: at[0]! - start,
    decodeTokensPerSecond: ((usage.completion_tokens - 1) * 1000) / (at.at(-1)! - at[0]!),
    cache: own?.cache,
    timing: own?.timing,
  };
}

await buildWasm();
const folder = mkdtempSync(join(tmpdir(), 'adkvc-bench-'));
const assetsDir = join(folder, 'assets');
await layAssets(assetsDir, await bundleFolder('compact'));
const serve = async () => {
  const port = await freePort();
  const child = spawnWrangler({ cwd: ROOT, port, dataDir: join(folder, 'data'), assetsDir, detached: true });
  const url = `http://127.0.0.1:${port}`;
  await waitForHealth(child, url, 120_000);
  return { url, kill: () => process.kill(-child.pid!, 'SIGKILL') };
};
let server = await serve();
try {
  const results: object[] = [];
  // Weights come with the first turn.
  await ask(server.url, { messages: [{ role: 'user', content: 'Hello.' }], store: false });
  for (const prompt of values.prompt.split(',').map(Number)) {
    const runs: Timed[] = [];
    for (let run = 0; run < Number(values.runs); run++)
      runs.push(
        await ask(server.url, {
          messages: [{ role: 'user', content: prose(Math.max(1, prompt - 36), run) }],
          store: false,
        }),
      );
    const best = <K extends 'ttftMs' | 'decodeTokensPerSecond'>(key: K, sign: number): number =>
      Math.max(...runs.map((r) => sign * r[key])) * sign;
    const ttftMs = best('ttftMs', -1);
    results.push({
      promptTokens: runs[0]!.promptTokens,
      ttftMs,
      prefillTokensPerSecond: (runs[0]!.promptTokens * 1000) / ttftMs,
      decodeTokensPerSecond: best('decodeTokensPerSecond', 1),
      cache: runs[0]!.cache,
    });
    process.stderr.write(`${JSON.stringify(results.at(-1))}\n`);
  }
  const session = { session_id: 'bench-resume', session_append: true };
  await fetch(`${server.url}/v1/sessions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ id: 'bench-resume', policy: 'adkvc', ratio: Number(values.ratio) }),
  });
  const first = await ask(server.url, {
    ...session,
    messages: [{ role: 'user', content: prose(Number(values.resume), 1) }],
    max_tokens: 8,
  });
  const awake = await ask(server.url, {
    ...session,
    messages: [{ role: 'user', content: 'Go on.' }],
    max_tokens: 8,
  });
  server.kill();
  server = await serve();
  const resumed = await ask(server.url, {
    ...session,
    messages: [{ role: 'user', content: 'And then?' }],
    max_tokens: 8,
  });
  console.log(
    JSON.stringify(
      { host: `workerd over HTTP, ${cpus()[0]?.model.trim()}`, results, resume: { first, awake, resumed } },
      null,
      1,
    ),
  );
} finally {
  server.kill();
  rmSync(folder, { recursive: true, force: true });
}
