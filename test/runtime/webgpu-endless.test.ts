import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { snapshot } from '../../src/bench/snapshot.ts';
import type { KvCache } from '../../src/cache/cache.ts';
import { type CacheConfig, DEFAULT_CACHE } from '../../src/cache/policy.ts';
import { uniform01 } from '../../src/core/random.ts';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { loadEngine } from '../../src/engine/load.ts';
import { loadWebGpuEngine } from '../../src/engine/load-webgpu.ts';
import { writeBundle } from '../../src/prepare/bundle.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { openModel } from '../../src/prepare/open-model.ts';
import { wasmKernels } from '../helpers/kernels.ts';
import { writeTinyGguf } from '../helpers/tiny-gguf.ts';
import { shaders, testDevice } from '../helpers/webgpu.ts';
import { largestDifference } from '../kernels/attend-truth.ts';

/** Conversations past the trained length, and plain tiers, on a GPU as on WebAssembly. */
const CONTEXT = 384;
const TOKENS = CONTEXT + 2 * 128 + 20;
const device = await testDevice();
const folder = mkdtempSync(join(tmpdir(), 'adkvc-webgpu-endless-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const model = await openModel(
  writeTinyGguf(join(folder, 'tiny.gguf'), { layers: 1, heads: 2, kvHeads: 1, context: CONTEXT }),
);
// Weights as stored and float arithmetic, so that both compute the same but for the order of sums.
await writeBundle(model, join(folder, 'bundle'), { form: 'exact' });
await model.close();
const source = folderSource(join(folder, 'bundle'));
const gpu = await loadWebGpuEngine({ device, source, shaders: shaders(), maxBytes: 64e6 });
const wasm = await loadEngine({ source, kernels: wasmKernels('relaxed') });
const ids = Array.from({ length: TOKENS }, (_, i) => Math.floor(uniform01(77, i) ** 2 * gpu.model.vocab));

/** Fed by themselves in the end, one by one or together. */
const LAST = 8;

async function fed(engine: ModelEngine, config: CacheConfig) {
  const cache = engine.createCache(config);
  const logits: number[] = [];
  await engine.feedEach(
    cache,
    ids.slice(0, -LAST),
    (i) => i % 37 === 0,
    (_, row) => logits.push(...row),
  );
  await cache.settle();
  return { cache, logits };
}

/** Of logits within about -10..10: sums in another order, and codes at a threshold. */
const TOLERANCE = 2e-3;
const FLOAT = { ...DEFAULT_CACHE, arithmetic: 'float', window: 16 } as const;

describe.each<[string, CacheConfig]>([
  ['adkvc', { ...FLOAT, policy: 'adkvc', ratio: 3 }],
  ['window, 3 sinks', { ...FLOAT, policy: 'window', ratio: 2, sinks: 3 }],
  ['uniform-int8', { ...FLOAT, policy: 'uniform-int8' }],
  ['uniform-int4', { ...FLOAT, policy: 'uniform-int4' }],
])('%s, past the trained length', (_, config) => {
  it(`closes the segments that WebAssembly closes, logits within ${TOLERANCE} of its; token by token and restored with the bits of a chunk`, async () => {
    const [a, b] = [await fed(gpu, config), await fed(wasm, config)];
    expect(a.cache.gaps.order.length).toBeGreaterThan(1);
    expect(a.cache.gaps.order).toEqual(b.cache.gaps.order);
    expect(a.cache.bytes).toBe(b.cache.bytes);
    const last = ids.slice(-LAST);
    const restored = gpu.restoreCache(snapshot(a.cache).reader) as KvCache;
    const chunk = await gpu.feed(a.cache, last, 'all');
    const steps: number[] = [];
    for (const id of last) steps.push(...(await gpu.feed(restored, [id], 'last')));
    expect(steps).toEqual([...chunk]);
    const expected = [...b.logits, ...(await wasm.feed(b.cache, last, 'all'))];
    expect(largestDifference([...a.logits, ...chunk], expected)).toBeLessThan(TOLERANCE);
    for (const cache of [a.cache, restored, b.cache]) cache.dispose();
  });
});
