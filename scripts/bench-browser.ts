import { createReadStream, existsSync, readFileSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { cpus } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { createGzip, gzipSync } from 'node:zlib';
import { chromium, type Page } from 'playwright-core';
import type { BackendChoice } from '../src/browser/protocol.ts';
import { bundleFolder, embeddedModelPath } from '../src/cli/bundle-folder.ts';
import { wasmFolder } from '../src/cli/load-engine.ts';
import type { LocalApp } from '../src/page/local-app.ts';
import { pageFiles } from '../src/page-files.ts';
import { MODEL, prose } from './served.ts';

/**
 * `npm run bench:browser`: the application in a page of Chromium: time until it is ready on a first and a second visit, what is downloaded, what the
 * browser keeps, and tokens a second. `--peer own,wllama,transformers` measures these one after the other, each with a storage of its own, on the same
 * page, from the folder of node_modules that `--packages` names (npm i --no-save @wllama/wllama @huggingface/transformers); transformers.js wants the
 * model in its own form: `--onnx FOLDER`. Prints JSON, a line each. One thread; Chromium's WebGPU without a GPU is SwiftShader, which is no GPU: it is not measured here.
 */
const { values } = parseArgs({
  options: {
    prompt: { type: 'string', default: '128,512' },
    tokens: { type: 'string', default: '64' },
    runs: { type: 'string', default: '2' },
    backend: { type: 'string', default: 'wasm' },
    peer: { type: 'string', default: 'own' },
    packages: { type: 'string', default: 'node_modules' },
    onnx: { type: 'string' },
  },
});
const prompts = values.prompt.split(',').map(Number);
const runs = Number(values.runs);
const tokens = Number(values.tokens);
const packages = resolve(values.packages);
const CHROMIUM = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];
const TYPES: Readonly<Record<string, string>> = {
  js: 'text/javascript',
  mjs: 'text/javascript',
  wasm: 'application/wasm',
  json: 'application/json',
};
/** As many words are about as many tokens; the template adds 36. */
const question = (length: number, run: number): string => prose(Math.max(1, length - 36), run);

interface Speed {
  readonly promptTokens: number;
  readonly prefillMs: number;
  readonly decodeTokens: number;
  readonly decodeMs: number;
}
const best = (of: readonly Speed[]) => ({
  promptTokens: of[0]!.promptTokens,
  prefillTokensPerSecond: round(Math.max(...of.map((s) => (s.promptTokens * 1000) / s.prefillMs))),
  decodeTokensPerSecond: round(Math.max(...of.map((s) => (s.decodeTokens * 1000) / s.decodeMs))),
});
const round = (value: number): number => Math.round(value * 10) / 10;

await wasmFolder();
const files = await pageFiles();
const bundle = await bundleFolder('compact');

/** Files that were sent below the addresses that peers ask. */
const sent = new Map<string, string>();
/** The page, the bundle, and what a peer needs below /packages, /gguf and /onnx: files alone. */
const server = createServer(async (request, response) => {
  const path = decodeURIComponent(new URL(request.url!, 'http://localhost').pathname);
  const file = files.get(path === '/' ? 'index.html' : path.slice(1));
  const serve = async (from: string): Promise<void> => {
    const { size } = await stat(from);
    response.writeHead(200, {
      'content-type': TYPES[from.split('.').at(-1)!] ?? 'application/octet-stream',
      'content-length': size,
    });
    if (request.method === 'HEAD') return void response.end();
    sent.set(path, from);
    createReadStream(from).pipe(response);
  };
  try {
    if (path === '/blank') response.writeHead(200, { 'content-type': 'text/html' }).end('<!doctype html>');
    else if (file) response.writeHead(200, { 'content-type': file.type }).end(file.text);
    else if (path.startsWith('/bundle/')) await serve(join(bundle, path.slice(8)));
    else if (path.startsWith('/packages/')) await serve(join(packages, path.slice(10)));
    else if (path === '/model.gguf') await serve(embeddedModelPath());
    else if (path.startsWith('/onnx/') && values.onnx) await serve(join(resolve(values.onnx), path.slice(6)));
    else response.writeHead(404).end();
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;

const executablePath = process.env.CHROMIUM ?? CHROMIUM.find(existsSync);
if (!executablePath) throw new Error('Chromium is missing: apt-get install --no-install-recommends chromium');
const browser = await chromium.launch({ executablePath, args: ['--headless=new', '--no-sandbox'] });

/** What the browser keeps for the page, by kind. */
const kept = (page: Page) =>
  page.evaluate(async () => {
    const { usage, usageDetails } = (await navigator.storage.estimate()) as StorageEstimate & {
      usageDetails?: Record<string, number>;
    };
    return { bytes: usage, ...usageDetails };
  });

/** Bytes of a file, compressed as a server would. */
async function gzipBytes(from: string): Promise<number> {
  let bytes = 0;
  for await (const chunk of createReadStream(from).pipe(createGzip())) bytes += (chunk as Buffer).length;
  return bytes;
}

async function visit(page: Page): Promise<number> {
  const began = performance.now();
  await page.goto(`${url}/?backend=${values.backend}`);
  await page.getByText(/Ready after/).waitFor({ timeout: 120_000 });
  return Math.round(performance.now() - began);
}

async function own(page: Page) {
  const fetched = new Set<string>();
  page.on('request', (request) => fetched.add(new URL(request.url()).pathname.slice(1)));
  const firstVisitMs = await visit(page);
  const sizes = {
    page: { bytes: 0, gzip: 0 },
    application: { bytes: 0, gzip: 0 },
    model: { bytes: 0, gzip: 0 },
  };
  for (const name of fetched) {
    const ofBundle = name.startsWith('bundle/');
    const bytes = ofBundle
      ? readFileSync(join(bundle, name.slice(7)))
      : Buffer.from((files.get(name === '' ? 'index.html' : name)?.text ?? '') as string);
    const kind = ofBundle ? 'model' : /^(browser|adkvc-)|^shaders/.test(name) ? 'application' : 'page';
    sizes[kind].bytes += bytes.byteLength;
    sizes[kind].gzip += gzipSync(bytes).byteLength;
  }
  const report = await page.locator('#place').textContent();
  const secondVisitMs = await visit(page);
  const weights = await kept(page);
  await page.goto(`${url}/blank`);
  const ask = (body: object): Promise<Speed & { stored: number; cache: number }> =>
    page.evaluate(
      async ({ backend, body }) => {
        const at = globalThis as unknown as { app?: LocalApp };
        const page = (await import('/local-app.js' as string)) as { LocalApp: typeof LocalApp };
        at.app ??= new page.LocalApp(backend as BackendChoice, () => {});
        const { app } = at;
        const headers = { 'content-type': 'application/json' };
        const init = { method: 'POST', headers, body: JSON.stringify(body) };
        const answer = await (await app.fetch('/v1/chat/completions', init)).json();
        if (!answer.adkvc) throw new Error(JSON.stringify(answer));
        const { timing, session_id, cache } = answer.adkvc;
        const session = session_id ? await (await app.fetch(`/v1/sessions/${session_id}`)).json() : {};
        return {
          ...{ promptTokens: answer.usage.prompt_tokens, prefillMs: timing.prefill_ms },
          ...{ decodeTokens: answer.usage.completion_tokens - 1, decodeMs: timing.decode_ms },
          ...{ stored: session.stored_bytes ?? 0, cache: cache.bytes },
        };
      },
      { backend: values.backend, body },
    );
  const request = (length: number, run: number) => ({
    ...{ model: MODEL, messages: [{ role: 'user', content: question(length, run) }] },
    ...{ max_completion_tokens: tokens, temperature: 0 },
  });
  await ask({ ...request(64, 99), store: false });
  const speeds = [];
  for (const length of prompts) {
    const all: Speed[] = [];
    for (let run = 0; run < runs; run++) all.push(await ask({ ...request(length, run), store: false }));
    speeds.push(best(all));
  }
  const { stored, cache, promptTokens } = await ask({ ...request(prompts.at(-1)!, 50), session_id: 'kept' });
  const after = await kept(page);
  return {
    ...{ what: 'adkvc', report, firstVisitMs, secondVisitMs },
    download: sizes,
    keptAfterTwoVisits: weights,
    conversation: { promptTokens, cacheBytes: cache, storedBytes: stored, kept: after },
    speeds,
  };
}

type Ask = (content: string, tokens: number) => Promise<Speed>;

/** A function of the page that loads a model, and one that runs a prompt. */
async function peer(page: Page, name: string, load: string) {
  const open = async (): Promise<number> => {
    await page.goto(`${url}/blank`);
    const began = performance.now();
    await page.addScriptTag({ type: 'module', content: load });
    await page.waitForFunction('globalThis.ask || globalThis.failed', undefined, { timeout: 120_000 });
    const failed = await page.evaluate('globalThis.failed');
    if (failed) throw new Error(`${name}: ${failed}`);
    return Math.round(performance.now() - began);
  };
  sent.clear();
  const firstVisitMs = await open();
  const downloaded = [...sent];
  sent.clear();
  const secondVisitMs = await open();
  const again = [...sent.keys()];
  const keptAfterTwoVisits = await kept(page);
  const speeds = [];
  for (const length of prompts) {
    const all: Speed[] = [];
    for (let run = 0; run < runs; run++)
      all.push(
        (await page.evaluate(([text, n]) => (globalThis as unknown as { ask: Ask }).ask(text, n), [
          question(length, run),
          tokens,
        ] as const)) as Speed,
      );
    speeds.push(best(all));
  }
  const download = { application: { bytes: 0, gzip: 0 }, model: { bytes: 0, gzip: 0 } };
  for (const [path, from] of downloaded) {
    const to = download[path.startsWith('/packages/') ? 'application' : 'model'];
    to.bytes += (await stat(from)).size;
    to.gzip += await gzipBytes(from);
  }
  return { what: name, firstVisitMs, secondVisitMs, download, again, keptAfterTwoVisits, speeds };
}

const version = (name: string): string =>
  (JSON.parse(readFileSync(join(packages, name, 'package.json'), 'utf8')) as { version: string }).version;

const WLLAMA = `
  import { Wllama } from '/packages/@wllama/wllama/esm/index.js';
  try {
    const wllama = new Wllama({ default: '/packages/@wllama/wllama/esm/wasm/wllama.wasm' });
    await wllama.loadModelFromUrl('${url}/model.gguf', { n_ctx: 2048, n_threads: 1, n_gpu_layers: 0 });
    globalThis.ask = async (content, max_tokens) => {
      const { timings: t } = await wllama.createChatCompletion({
        messages: [{ role: 'user', content }], max_tokens, temperature: 0, cache_prompt: false,
      });
      return { promptTokens: t.prompt_n, prefillMs: t.prompt_ms, decodeTokens: t.predicted_n, decodeMs: t.predicted_ms };
    };
  } catch (error) { globalThis.failed = String(error); }`;

const TRANSFORMERS = `
  import { env, pipeline } from '/packages/@huggingface/transformers/dist/transformers.min.js';
  try {
    Object.assign(env, { allowRemoteModels: false, allowLocalModels: true, localModelPath: '/', useBrowserCache: true });
    Object.assign(env.backends.onnx.wasm, { numThreads: 1, wasmPaths: '/packages/onnxruntime-web/dist/' });
    const generator = await pipeline('text-generation', 'onnx', { dtype: 'q4', device: 'wasm' });
    globalThis.ask = async (content, max_new_tokens) => {
      const inputs = generator.tokenizer(content);
      const promptTokens = inputs.input_ids.dims.at(-1);
      const times = [performance.now()];
      const streamer = { put: () => times.push(performance.now()), end: () => {} };
      await generator.model.generate({ ...inputs, max_new_tokens, do_sample: false, streamer });
      // The prompt is put first, then each token.
      const [began, , first] = times;
      return { promptTokens, prefillMs: first - began, decodeTokens: times.length - 3, decodeMs: times.at(-1) - first };
    };
  } catch (error) { globalThis.failed = String(error); }`;

async function measured(who: string, page: Page): Promise<object> {
  if (who === 'own') return own(page);
  if (who === 'wllama') return peer(page, `wllama ${version('@wllama/wllama')}, Q4_1, one thread`, WLLAMA);
  if (who !== 'transformers') throw new Error('--peer must list own, wllama or transformers');
  if (!values.onnx) throw new Error('--onnx must name a folder in the layout of transformers.js');
  const name = `transformers.js ${version('@huggingface/transformers')}, q4, one thread`;
  return peer(page, name, TRANSFORMERS);
}

try {
  const cpu = cpus()[0]?.model.trim() ?? 'unknown processor';
  for (const who of values.peer.split(',')) {
    const context = await browser.newContext();
    const page = await context.newPage();
    page.on('pageerror', (error) => console.error(String(error)));
    console.log(JSON.stringify({ chromium: browser.version(), cpu, ...(await measured(who, page)) }));
    await context.close();
  }
} finally {
  await browser.close();
  server.close();
  server.closeAllConnections();
}
