import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { bundleFolder } from '../src/cli/bundle-folder.ts';
import { layAssets } from '../src/cli/lay-assets.ts';
import { freePort, spawnWrangler, type WranglerOptions, waitForHealth } from '../src/cli/wrangler-dev.ts';
import { buildWasm } from './build-wasm.ts';
import { eventsOf } from './event-stream.ts';

/** What the benches over HTTP share: the embedded model in workerd on loopback, and one streamed answer timed from outside. */

const ROOT = join(import.meta.dirname, '..');
export const MODEL = 'SmolLM2-135M-Instruct';

const WORDS =
  'the river kept its old course through the valley and nobody asked why it should do otherwise'.split(' ');
/** About one token a word. */
export const prose = (words: number, seed: number): string =>
  Array.from({ length: words }, (_, i) => WORDS[(i * 7 + seed * 3 + (i >> 3)) % WORDS.length]).join(' ');

interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_tokens_details: { cached_tokens: number };
}

/** The vendor's part of the last chunk, as far as benches read it. */
export interface Own {
  cache: { bytes: number; ratio: number };
  timing: Record<string, number>;
  rows_written: number;
  bytes_written: number;
}

export interface Timed {
  text: string;
  promptTokens: number;
  cachedTokens: number;
  completionTokens: number;
  ttftMs: number;
  /** To the end of the stream. */
  totalMs: number;
  decodeTokensPerSecond: number;
  cache: Own['cache'];
  timing: Own['timing'];
  rows: number;
  bytes: number;
}

/** A refusal, with the seconds that the server asks to wait. */
export class Refused extends Error {
  readonly status: number;
  readonly code: string;
  readonly retryAfter: number | undefined;
  constructor(status: number, code: string, retryAfter: number | undefined) {
    super(`${status} ${code}`);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** One streamed answer. @throws Refused for a status that is no success */
export async function ask(url: string, body: object, signal?: AbortSignal): Promise<Timed> {
  const start = performance.now();
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({
      model: MODEL,
      temperature: 1,
      seed: 5,
      stream: true,
      stream_options: { include_usage: true },
      ...body,
    }),
    ...(signal && { signal }),
  });
  if (!response.ok) {
    const wait = response.headers.get('retry-after');
    const { error } = (await response.json()) as { error: { code: string } };
    throw new Refused(response.status, error.code, wait === null ? undefined : Number(wait));
  }
  const at: number[] = [];
  let text = '';
  let usage: Usage | undefined;
  let own: Own | undefined;
  for await (const chunk of eventsOf(response)) {
    if (chunk.error) throw new Refused(200, chunk.error.code, chunk.error.data?.retryAfter);
    const piece = chunk.choices[0]?.delta.content;
    if (piece) at.push(performance.now());
    text += piece ?? '';
    usage = chunk.usage ?? usage;
    own = chunk.adkvc ?? own;
  }
  if (!usage || !own || at.length < 1) throw new Error('the answer was cut short');
  return {
    text,
    promptTokens: usage.prompt_tokens,
    cachedTokens: usage.prompt_tokens_details.cached_tokens,
    completionTokens: usage.completion_tokens,
    ttftMs: at[0]! - start,
    totalMs: performance.now() - start,
    decodeTokensPerSecond: ((usage.completion_tokens - 1) * 1000) / (at.at(-1)! - at[0]!),
    cache: own.cache,
    timing: own.timing,
    rows: own.rows_written,
    bytes: own.bytes_written,
  };
}

export async function post(url: string, path: string, body: object): Promise<Record<string, unknown>> {
  const response = await fetch(`${url}${path}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
  const json = (await response.json()) as Record<string, unknown>;
  if (!response.ok) throw new Error(`${path}: ${JSON.stringify(json)}`);
  return json;
}

export interface Served {
  readonly url: string;
  /** Of wrangler's process, which leads its group. */
  readonly pid: number;
  kill(): void;
}

/** Starts wrangler and waits until it answers on `path`. */
async function start(
  options: Pick<WranglerOptions, 'dataDir' | 'assetsDir' | 'config' | 'inspectorPort'>,
  path?: string,
): Promise<Served> {
  const port = await freePort();
  const child = spawnWrangler({ cwd: ROOT, port, detached: true, ...options });
  const url = `http://127.0.0.1:${port}`;
  await waitForHealth(child, url, 120_000, path);
  // Nobody reads what it says, and a pipe that is full would stop it.
  child.stdout?.resume();
  child.stderr?.resume();
  const kill = (): void => {
    if (child.exitCode === null && child.signalCode === null) process.kill(-child.pid!, 'SIGKILL');
  };
  // It is in a group of its own: whoever ends this process would leave it behind.
  for (const signal of ['SIGINT', 'SIGTERM'] as const)
    process.once(signal, () => {
      kill();
      process.exit(1);
    });
  return { url, pid: child.pid!, kill };
}

/** A folder of assets and data, in which servers can be started one after the other; `remove` it at the end. */
export async function servedModel() {
  await buildWasm();
  const folder = mkdtempSync(join(tmpdir(), 'adkvc-bench-'));
  const assetsDir = join(folder, 'assets');
  await layAssets(assetsDir, await bundleFolder('compact'));
  return {
    remove: () => rmSync(folder, { recursive: true, force: true }),
    /** Conversations lie in `dataDir`, which stays; by default in a folder that goes with `remove`. */
    async serve(options: Partial<Pick<WranglerOptions, 'inspectorPort' | 'dataDir'>> = {}): Promise<Served> {
      return await start({ dataDir: join(folder, 'data'), assetsDir, ...options });
    },
  };
}

/** A process as /proc tells it. https://man7.org/linux/man-pages/man5/proc.5.html */
export interface ProcessUse {
  readonly cpuMs: number;
  readonly peakBytes: number;
}

const CLOCK_TICKS_PER_SECOND = 100;

/** What the workerd that holds the Worker and its objects has used; undefined where there is no /proc. */
export function workerdUse({ pid: group }: Served): ProcessUse | undefined {
  const { stdout } = spawnSync('ps', ['-A', '-o', 'pid=,pgid=,comm='], { encoding: 'utf8' });
  let most: ProcessUse | undefined;
  for (const line of (stdout ?? '').split('\n')) {
    const [pid, of, command] = line.trim().split(/\s+/);
    if (Number(of) !== group || command !== 'workerd') continue;
    try {
      // After the name, which may hold anything, in its brackets.
      const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1)!.split(' ');
      const cpuMs = ((Number(fields[11]) + Number(fields[12])) * 1000) / CLOCK_TICKS_PER_SECOND;
      const peak = /VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
      const use = { cpuMs, peakBytes: Number(peak?.[1] ?? 0) * 1024 };
      // wrangler runs two: the other is a proxy in front of it.
      if (!most || use.peakBytes > most.peakBytes) most = use;
    } catch {
      // It has ended.
    }
  }
  return most;
}

/**
 * What the calibration kernels reach inside workerd, 1e9 multiply-adds a second: like src/bench/calibrate.ts, timed from outside over HTTP.
 * Best of some runs, less what an empty request takes.
 */
export async function calibrateWorkerd(): Promise<{ q4GMACs: number; dotGMACs: number }> {
  const folder = mkdtempSync(join(tmpdir(), 'adkvc-calibration-'));
  const server = await start(
    { dataDir: folder, config: join(ROOT, 'wrangler.calibration.toml') },
    '/?kind=dot&count=1',
  );
  const RUNS = 6;
  const timed = async (kind: string, count: number): Promise<number> => {
    const begin = performance.now();
    const { products } = (await (await fetch(`${server.url}/?kind=${kind}&count=${count}`)).json()) as {
      products: number;
    };
    const ms = performance.now() - begin;
    return count === 0 ? ms : products / Math.max(1e-3, ms - empty) / 1e6;
  };
  const several = async (kind: string, count: number): Promise<number[]> => {
    const results: number[] = [];
    for (let run = 0; run < RUNS; run++) results.push(await timed(kind, count));
    return results;
  };
  let empty = 0;
  try {
    empty = Math.min(...(await several('dot', 0)));
    return {
      q4GMACs: Math.max(...(await several('q4', 10))),
      dotGMACs: Math.max(...(await several('dot', 300))),
    };
  } finally {
    server.kill();
    rmSync(folder, { recursive: true, force: true });
  }
}
