import { type ChildProcess, spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import { connect, createServer } from 'node:net';
import { dirname, join } from 'node:path';

export interface WranglerOptions {
  /** The project's folder, with wrangler.toml. */
  readonly cwd: string;
  readonly port: number;
  /** Where Durable Objects live. */
  readonly dataDir: string;
  /** Page and bundle, see lay-assets.ts. */
  readonly assetsDir?: string;
  /** Instead of wrangler.toml. */
  readonly config?: string;
  /** Where workerd's inspector listens; any free port by default. */
  readonly inspectorPort?: number;
  /** A process group of its own, for tests that kill all of it. */
  readonly detached?: boolean;
}

/** Starts `wrangler dev` on loopback, serving whoever asks on this machine. Its output comes on stdout and stderr, undecorated. */
export function spawnWrangler({
  cwd,
  port,
  dataDir,
  assetsDir,
  config,
  inspectorPort = 0,
  detached,
}: WranglerOptions): ChildProcess {
  const require = createRequire(import.meta.url);
  const wrangler = join(dirname(require.resolve('wrangler/package.json')), 'bin/wrangler.js');
  return spawn(
    process.execPath,
    [
      wrangler,
      'dev',
      ...['--port', String(port), '--ip', '127.0.0.1', '--inspector-port', String(inspectorPort)],
      ...['--persist-to', dataDir],
      ...(assetsDir === undefined ? [] : ['--assets', assetsDir]),
      ...(config === undefined ? [] : ['--config', config]),
      ...['--var', 'ADKVC_ANONYMOUS:1'],
      '--show-interactive-dev-session=false',
    ],
    {
      cwd,
      detached: detached ?? false,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: {
        ...process.env,
        // Nothing of this is looked up elsewhere: the origin of requests (`Request.cf`), metrics, newer versions.
        CLOUDFLARE_CF_FETCH_ENABLED: 'false',
        WRANGLER_SEND_METRICS: 'false',
        WRANGLER_HIDE_BANNER: 'true',
        NO_COLOR: '1',
        FORCE_COLOR: undefined,
      },
    },
  );
}

/** Whether something listens on the port of this machine. */
export const isListening = (port: number): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = connect({ port, host: '127.0.0.1' });
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });

/** A port of this machine that nothing listens on. */
export const freePort = (): Promise<number> =>
  new Promise((resolve, reject) => {
    const probe = createServer();
    probe.once('error', reject);
    probe.listen(0, '127.0.0.1', () => {
      const { port } = probe.address() as { port: number };
      probe.close(() => resolve(port));
    });
  });

/** Waits until `path` answers. @throws Error when the process ends first, or after `timeoutMs` */
export async function waitForHealth(
  child: ChildProcess,
  url: string,
  timeoutMs: number,
  path = '/health',
): Promise<void> {
  const POLL_MS = 100;
  const deadline = Date.now() + timeoutMs;
  let last = 'no answer';
  while (Date.now() < deadline) {
    if (child.exitCode !== null || child.signalCode !== null)
      throw new Error(`the server ended with ${child.exitCode ?? child.signalCode} before it was ready`);
    try {
      const response = await fetch(`${url}${path}`, {
        signal: AbortSignal.timeout(Math.min(30_000, timeoutMs / 4)),
      });
      last = `status ${response.status}: ${(await response.text()).slice(0, 500)}`;
      if (response.ok) return;
    } catch {
      // Not listening yet.
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  throw new Error(`the server was not ready after ${timeoutMs / 1000} s (${last})`);
}
