import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { writeBundle } from '../../src/prepare/bundle.ts';
import { openModel } from '../../src/prepare/open-model.ts';
import { runNode } from '../helpers/cli.ts';
import { writeTinyGguf } from '../helpers/tiny-gguf.ts';

/** What a GPU is asked on a machine of its own: packed, unpacked elsewhere, and one of its steps run, in the size that the software adapter bears. */
const folder = mkdtempSync(join(tmpdir(), 'adkvc-measure-'));
const tree = join(folder, 'pack/tree');
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test('the packed program measures conversations at once', async () => {
  const packed = await runNode([
    ...['scripts/pack-evaluation.ts', '--out', join(folder, 'pack'), '--webgpu'],
    ...['--forms', '', '--tasks', ''],
  ]);
  expect(packed.stderr, packed.stdout).not.toMatch(/Error/);
  const model = await openModel(writeTinyGguf(join(folder, 'tiny.gguf'), { layers: 1 }));
  mkdirSync(join(tree, '.adkvc'), { recursive: true });
  await writeBundle(model, join(tree, '.adkvc/bundle'), { form: 'compact' });
  await model.close();

  const out = join(folder, 'out');
  const step = 'together adkvc@4 1k';
  const run = await runNode([
    join(tree, 'dist/eval/measure-gpu.js'),
    ...['--out', out, '--short', '--only', step],
  ]);
  const log = readFileSync(join(out, 'log.txt'), 'utf8');
  expect(run.code, run.stdout + log).toBe(0);
  expect(readdirSync(out).sort()).toEqual(['log.txt', 'results.jsonl']);
  const lines = readFileSync(join(out, 'results.jsonl'), 'utf8').trim().split('\n');
  const [told, ...more] = lines.map((line) => JSON.parse(line));
  expect(more).toEqual([]);
  expect(told).toMatchObject({ step, status: 'ok' });
  const [{ decoding, prefillTokensPerSecond }] = told.results;
  expect(prefillTokensPerSecond).toBeGreaterThan(0);
  expect(decoding.map((one: { conversations: number }) => one.conversations)).toEqual([1, 2]);
  for (const one of decoding) {
    expect(one.logitsTokensPerSecond).toBeGreaterThan(0);
    expect(one.greedyTokensPerSecond).toBeGreaterThan(0);
    expect(Object.keys(one.kernels)).toEqual(expect.arrayContaining(['attend', 'logits', 'top-k']));
  }
});
