import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { snapshot } from '../../src/bench/snapshot.ts';
import { type CacheConfig, DEFAULT_CACHE } from '../../src/cache/policy.ts';
import { uniform01 } from '../../src/core/random.ts';
import { loadWebGpuEngine, type WebGpuEngine } from '../../src/engine/load-webgpu.ts';
import { writeBundle } from '../../src/prepare/bundle.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { openModel } from '../../src/prepare/open-model.ts';
import { EXACT_FULL, golden, maxDifference, readNpy, score } from '../helpers/golden.ts';
import { describeShared, sharedPath } from '../helpers/shared.ts';
import { writeTinyGguf } from '../helpers/tiny-gguf.ts';
import { shaders, testDevice } from '../helpers/webgpu.ts';

const device = await testDevice();
const folder = mkdtempSync(join(tmpdir(), 'adkvc-webgpu-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function engineOf(path: string, name: string, form: 'exact' | 'compact'): Promise<WebGpuEngine> {
  const model = await openModel(path);
  await writeBundle(model, join(folder, name), { form });
  await model.close();
  const source = folderSource(join(folder, name));
  return loadWebGpuEngine({ device, source, shaders: shaders(), maxBytes: 64e6 });
}

describeShared('the model on a GPU: stories260K', () => {
  it('every logit within 1e-4 of the float golden', async () => {
    const engine = await engineOf(
      sharedPath('models', 'stories260K-onnx', 'fp32-head8')!,
      'stories',
      'exact',
    );
    const prompts: { ids: number[]; logits_file: string }[] = golden('stories260K.json').prompts;
    const short = prompts.filter(({ ids }) => ids.length < 10);
    expect(short.length).toBeGreaterThan(2);
    for (const { ids, logits_file } of short) {
      const expected = readNpy(logits_file);
      const { logits } = await score(engine, EXACT_FULL, ids, [...ids.keys()]);
      const apart = ids.map((_, i) =>
        maxDifference(logits.get(i)!, expected.subarray(i * 512, (i + 1) * 512)),
      );
      expect(Math.max(...apart), logits_file).toBeLessThan(1e-4);
    }
  });
});

describe.each([
  ['exact', 'max'],
  ['compact', 'ema'],
] as const)('a tiny model in its %s form under adkvc, tracker %s', (form, tracker) => {
  const config: CacheConfig = { ...DEFAULT_CACHE, ratio: 2, arithmetic: 'float', tracker };
  const ids = (engine: WebGpuEngine): number[] =>
    Array.from({ length: 150 }, (_, i) => Math.floor(uniform01(77, i) ** 2 * engine.model.vocab));

  it('goes on from its stored state with the same bits as without a break', async () => {
    const gguf = writeTinyGguf(join(folder, `${form}.gguf`), { layers: 1 });
    const engine = await engineOf(gguf, form, form);
    const all = ids(engine);
    const whole = engine.createCache(config);
    const before = await engine.feed(whole, all.slice(0, 140), 'last');
    expect(before.every(Number.isFinite)).toBe(true);
    await whole.settle();
    const { reader } = snapshot(whole);
    const expected = await engine.feed(whole, all.slice(140), 'last');
    const resumed = engine.restoreCache(reader);
    expect(await engine.feed(resumed, all.slice(140), 'last')).toEqual(expected);
    whole.dispose();
    resumed.dispose();
  });
});

it('chunks of 1, 17, 64 and 128 tokens give the same bits of logits and stored state', {
  timeout: 600_000,
}, async () => {
  const gguf = writeTinyGguf(join(folder, 'chunks.gguf'), { layers: 1 });
  const engine = await engineOf(gguf, 'chunks', 'compact');
  // The plan of the epoch at 128 has reached the only layer at 137.
  const all = Array.from({ length: 140 }, (_, i) => Math.floor(uniform01(78, i) ** 2 * engine.model.vocab));
  const runs = [];
  for (const chunk of [128, 64, 17, 1]) {
    const cache = engine.createCache({ ...DEFAULT_CACHE, ratio: 2, window: 16 });
    const logits: number[] = [];
    const wanted = (i: number): boolean => i === all.length - 1 || i === 100;
    await engine.feedEach(cache, all, wanted, (_, row) => logits.push(...row), { chunk });
    await cache.settle();
    const { reader } = snapshot(cache);
    const hot = [reader.hot(0), ...reader.journal.map(({ bytes }) => bytes)];
    const blocks = Array.from({ length: cache.segmentsOf(0) }, (_, s) => reader.block(0, s).bytes);
    runs.push({ logits, hot, blocks });
    cache.dispose();
  }
  expect(runs[0]!.blocks.length).toBeGreaterThan(0);
  for (const run of runs) expect(run).toEqual(runs[0]);
});
