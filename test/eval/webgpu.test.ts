import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Row } from '../../src/eval/rows.ts';
import { runCli } from '../helpers/cli.ts';
import { evalFixture } from '../helpers/eval-fixture.ts';

// Without an adapter this fails: what is expected to be there must not be skipped.
let fixture: Awaited<ReturnType<typeof evalFixture>>;
beforeAll(async () => {
  fixture = await evalFixture({ context: 512, layers: 1 });
});
afterAll(() => fixture.remove());

async function evaluated(backend: string, workers: number, exact = false): Promise<Row[]> {
  const out = join(fixture.folder, `${backend}-${workers}-${exact}.jsonl`);
  const { lines } = await runCli([
    ...['evaluate', '--bundle', exact ? fixture.exactBundle : fixture.bundle, ...(exact ? ['--exact'] : [])],
    ...['--data', fixture.data, '--tasks', 'pg19'],
    ...['--lengths', '140', '--samples', '1', '--backend', backend],
    ...['--policies', exact ? 'adkvc@3,uniform-int8@2,uniform-int4@4' : 'adkvc@3'],
    ...['--out', out, '--workers', String(workers)],
  ]);
  expect(lines).toEqual([{ out, rows: exact ? 4 : 2, failed: 0, skipped: 0, left: 0, leftByTask: {} }]);
  const rows = readFileSync(out, 'utf8')
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line) as Row);
  return rows.sort((a, b) => (a.policy < b.policy ? -1 : 1));
}

test('an evaluation on a GPU, in a process of its own: caches as large as on WebAssembly, losses within 1 %', async () => {
  const [gpu, wasm] = [await evaluated('webgpu', 1), await evaluated('wasm', 0)];
  for (const [i, row] of gpu.entries()) {
    expect(row.numerics).toMatch(/^webgpu/);
    expect(row.key).not.toBe(wasm[i]!.key);
    const { averageBytes, peakBytes, bytes } = wasm[i]!.cache!;
    expect(row.cache).toMatchObject({ averageBytes, peakBytes, bytes });
    // The latter multiplies activations of 8 bits.
    const apart = Math.abs(row.scores!.loss! / wasm[i]!.scores!.loss! - 1);
    expect(apart).toBeGreaterThan(0);
    expect(apart).toBeLessThan(0.01);
  }
});

test('with weights as stored and float arithmetic both say the same: tables of one may stand beside the other’s', async () => {
  const [gpu, wasm] = [await evaluated('webgpu', 1, true), await evaluated('wasm', 0, true)];
  for (const [i, row] of gpu.entries()) {
    expect(row.cache!.averageBytes).toBe(wasm[i]!.cache!.averageBytes);
    expect(Math.abs(row.scores!.loss! / wasm[i]!.scores!.loss! - 1)).toBeLessThan(1e-5);
    expect(Math.abs(row.scores!.kl! - wasm[i]!.scores!.kl!)).toBeLessThan(1e-5);
  }
});
