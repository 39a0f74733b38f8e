import { spawn } from 'node:child_process';
import { appendFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';

/**
 * `node dist/eval/measure-gpu.js --out FOLDER [--golden FOLDER] [--only NAME,...] [--seconds N] [--short]` where `npm run pack:evaluation -- --webgpu` was
 * unpacked: everything that a GPU has to be asked, most wanted first, each step under its own limit and all under --seconds (480). FOLDER gets
 * `results.jsonl`, a line {step, seconds, status, results} a step, and `log.txt`. --short: the same steps in a size that a software adapter bears.
 */
const { values } = parseArgs({
  options: {
    out: { type: 'string', default: 'gpu-results' },
    golden: { type: 'string', default: 'golden' },
    only: { type: 'string' },
    seconds: { type: 'string', default: '480' },
    short: { type: 'boolean', default: false },
  },
});

interface MeasureStep {
  readonly name: string;
  readonly seconds: number;
  readonly args: readonly string[];
}

const { short } = values;
/** What the servers' form of the weights does; `--exact` where goldens ask for it. */
const model = (...args: string[]): string[] => ['--backend', 'webgpu', ...args];
const contexts = short ? '8' : '128,1024,4096,7900';
const speed = (name: string, seconds: number, ...args: string[]): MeasureStep => ({
  name,
  seconds,
  args: model('--context', contexts, ...(short ? ['--steps', '1'] : []), ...args),
});
const together = (name: string, context: string, counts: string, ...args: string[]): MeasureStep => ({
  name,
  seconds: 50,
  args: model(
    ...['--context', short ? '8' : context, '--conversations', short ? '1,2' : counts],
    ...['--steps', short ? '1' : '16'],
    ...args,
  ),
});
const size = short
  ? ['--conversations', '1', '--context', '400']
  : ['--conversations', '64', '--context', '8192'];

const STEPS: readonly MeasureStep[] = [
  {
    name: 'attention',
    seconds: 120,
    args: ['--webgpu-attention', '--json', ...size, '--variant', short ? 'float@4' : 'sweep'],
  },
  {
    name: 'golden',
    seconds: 60,
    args: model('--exact', '--policy', 'full', '--golden', resolve(values.golden)),
  },
  together('together full 1k', '1024', '1,8,32,64', '--policy', 'full'),
  together('together adkvc@4 1k', '1024', '1,8,32,64', '--policy', 'adkvc', '--ratio', '4'),
  speed('full', 30, '--policy', 'full'),
  speed('adkvc@4', 60, '--policy', 'adkvc', '--ratio', '4'),
  speed('adkvc@10', 60, '--policy', 'adkvc', '--ratio', '10'),
  speed('adkvc@8', 60, '--policy', 'adkvc', '--ratio', '8'),
  together('together adkvc@4 4k', '4096', '8,32', '--policy', 'adkvc', '--ratio', '4'),
];

const out = resolve(values.out);
mkdirSync(out, { recursive: true });
const [results, log] = [join(out, 'results.jsonl'), join(out, 'log.txt')];
writeFileSync(results, '');
writeFileSync(log, '');
const program = join(import.meta.dirname, 'main.js');

/** Runs the bench; a step that takes too long is ended, and what it wrote until then counts. */
function run(args: readonly string[], seconds: number): Promise<{ status: string; lines: string[] }> {
  return new Promise((done) => {
    const child = spawn(process.execPath, [program, 'bench', ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
    let text = '';
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      child.kill('SIGKILL');
    }, seconds * 1000);
    child.stdout.on('data', (chunk: Buffer) => {
      text += chunk;
    });
    child.stderr.on('data', (chunk: Buffer) => appendFileSync(log, chunk));
    child.on('close', (code) => {
      clearTimeout(timer);
      const status = late ? `ended after ${seconds} s` : code === 0 ? 'ok' : `exit ${code}`;
      done({ status, lines: text.split('\n').filter((line) => line.startsWith('{')) });
    });
  });
}

const only = values.only?.split(',');
const start = performance.now();
let failed = false;
for (const { name, seconds, args } of STEPS) {
  if (only && !only.includes(name)) continue;
  const begun = performance.now();
  const left = Number(values.seconds) - (begun - start) / 1000;
  const told = (status: string, lines: readonly string[]): void => {
    const took = ((performance.now() - begun) / 1000).toFixed(1);
    failed ||= status !== 'ok';
    process.stdout.write(`${name}: ${status}, ${took} s\n`);
    appendFileSync(
      results,
      `${JSON.stringify({ step: name, args, seconds: Number(took), status, results: lines.map((line) => JSON.parse(line)) })}\n`,
    );
  };
  if (left < 5) {
    told('no time left', []);
    continue;
  }
  appendFileSync(log, `---- ${name}: bench ${args.join(' ')}\n`);
  const { status, lines } = await run(args, Math.min(seconds, left));
  told(status, lines);
}
process.exitCode = failed ? 1 : 0;
