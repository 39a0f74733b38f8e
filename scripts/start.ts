import { type ChildProcess, spawnSync } from 'node:child_process';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { bundleFolder } from '../src/cli/bundle-folder.ts';
import { layAssets } from '../src/cli/lay-assets.ts';
import { isListening, spawnWrangler, waitForHealth } from '../src/cli/wrangler-dev.ts';
import { AdkvcError } from '../src/core/errors.ts';
import { buildWasm } from './build-wasm.ts';

/**
 * `npm start [-- --port N --data FOLDER]`: makes what is missing (kernels, the model's bundle, the folder of static assets),
 * then serves the Worker on this machine with `wrangler dev`, and tells where.
 */
const ROOT = join(import.meta.dirname, '..');
const READY_MS = 120_000;
/** How long wrangler gets to end its own children. */
const STOP_MS = 3_000;
/** How long wrangler gets to bring a crashed workerd back. */
const RECOVERY_MS = 12_000;

const { values } = parseArgs({
  options: {
    port: { type: 'string', default: process.env.PORT ?? '8787' },
    data: { type: 'string', default: join(ROOT, '.adkvc/data') },
    help: { type: 'boolean', short: 'h', default: false },
  },
});
if (values.help) {
  console.log('npm start -- [--port N] [--data FOLDER]   (PORT in the environment works too)');
  process.exit(0);
}

function fail(message: string): never {
  console.error(message);
  process.exit(1);
}

const port = Number(values.port);
if (!Number.isInteger(port) || port < 1 || port > 65_535)
  fail(`--port must be an integer from 1 to 65535, not "${values.port}"`);
const inUse = `Port ${port} is in use, perhaps by another \`npm start\`. End that one, or choose a port: npm start -- --port ${port + 1}`;
if (await isListening(port)) fail(inUse);

const assetsDir = join(ROOT, '.adkvc/assets');
const dataDir = resolve(values.data);
try {
  await buildWasm((line) => console.error(line));
  await layAssets(assetsDir, await bundleFolder('compact'));
} catch (error) {
  if (error instanceof AdkvcError) fail(error.message);
  throw error;
}

let child: ChildProcess;
let recovering = false;
let ready = false;
let stopping = false;
/** wrangler's own account of its start, told only when the start fails. */
let startup: string[] = [];

/** Starts wrangler and resolves when the API answers. */
async function launch(): Promise<void> {
  ready = false;
  startup = [];
  const mine = spawnWrangler({ cwd: ROOT, port, dataDir, assetsDir });
  child = mine;
  for (const stream of [mine.stdout!, mine.stderr!])
    createInterface({ input: stream }).on('line', (line) => {
      if (stopping || mine !== child) return;
      if (!ready) startup.push(line);
      else if (line.trim() !== '' && !line.includes(' GET /health ')) console.error(line);
      if (ready && line.includes('runtime crashed')) void recover();
    });
  mine.once('exit', (code, signal) => {
    if (!stopping && ready && mine === child) fail(`wrangler ended (${code ?? signal}).`);
  });
  await waitForHealth(mine, `http://127.0.0.1:${port}`, READY_MS);
  ready = true;
}

/** wrangler's children and theirs: a killed wrangler leaves workerd on the port. */
function family(): number[] {
  const { stdout } = spawnSync('ps', ['-A', '-o', 'pid=,ppid='], { encoding: 'utf8' });
  const pairs = (stdout ?? '').split('\n').map((line) => line.trim().split(/\s+/).map(Number));
  const found = [child.pid!];
  for (const parent of found) for (const [pid, ppid] of pairs) if (ppid === parent && pid) found.push(pid);
  return found;
}

function killAll(pids: readonly number[]): void {
  for (const pid of pids)
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // It has ended.
    }
}

/**
 * wrangler starts a crashed workerd again by itself; when its own proxy crashed too it stays deaf. Then all of it is started anew:
 * conversations stand at their last commit either way.
 */
async function recover(): Promise<void> {
  if (recovering || stopping) return;
  recovering = true;
  try {
    const answers = await waitForHealth(child, `http://127.0.0.1:${port}`, RECOVERY_MS).then(
      () => true,
      () => false,
    );
    if (answers || stopping) return;
    console.error('The server does not answer after a crash: starting it again.');
    ready = false;
    killAll(family());
    while (await isListening(port)) await new Promise((resolve) => setTimeout(resolve, 50));
    await launch();
    console.error('The server answers again.');
  } catch (error) {
    if (!stopping) fail(`${startup.join('\n')}\n${(error as Error).message}`);
  } finally {
    recovering = false;
  }
}

function stop(): void {
  if (stopping) return;
  stopping = true;
  const all = family();
  child.kill('SIGINT');
  const timer = setTimeout(() => killAll(all), STOP_MS);
  child.once('exit', () => {
    clearTimeout(timer);
    killAll(all);
    process.exit(0);
  });
}
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, stop);
// npm hands a signal to its shell, and that ends without a word to its child.
if (process.env.npm_lifecycle_event !== undefined) {
  const shell = process.ppid;
  setInterval(() => process.ppid !== shell && stop(), 500).unref();
}

const url = `http://localhost:${port}`;
try {
  await launch();
} catch (error) {
  if (stopping) process.exit(0);
  killAll(child!.exitCode === null ? family() : []);
  const output = startup.join('\n');
  const taken = output.includes('EADDRINUSE') || output.includes('Address already in use');
  fail(taken ? inUse : `${output}\n${(error as Error).message}`);
}
const { model } = (await (await fetch(`http://127.0.0.1:${port}/health`)).json()) as { model: string };
const body = { model, messages: [{ role: 'user', content: 'What is a cache?' }], stream: true };
console.log(`
  Chat page   ${url}/
  API         ${url}/v1   (OpenAI-compatible, no key needed on this machine)
  Data        ${dataDir}

  curl -N ${url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '${JSON.stringify(body)}'

  Ctrl-C ends the server; conversations stay.
`);
