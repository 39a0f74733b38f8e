import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { DEFAULT_CACHE } from '../../src/cache/policy.ts';
import { CorruptDataError } from '../../src/core/errors.ts';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { loadEngine } from '../../src/engine/load.ts';
import { attachProfile, readBundleManifest, writeBundle } from '../../src/prepare/bundle.ts';
import {
  calibrationTasks,
  combineResults,
  profileFile,
  runCalibrationTask,
} from '../../src/prepare/calibrate.ts';
import { calibrationItems, generateSource } from '../../src/prepare/calibration-texts.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { openModel } from '../../src/prepare/open-model.ts';
import { wasmKernels } from '../helpers/kernels.ts';
import { writeTinyGguf } from '../helpers/tiny-gguf.ts';

/** From a model of random weights to a profile in its bundle, through the code that `adkvc calibrate` runs. */
const folder = mkdtempSync(join(tmpdir(), 'adkvc-profile-'));
const bundle = join(folder, 'bundle');
const load = (): Promise<ModelEngine> =>
  loadEngine({ source: folderSource(bundle), kernels: wasmKernels('plain') });
let engine: ModelEngine;
let heads: number;

beforeAll(async () => {
  const source = await openModel(writeTinyGguf(join(folder, 'tiny.gguf'), {}));
  await writeBundle(source, bundle, { form: 'exact' });
  await source.close();
  engine = await load();
  heads = engine.model.layers * engine.model.kvHeads;
});
afterAll(() => rmSync(folder, { recursive: true }));

async function measure(): Promise<string> {
  const sources = [await generateSource(engine, 400, 1)];
  const items = calibrationItems(engine, {
    ...{ sources, texts: 1, needles: 1, seed: 1 },
    ...{ context: 256, needleContext: 256 },
  });
  const done = [];
  for (const task of calibrationTasks(items, heads, 2))
    done.push({ task, result: await runCalibrationTask(engine, task, 'float') });
  return JSON.stringify(profileFile(engine, 'f'.repeat(64), {}, combineResults(done, heads)));
}

describe('a profile', () => {
  it('is measured, goes into the bundle, is used by adkvc, and leaves again', async () => {
    const text = await measure();
    const numbers = JSON.parse(text);
    // Damage shows for every head. (In random weights nothing more can be said: their attention is flat.)
    for (const name of ['keys', 'values', 'drop']) {
      expect(numbers[name]).toHaveLength(heads);
      expect(Math.min(...numbers[name])).toBeGreaterThan(0);
    }
    expect(numbers.needle).toHaveLength(heads);
    // The same seed measures the same.
    expect(await measure()).toBe(text);

    const report = (e: ModelEngine): string | undefined =>
      e.createCache({ ...DEFAULT_CACHE, ratio: 4 }).report().profile;
    expect(report(engine)).toBe('none');
    const before = await readBundleManifest(bundle);
    await attachProfile(bundle, text);
    const manifest = (await readBundleManifest(bundle))!;
    expect(manifest.fingerprint).toBe(before!.fingerprint);
    expect(existsSync(join(bundle, manifest.profile!.file))).toBe(true);
    expect(report(await load())).toBe(manifest.profile!.sha256);

    const files = readdirSync(bundle);
    await attachProfile(bundle, text);
    expect(readdirSync(bundle)).toEqual(files);
    await attachProfile(bundle, `${text}\n`);
    expect(readdirSync(bundle)).toHaveLength(files.length);

    await attachProfile(bundle, undefined);
    expect(await readBundleManifest(bundle)).toEqual(before);
    expect(report(await load())).toBe('none');
  });

  it('of another model is refused before anything is written', async () => {
    const files = readdirSync(bundle);
    const other = JSON.stringify({
      ...{ format: 'adkvc-profile', version: 1, model: {}, source: '', measured: {} },
      ...{ keys: [1], values: [1], drop: [1], needle: [1] },
    });
    await expect(attachProfile(bundle, other)).rejects.toThrow(CorruptDataError);
    expect(readdirSync(bundle)).toEqual(files);
  });

  it('asks for texts that are long enough', () => {
    const plan = { texts: 1, needles: 0, context: 256, needleContext: 256, seed: 1 };
    expect(() => calibrationItems(engine, { ...plan, sources: [[1, 2, 3]] })).toThrow(/383 tokens/);
  });
});
