import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { readBundleManifest, writeBundle } from '../../src/prepare/bundle.ts';
import { openModel } from '../../src/prepare/open-model.ts';
import { runCli } from '../helpers/cli.ts';
import { evalFixture } from '../helpers/eval-fixture.ts';
import { describeShared, sharedPath } from '../helpers/shared.ts';

let fixture: Awaited<ReturnType<typeof evalFixture>>;
beforeAll(async () => {
  fixture = await evalFixture({ context: 512 });
});
afterAll(() => fixture.remove());

const SMALL = ['--texts', '1', '--needles', '1', '--context', '128', '--needle-context', '128'];
const calibrate = (...more: string[]) => runCli(['calibrate', ...SMALL, ...more]);

test('any prepared model is calibrated: the same profile from one thread as from two, in all its bundles, and rows name it', async () => {
  const bundles = ['--bundle', fixture.bundle, fixture.exactBundle];
  const one = await calibrate(...bundles, '--workers', '1', '--out', join(fixture.folder, 'profile.json'));
  const profile = readFileSync(join(fixture.folder, 'profile.json'), 'utf8');
  const two = await calibrate(...bundles, '--workers', '2');
  expect([one.code, two.code]).toEqual([0, 0]);
  const { sha256 } = one.lines[0];
  expect(two.lines[0]).toMatchObject({ profile: bundles.slice(1), sha256 });
  for (const folder of bundles.slice(1)) {
    const manifest = (await readBundleManifest(folder))!;
    expect(manifest.profile!.sha256).toBe(sha256);
    expect(readFileSync(join(folder, manifest.profile!.file), 'utf8')).toBe(profile);
  }
  // What it was measured on stands in it: the command can be given again.
  expect(JSON.parse(profile).measured).toEqual({
    ...{ texts: 1, context: 128, needles: 1, needleContext: 128, seed: 1 },
    source: 'text written by the model',
  });
  const out = join(fixture.folder, 'rows.jsonl');
  await runCli([
    ...['evaluate', '--bundle', fixture.bundle, '--data', fixture.data, '--tasks', 'pg19', '--samples', '1'],
    ...['--lengths', '128', '--policies', 'adkvc@4', '--workers', '0', '--out', out],
  ]);
  for (const line of readFileSync(out, 'utf8').trim().split('\n'))
    expect(JSON.parse(line).profile).toBe(sha256);
});

test.each([
  [['--bundle', '/nowhere'], /\/nowhere: manifest\.json cannot be read/],
  [['--context', '100'], /--context must be a multiple of 128, not 100/],
  [['--context', '512'], /contexts of 512 and 128 .* do not fit the model's 512/],
  [['--text', '/nowhere.txt'], /\/nowhere\.txt cannot be read/],
  [['--text', 'tsconfig.build.json', '--context', '384'], /no calibration text has 511 tokens: .*--text/],
])('refuses %j, and says what would be right', async (more, message) => {
  const result = await calibrate('--bundle', fixture.exactBundle, ...more);
  expect(result.code).not.toBe(0);
  expect(result.stderr).toMatch(message);
  expect(result.stderr).not.toMatch(/^ +at /m);
});

test('a model in the compact form alone is not measured', async () => {
  expect((await calibrate('--bundle', fixture.bundle)).stderr).toMatch(/adkvc prepare --exact makes it/);
});

describeShared('a model that others trained', () => {
  test('without a chat template is calibrated, its needle prompts as plain text', async () => {
    const folder = join(fixture.folder, 'stories');
    const source = await openModel(sharedPath('models', 'stories260K-hf')!);
    await writeBundle(source, folder, { form: 'exact' });
    await source.close();
    const out = join(fixture.folder, 'stories.json');
    const { code, stderr } = await calibrate('--bundle', folder, '--workers', '1', '--out', out);
    expect([code, stderr]).toEqual([0, expect.not.stringContaining('error')]);
    const profile = JSON.parse(readFileSync(out, 'utf8'));
    expect(profile.model).toMatchObject({ layers: 5, kvHeads: 4 });
    for (const name of ['keys', 'values', 'drop']) expect(Math.min(...profile[name])).toBeGreaterThan(0);
    // It was trained: heads differ as those of random weights do not.
    expect(Math.max(...profile.drop)).toBeGreaterThan(3 * Math.min(...profile.drop));
  });
});
