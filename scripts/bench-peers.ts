import { spawnSync } from 'node:child_process';
import { createReadStream, existsSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { cpus, tmpdir } from 'node:os';
import { extname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Command } from 'commander';
import { embeddedModelPath } from '../src/cli/bundle-folder.ts';
import { count } from '../src/cli/engine-options.ts';
import { loadTokenizer } from '../src/cli/load-tokenizer.ts';
import type { ModelTokenizer } from '../src/engine/tokenizer.ts';
import { launchChromium } from '../test/helpers/chromium.ts';
import { prose } from './served.ts';

/**
 * `npm run bench:peers`: this project beside others that run the same model, one thread each, on this machine: tokens a second of prefill (512) and of
 * decoding at several contexts. The peers are installed into a temporary folder, from npm, and are no dependency of the project. wllama runs in
 * Chromium, the others in Node. Prints a line of JSON a peer and a table; what is skipped is said with its reason. Decoding at 4,096 means reading
 * 4,096 tokens first, which takes wllama minutes: `--contexts 128` for a short run.
 */
const PACKAGES = {
  native: ['node-llama-cpp@3.22.1'],
  wllama2: ['wllama-2@npm:@wllama/wllama@2.3.1'],
  wllama3: ['wllama-3@npm:@wllama/wllama@3.8.1'],
  transformers: ['@huggingface/transformers@4.3.1'],
} as const;
type Peer = keyof typeof PACKAGES;
const ROOT = join(import.meta.dirname, '..');
const PREFILL = 512;
/** What a peer may take for one context, model and all. */
const TIMEOUT_MS = 900_000;

interface Options {
  contexts: string;
  tokens: number;
  peers: string;
  q4?: string;
  onnx?: string;
  folder?: string;
  own: boolean;
}
/** Tokens of a prompt, and when the first and the last of its answer came, ms after the start. */
interface Run {
  readonly context: number;
  readonly promptTokens: number;
  readonly firstMs: number;
  readonly lastMs: number;
  readonly tokens: number;
}
interface Speed {
  readonly context: number;
  readonly prefill: number;
  readonly decode: number;
}
type Result = { peer: string; speeds: Speed[] } | { peer: string; skipped: string };

const speedOf = ({ context, promptTokens, firstMs, lastMs, tokens }: Run): Speed => ({
  context,
  prefill: (promptTokens * 1000) / firstMs,
  decode: ((tokens - 1) * 1000) / (lastMs - firstMs),
});

/** Prose of exactly so many tokens, or one or two fewer. */
function promptOf(tokenizer: ModelTokenizer, tokens: number): { text: string; tokens: number } {
  const text = tokenizer.decode(tokenizer.encode(prose(tokens, tokens)).slice(0, tokens));
  return { text, tokens: tokenizer.encode(text).length };
}

async function run(options: Options): Promise<void> {
  const contexts = options.contexts.split(',').map(Number);
  const prefills = contexts.includes(PREFILL) ? contexts : [...contexts, PREFILL].sort((a, b) => a - b);
  const peers = options.peers.split(',') as Peer[];
  for (const peer of peers)
    if (!(peer in PACKAGES)) throw new Error(`--peers knows no ${peer}: ${Object.keys(PACKAGES).join(', ')}`);
  const { tokenizer } = await loadTokenizer();
  const folder = options.folder ?? mkdtempSync(join(tmpdir(), 'adkvc-peers-'));
  const results: Result[] = [];
  const tell = (result: Result): void => {
    results.push(result);
    process.stdout.write(`${JSON.stringify(result)}\n`);
  };
  try {
    if (options.own) tell(ours(prefills));
    const wanted = peers.filter((peer) => peer !== 'transformers' || options.onnx);
    install(folder, wanted);
    for (const peer of peers) {
      const name = nameOf(peer, options);
      if (!wanted.includes(peer)) tell({ peer: name, skipped: 'no --onnx folder was given' });
      else
        try {
          const speeds: Speed[] = [];
          for (const context of prefills) {
            const prompt = promptOf(tokenizer, context);
            const measured = await measure(peer, folder, prompt.text, options);
            speeds.push(speedOf({ ...measured, context, promptTokens: prompt.tokens }));
          }
          tell({ peer: name, speeds });
        } catch (error) {
          tell({ peer: name, skipped: (error as Error).message.split('\n')[0]! });
        }
    }
    process.stdout.write(table(results, contexts));
  } finally {
    if (!options.folder) rmSync(folder, { recursive: true, force: true });
  }
}

const nameOf = (peer: Peer, { q4 }: Options): string =>
  ({
    native: 'llama.cpp, native (node-llama-cpp 3.22.1), this file',
    wllama2: `wllama 2.3.1, ${q4 ? 'Q4_0' : 'this file'}`,
    wllama3: 'wllama 3.8.1, this file',
    transformers: 'transformers.js 4.3.1 in Node',
  })[peer];

/** This project's own bench: default policy, ratio 4. */
function ours(contexts: readonly number[]): Result {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [
      '--disable-warning=ExperimentalWarning',
      join(ROOT, 'src/cli/main.ts'),
      ...['bench', '--json', '--policy', 'adkvc', '--ratio', '4', '--context', contexts.join(',')],
    ],
    { encoding: 'utf8', maxBuffer: 1e8 },
  );
  if (status !== 0) throw new Error(`adkvc bench ended with ${status}: ${stderr}`);
  const { results } = JSON.parse(stdout) as {
    results: { context: number; prefillTokensPerSecond: number; decodeTokensPerSecond: number }[];
  };
  return {
    peer: 'this project, Node, adkvc at a ratio of 4',
    speeds: results.map((r) => ({
      context: r.context,
      prefill: r.prefillTokensPerSecond,
      decode: r.decodeTokensPerSecond,
    })),
  };
}

function install(folder: string, peers: readonly Peer[]): void {
  const packages = peers.flatMap((peer) => PACKAGES[peer]);
  if (packages.length === 0) return;
  process.stderr.write(`installing ${packages.join(', ')} into ${folder} ...\n`);
  const args = ['install', '--prefix', folder, '--no-audit', '--no-fund', '--ignore-scripts', ...packages];
  const { status, stderr } = spawnSync('npm', args, {
    encoding: 'utf8',
    shell: process.platform === 'win32',
  });
  if (status !== 0) throw new Error(`npm could not install the peers: ${stderr}`);
}

type Measured = Pick<Run, 'firstMs' | 'lastMs' | 'tokens'>;

async function measure(peer: Peer, folder: string, prompt: string, options: Options): Promise<Measured> {
  switch (peer) {
    case 'native':
      return native(folder, prompt, options.tokens);
    case 'wllama2':
    case 'wllama3':
      return wllama(peer, folder, prompt, options);
    case 'transformers':
      return transformers(folder, prompt, options);
  }
}

const from = async <T>(folder: string, path: string): Promise<T> =>
  (await import(pathToFileURL(join(folder, 'node_modules', path)).href)) as T;

/** https://node-llama-cpp.withcat.ai/guide/low-level-api */
async function native(folder: string, prompt: string, tokens: number): Promise<Measured> {
  interface Sequence {
    evaluate(ids: number[], options: { temperature: number; yieldEogToken: boolean }): AsyncIterable<number>;
  }
  interface Model {
    tokenize(text: string): number[];
    createContext(options: object): Promise<{ getSequence(): Sequence; dispose(): Promise<void> }>;
    dispose(): Promise<void>;
  }
  const { getLlama } = await from<{
    getLlama(
      options: object,
    ): Promise<{ loadModel(options: object): Promise<Model>; dispose(): Promise<void> }>;
  }>(folder, 'node-llama-cpp/dist/index.js');
  const llama = await getLlama({ gpu: false, build: 'never', maxThreads: 1, logLevel: 'error' });
  const model = await llama.loadModel({ modelPath: embeddedModelPath() });
  const ids = model.tokenize(prompt);
  const context = await model.createContext({
    contextSize: ids.length + tokens + 8,
    threads: 1,
    batchSize: 512,
  });
  try {
    const at: number[] = [];
    const start = performance.now();
    for await (const _ of context.getSequence().evaluate(ids, { temperature: 0, yieldEogToken: true })) {
      at.push(performance.now() - start);
      if (at.length === tokens) break;
    }
    return { firstMs: at[0]!, lastMs: at.at(-1)!, tokens: at.length };
  } finally {
    await context.dispose();
    await model.dispose();
    await llama.dispose();
  }
}

/** Runs in the page. Both versions stream; their calls differ. */
const PAGE = `
export async function measure({ version, model, prompt, tokens, context }) {
  const { Wllama } = await import('/peer/esm/index.js');
  const peer = version === 2
    ? new Wllama({ 'single-thread/wllama.wasm': '/peer/esm/single-thread/wllama.wasm' })
    : new Wllama({ default: '/peer/esm/wasm/wllama.wasm' });
  const file = await (await fetch(model)).blob();
  await peer.loadModel([file], { n_ctx: context, n_batch: 512, n_threads: 1, n_gpu_layers: 0, log_level: 4 });
  const at = [];
  const start = performance.now();
  const stream = version === 2
    ? await peer.createCompletion(prompt, { nPredict: tokens, useCache: false, sampling: { temp: 0 }, stream: true })
    : await peer.createCompletion({ prompt, max_tokens: tokens, temperature: 0, stream: true });
  for await (const _ of stream) at.push(performance.now() - start);
  await peer.exit();
  return { firstMs: at[0], lastMs: at.at(-1), tokens: at.length };
}`;

/** https://github.com/ngxson/wllama */
async function wllama(
  peer: 'wllama2' | 'wllama3',
  folder: string,
  prompt: string,
  { q4, tokens }: Options,
): Promise<Measured> {
  const root = join(folder, 'node_modules', peer === 'wllama2' ? 'wllama-2' : 'wllama-3');
  const model = peer === 'wllama2' && q4 ? q4 : embeddedModelPath();
  const types: Record<string, string> = { '.js': 'text/javascript', '.wasm': 'application/wasm' };
  const server = createServer((request, response) => {
    const { pathname } = new URL(request.url!, 'http://localhost');
    if (pathname === '/') return response.setHeader('content-type', 'text/html').end('<!doctype html>');
    if (pathname === '/measure.js') return response.setHeader('content-type', 'text/javascript').end(PAGE);
    const path = pathname === '/model.gguf' ? model : join(root, pathname.replace(/^\/peer\//, ''));
    if (pathname.includes('..') || !existsSync(path)) return response.writeHead(404).end();
    response.setHeader('content-type', types[extname(path)] ?? 'application/octet-stream');
    response.setHeader('content-length', statSync(path).size);
    return createReadStream(path).pipe(response);
  });
  await new Promise<void>((listening) => void server.listen(0, '127.0.0.1', listening));
  const { port } = server.address() as { port: number };
  const browser = await launchChromium();
  try {
    const page = await browser.newPage();
    await page.goto(`http://127.0.0.1:${port}/`);
    const measuring = page.evaluate(
      async (job) => {
        const path = '/measure.js';
        const { measure: run } = (await import(path)) as { measure(job: object): Promise<unknown> };
        return run(job);
      },
      {
        version: peer === 'wllama2' ? 2 : 3,
        model: '/model.gguf',
        prompt,
        tokens,
        context: Math.ceil((prompt.length / 3 + tokens) / 512) * 512 + 512,
      },
    );
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error(`took more than ${TIMEOUT_MS / 1000} s`)), TIMEOUT_MS);
    });
    return (await Promise.race([measuring, late]).finally(() => clearTimeout(timer))) as Measured;
  } finally {
    await browser.close();
    server.close();
  }
}

/** https://huggingface.co/docs/transformers.js/api/pipelines */
async function transformers(folder: string, prompt: string, { onnx, tokens }: Options): Promise<Measured> {
  interface Library {
    env: { allowRemoteModels: boolean; localModelPath: string };
    TextStreamer: new (tokenizer: unknown, options: object) => unknown;
    pipeline(
      task: string,
      model: string,
      options: object,
    ): Promise<((prompt: string, options: object) => Promise<unknown>) & { tokenizer: unknown }>;
  }
  const library = await from<Library>(folder, '@huggingface/transformers/dist/transformers.node.mjs');
  library.env.allowRemoteModels = false;
  library.env.localModelPath = '';
  const generate = await library.pipeline('text-generation', onnx!, {
    dtype: 'q4',
    session_options: { intraOpNumThreads: 1, interOpNumThreads: 1 },
  });
  const at: number[] = [];
  const start = performance.now();
  const streamer = new library.TextStreamer(generate.tokenizer, {
    skip_prompt: true,
    callback_function: () => {},
    token_callback_function: () => void at.push(performance.now() - start),
  });
  await generate(prompt, { max_new_tokens: tokens, min_new_tokens: tokens, do_sample: false, streamer });
  return { firstMs: at[0]!, lastMs: at.at(-1)!, tokens: at.length };
}

function table(results: readonly Result[], contexts: readonly number[]): string {
  const cell = (n: number | undefined): string => (n === undefined ? '' : n.toFixed(n < 10 ? 1 : 0));
  const heads = [`prefill of ${PREFILL}`, ...contexts.map((n) => `decoding at ${n.toLocaleString('en')}`)];
  const lines = [
    `${cpus()[0]?.model.trim()}, one thread, tokens a second`,
    `| | ${heads.join(' | ')} |`,
    `| --- |${' --- |'.repeat(heads.length)}`,
  ];
  for (const result of results) {
    if ('skipped' in result) lines.push(`| ${result.peer} | skipped: ${result.skipped} |`);
    else {
      const at = (context: number) => result.speeds.find((speed) => speed.context === context);
      const cells = [at(PREFILL)?.prefill, ...contexts.map((context) => at(context)?.decode)];
      lines.push(`| ${result.peer} | ${cells.map(cell).join(' | ')} |`);
    }
  }
  return `${lines.join('\n')}\n`;
}

const program = new Command();
program
  .option('--contexts <list>', 'tokens in the cache when decoding starts', '128,2048,4096')
  .option('--tokens <n>', 'tokens decoded at each', count, 32)
  .option('--peers <list>', `of ${Object.keys(PACKAGES).join(', ')}`, Object.keys(PACKAGES).join(','))
  .option('--q4 <file>', 'a Q4_0 GGUF of the same model for wllama 2.3.1, whose SIMD kernels know no Q4_1')
  .option(
    '--onnx <folder>',
    "a folder in transformers.js' layout with the model's ONNX export; without it transformers.js is skipped",
  )
  .option('--no-own', 'leaves this project out')
  .option('--folder <folder>', 'where the peers are installed and stay; a temporary folder otherwise')
  .action(run);
await program.parseAsync();
