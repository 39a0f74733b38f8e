import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { snapshot } from '../../src/bench/snapshot.ts';
import type { KvCache } from '../../src/cache/cache.ts';
import { type CacheConfig, DEFAULT_CACHE } from '../../src/cache/policy.ts';
import { uniform01 } from '../../src/core/random.ts';
import { loadWebGpuEngine } from '../../src/engine/load-webgpu.ts';
import { writeBundle } from '../../src/prepare/bundle.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { openModel } from '../../src/prepare/open-model.ts';
import { writeTinyGguf } from '../helpers/tiny-gguf.ts';
import { shaders, testDevice } from '../helpers/webgpu.ts';
import { largestDifference } from '../kernels/attend-truth.ts';

/** Heads of 64 channels, as the served models have: codes are multiplied as integers. Past the trained length, so that queries are turned back, too. */
const CONTEXT = 384;
const TOKENS = CONTEXT + 128 + 20;
/** Fed one by one or together in the end. */
const LAST = 6;
/** Of logits within about -10..10: queries of 8 bits and weights of 7. */
const TOLERANCE = 0.1;
const device = await testDevice();
const folder = mkdtempSync(join(tmpdir(), 'adkvc-webgpu-integer-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const shape = { layers: 1, heads: 3, kvHeads: 1, headDim: 64, context: CONTEXT };
const model = await openModel(writeTinyGguf(join(folder, 'tiny.gguf'), shape));
await writeBundle(model, join(folder, 'bundle'), { form: 'exact' });
await model.close();
const source = folderSource(join(folder, 'bundle'));
const engine = await loadWebGpuEngine({ device, source, shaders: shaders(), maxBytes: 64e6 });
const ids = Array.from({ length: TOKENS }, (_, i) => Math.floor(uniform01(5, i) ** 2 * engine.model.vocab));

async function fed(config: CacheConfig): Promise<KvCache> {
  const cache = engine.createCache(config) as KvCache;
  await engine.feed(cache, ids.slice(0, -LAST), 'none');
  await cache.settle();
  return cache;
}
const adkvc: CacheConfig = { ...DEFAULT_CACHE, policy: 'adkvc', ratio: 3, window: 16 };

it(`integers: logits within ${TOLERANCE} of floats, token by token and restored with the bits of a chunk`, async () => {
  const [integer, float] = [await fed(adkvc), await fed({ ...adkvc, arithmetic: 'float' })];
  expect(integer.gaps.order.length).toBeGreaterThan(0);
  const last = ids.slice(-LAST);
  const restored = engine.restoreCache(snapshot(integer).reader) as KvCache;
  const beside = engine.restoreCache(snapshot(float).reader) as KvCache;
  const chunk = [...(await engine.feed(integer, last, 'all'))];
  const steps: number[] = [];
  // In company: the other conversation multiplies floats.
  for (const id of last) {
    const [row] = await Promise.all([engine.feed(restored, [id], 'last'), engine.feed(beside, [id], 'last')]);
    steps.push(...row);
  }
  expect(steps).toEqual(chunk);
  const floats = [...(await engine.feed(float, last, 'all'))];
  expect(largestDifference(chunk, floats)).toBeLessThan(TOLERANCE);
  expect(chunk).not.toEqual(floats);
  for (const cache of [integer, float, restored, beside]) cache.dispose();
});
