import { cpus } from 'node:os';
import { parseArgs } from 'node:util';
import { productsPerToken } from '../src/bench/ratios.ts';
import { bundleFolder } from '../src/cli/bundle-folder.ts';
import { folderSource } from '../src/prepare/folder-source.ts';
import { readManifest } from '../src/runtime/model.ts';
import { ask as askModel, calibrateWorkerd, prose, servedModel, type Timed } from './served.ts';

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
const ask = (url: string, body: object): Promise<Timed> =>
  askModel(url, { max_tokens: Number(values.tokens), ...body });

const calibration = await calibrateWorkerd();
const { layers, output } = productsPerToken(
  (await readManifest(folderSource(await bundleFolder('compact')))).model,
);

const { serve, remove } = await servedModel();
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
      prefillOfBound: (runs[0]!.promptTokens * layers) / ttftMs / calibration.dotGMACs / 1e6,
      decodeTokensPerSecond: best('decodeTokensPerSecond', 1),
      decodeOfBound: (best('decodeTokensPerSecond', 1) * (layers + output)) / calibration.q4GMACs / 1e9,
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
      {
        host: `workerd over HTTP, ${cpus()[0]?.model.trim()}`,
        calibration,
        results,
        resume: { first, awake, resumed },
      },
      null,
      1,
    ),
  );
} finally {
  server.kill();
  remove();
}
