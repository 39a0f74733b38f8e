import type { ChildProcess } from 'node:child_process';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { buildWasm } from '../../scripts/build-wasm.ts';
import { freePort, isListening, spawnWrangler, waitForHealth } from '../../src/cli/wrangler-dev.ts';

const ROOT = join(import.meta.dirname, '../..');
const READY_MS = 90_000;
const CLOSED_MS = 10_000;

export interface ServerOptions {
  /** A free one by default. */
  port?: number;
  dataDir: string;
  assetsDir: string;
}

/** The Worker in workerd, run by wrangler in a process group of its own, as `npm start` runs it. */
export class TestServer {
  readonly port: number;
  readonly url: string;
  readonly #child: ChildProcess;
  #output = '';

  constructor(port: number, child: ChildProcess) {
    this.port = port;
    this.url = `http://127.0.0.1:${port}`;
    this.#child = child;
    for (const stream of [child.stdout!, child.stderr!])
      stream.on('data', (chunk: Buffer) => (this.#output += chunk.toString()));
  }

  /** wrangler's process is gone. */
  get ended(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  /** What wrangler has said until now. */
  get output(): string {
    return this.#output;
  }

  /**
   * SIGKILL, without any warning. 'group': wrangler and workerd at once, as when the machine goes down. 'workerd': the runtime
   * alone; wrangler starts it again.
   */
  kill(what: 'group' | 'workerd'): void {
    if (what === 'group') {
      if (this.#child.exitCode === null) process.kill(-this.#child.pid!, 'SIGKILL');
      return;
    }
    const pids = this.#workerds();
    if (pids.length === 0) throw new Error('no workerd runs');
    // wrangler runs two: a proxy in front, and, started after it, the one with the Worker and its objects.
    process.kill(Math.max(...pids), 'SIGKILL');
  }

  /** Resolves when nothing listens on the port. */
  async waitClosed(): Promise<void> {
    const deadline = Date.now() + CLOSED_MS;
    while (await isListening(this.port)) {
      if (Date.now() > deadline) throw new Error(`port ${this.port} is still open`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  async waitReady(): Promise<void> {
    try {
      await waitForHealth(this.#child, this.url, READY_MS);
    } catch (error) {
      throw new Error(`${(error as Error).message}\n${this.#output}`);
    }
  }

  async stop(): Promise<void> {
    this.kill('group');
    await this.waitClosed();
  }

  #workerds(): number[] {
    const { stdout } = spawnSync('ps', ['-A', '-o', 'pid=,pgid=,comm='], { encoding: 'utf8' });
    return stdout
      .split('\n')
      .map((line) => line.trim().split(/\s+/))
      .filter(([, group, command]) => Number(group) === this.#child.pid && command === 'workerd')
      .map(([pid]) => Number(pid));
  }
}

export async function startServer({ port, dataDir, assetsDir }: ServerOptions): Promise<TestServer> {
  await buildWasm();
  const chosen = port ?? (await freePort());
  const child = spawnWrangler({ cwd: ROOT, port: chosen, dataDir, assetsDir, detached: true });
  const server = new TestServer(chosen, child);
  try {
    await server.waitReady();
  } catch (error) {
    server.kill('group');
    throw error;
  }
  return server;
}
