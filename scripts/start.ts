import { spawnSync } from 'node:child_process';
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

const child = spawnWrangler({ cwd: ROOT, port, dataDir, assetsDir });
let ready = false;
let stopping = false;
/** wrangler's own account of its start, told only when the start fails. */
const startup: string[] = [];
for (const stream of [child.stdout!, child.stderr!])
  createInterface({ input: stream }).on('line', (line) => {
    if (!ready) startup.push(line);
    else if (!stopping && line.trim() !== '' && !line.includes(' GET /health ')) console.error(line);
  });

/** wrangler's children and theirs: a killed wrangler leaves workerd on the port. */
function descendants(): number[] {
  const { stdout } = spawnSync('ps', ['-A', '-o', 'pid=,ppid='], { encoding: 'utf8' });
  const pairs = (stdout ?? '').split('\n').map((line) => line.trim().split(/\s+/).map(Number));
  const found = [child.pid!];
  for (const parent of found) for (const [pid, ppid] of pairs) if (ppid === parent && pid) found.push(pid);
  return found;
}

function stop(): void {
  if (stopping) return;
  stopping = true;
  const family = descendants();
  child.kill('SIGINT');
  const killRest = (): void => {
    for (const pid of family)
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // It has ended.
      }
  };
  const timer = setTimeout(killRest, STOP_MS);
  child.once('exit', () => {
    clearTimeout(timer);
    killRest();
    process.exit(0);
  });
}
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, stop);
child.once('exit', (code, signal) => {
  if (stopping || !ready) return;
  fail(`wrangler ended (${code ?? signal}).`);
});

const url = `http://localhost:${port}`;
try {
  await waitForHealth(child, `http://127.0.0.1:${port}`, READY_MS);
} catch (error) {
  if (stopping) process.exit(0);
  const output = startup.join('\n');
  for (const pid of child.exitCode === null ? descendants() : [])
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // It has ended.
    }
  fail(
    output.includes('EADDRINUSE') || output.includes('Address already in use')
      ? inUse
      : `${output}\n${(error as Error).message}`,
  );
}
ready = true;
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
