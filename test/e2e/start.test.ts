import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { freePort, isListening } from '../../src/cli/wrangler-dev.ts';
import { type TinyServed, tinyServed } from '../helpers/tiny-bundle.ts';

/** `npm start` as a person runs it: the embedded model, the printed lines, Ctrl-C. */
const ROOT = join(import.meta.dirname, '../..');
let child: ChildProcess | undefined;
let data: TinyServed | undefined;

function npmStart(port: number, ...more: string[]): { output: () => string; ended: Promise<number | null> } {
  let output = '';
  child = spawn('npm', ['start', '--', '--port', String(port), ...more], { cwd: ROOT, detached: true });
  for (const stream of [child.stdout!, child.stderr!]) stream.on('data', (chunk) => (output += chunk));
  const ended = new Promise<number | null>((resolve) => child!.once('exit', resolve));
  return { output: () => output, ended };
}

afterEach(async () => {
  if (child?.pid && child.exitCode === null)
    try {
      process.kill(-child.pid, 'SIGKILL');
    } catch {
      // It has ended.
    }
  await data?.remove();
});

test('npm start says where page, API and data are, its curl answers, and Ctrl-C ends all of it', async () => {
  data = await tinyServed();
  const port = await freePort();
  const { output, ended } = npmStart(port, '--data', data.dataDir);
  await expect.poll(output, { timeout: 200_000, interval: 200 }).toContain('Ctrl-C ends the server');
  expect(output()).toContain(`http://localhost:${port}/`);
  expect(output()).toContain(data.dataDir);
  expect(output()).not.toMatch(/Request\.cf|Warning:|Error:/);

  const curl = output()
    .match(/curl -N [\s\S]*?'\n/)![0]
    .replace('"stream":true', '"stream":true,"max_tokens":8,"temperature":0');
  const answer = await new Promise<string>((resolve) => {
    let text = '';
    const shell = spawn('bash', ['-c', curl]);
    shell.stdout.on('data', (chunk) => (text += chunk));
    shell.once('close', () => resolve(text));
  });
  expect(answer).toContain('"finish_reason":"length"');
  expect(answer.trimEnd().endsWith('data: [DONE]')).toBe(true);

  // Every workerd at once: more than wrangler can mend by itself.
  const pids = execFileSync('ps', ['-A', '-o', 'pid=,pgid=,comm='], { encoding: 'utf8' })
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
    .filter(([, group, command]) => Number(group) === child!.pid && command === 'workerd');
  expect(pids.length).toBeGreaterThan(0);
  for (const [pid] of pids) process.kill(Number(pid), 'SIGKILL');
  await expect.poll(output, { timeout: 90_000, interval: 200 }).toContain('The server answers again.');
  expect((await fetch(`http://127.0.0.1:${port}/v1/models`)).status).toBe(200);

  process.kill(-child!.pid!, 'SIGINT');
  await ended;
  await expect.poll(() => isListening(port)).toBe(false);
});

test('a port in use is said, with a remedy', async () => {
  const port = await freePort();
  const other = createServer().listen(port, '127.0.0.1');
  try {
    const { output, ended } = npmStart(port);
    expect(await ended).toBe(1);
    expect(output()).toContain(`Port ${port} is in use`);
    expect(output()).toContain(`--port ${port + 1}`);
  } finally {
    other.close();
  }
});
