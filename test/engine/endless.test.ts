import { beforeAll, describe, expect, it } from 'vitest';
import { MAX_POSITIONS } from '../../src/cache/gaps.ts';
import { readLayerMaps } from '../../src/cache/map.ts';
import { type CacheConfig, DEFAULT_CACHE } from '../../src/cache/policy.ts';
import { uniform01 } from '../../src/core/random.ts';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { DROP } from '../../src/kernels/layout.ts';
import { stateOf } from '../helpers/cache-driver.ts';
import { tinyEngine } from '../helpers/tiny-engine.ts';

/** Short, so that a conversation is soon three times as long. */
const CONTEXT = 640;
const TOKENS = 3 * CONTEXT + 60;
let wasm: ModelEngine;
let ids: number[];
beforeAll(async () => {
  wasm = await tinyEngine('wasm', { context: CONTEXT });
  ids = Array.from({ length: TOKENS }, (_, i) => Math.floor(uniform01(77, i) ** 2 * wasm.model.vocab));
});

async function fed(engine: ModelEngine, config: CacheConfig, chunk: number, tokens = TOKENS) {
  const cache = engine.createCache(config);
  const logits: Float32Array[] = [];
  await engine.feedEach(
    cache,
    ids.slice(0, tokens),
    (i) => i % 7 === 0,
    (_, row) => logits.push(row.slice()),
    { chunk },
  );
  return { cache, logits };
}

const CONFIGS: [string, Partial<CacheConfig>][] = [
  ['adkvc', { policy: 'adkvc', ratio: 4 }],
  ['adkvc, float', { policy: 'adkvc', ratio: 4, arithmetic: 'float' }],
  ['window', { policy: 'window', ratio: 4 }],
  ['snapkv', { policy: 'snapkv', ratio: 2 }],
  ['uniform', { policy: 'uniform', ratio: 2 }],
  ['uniform-int8', { policy: 'uniform-int8' }],
];

describe.each(CONFIGS)('three times the trained length under %s', (_, overrides) => {
  const config = { ...DEFAULT_CACHE, ...overrides };

  it('gives the same bits for chunks of 128, 64, 17 and 1', { timeout: 240_000 }, async () => {
    const results = [];
    for (const chunk of [128, 64, 17, 1]) {
      const { cache, logits } = await fed(wasm, config, chunk);
      results.push({ logits, state: stateOf(cache) });
      cache.dispose();
    }
    for (const other of results.slice(1)) expect(other).toEqual(results[0]);
  });

  it('keeps positions within the trained length, the newest tokens and the byte budget', async () => {
    const cache = wasm.createCache(config);
    for (let at = 0; at < TOKENS; at += 32) {
      await wasm.feed(cache, ids.slice(at, at + 32), 'none');
      for (let layer = 0; layer < cache.layers; layer++) {
        const closed = cache.offsets(layer)?.sinks ?? 0;
        // The plan of an epoch needs a few positions to take effect when the trained length is crossed.
        expect(cache.position - closed).toBeLessThanOrEqual(
          CONTEXT + (cache.position < CONTEXT + 128 ? 24 : 0),
        );
      }
      if (cache.position < CONTEXT) expect(cache.gaps.count).toBe(0);
      else expect(cache.position - cache.gaps.tokens).toBeGreaterThan(CONTEXT - 3 * 128);
      expect(cache.bytes).toBeLessThanOrEqual(wasm.worstCaseBytes(config, cache.position));
    }
    const order = cache.gaps.order;
    expect(new Set(order).size).toBe(order.length);
    expect(Math.max(...order)).toBeLessThan(cache.spans.length - 3);
    cache.finish();
    if (config.ratio && config.policy !== 'uniform')
      expect(cache.bytes).toBeLessThanOrEqual(cache.budgetAt(cache.position));
    cache.dispose();
  });

  it('is restored bit for bit on both sides of the border, and goes on alike', {
    timeout: 60_000,
  }, async () => {
    for (const position of [
      CONTEXT - 5,
      CONTEXT + 3,
      CONTEXT + 11,
      CONTEXT + 19,
      2 * CONTEXT + 14,
      2 * CONTEXT + 77,
    ]) {
      const { cache } = await fed(wasm, config, 128, position);
      const pending = cache.completePlan();
      const state = stateOf(cache);
      const reader = {
        header: structuredClone(cache.header),
        hot: (layer: number) => cache.hot(layer),
        block: (layer: number, segment: number) => ({
          version: cache.blockVersion(layer, segment),
          bytes: cache.block(layer, segment),
        }),
        journal: pending ? [pending] : [],
      };
      const restored = wasm.restoreCache(reader) as typeof cache;
      expect(stateOf(restored)).toEqual(state);
      for (let layer = 0; layer < cache.layers; layer++)
        expect(restored.offsets(layer)).toEqual(cache.offsets(layer));
      const rest = ids.slice(position, position + 150);
      const a = await wasm.feed(cache, rest, 'all');
      const b = await wasm.feed(restored, rest, 'all');
      expect(b).toEqual(a);
      expect(stateOf(restored)).toEqual(stateOf(cache));
      const [map] = readLayerMaps({ ...reader, header: cache.header, journal: [] }, wasm.model, [0]);
      for (const segment of cache.gaps.order)
        expect(map!.segments[segment]!.tiers.every((tier) => tier === DROP)).toBe(true);
      cache.dispose();
      restored.dispose();
    }
  });
});

describe('past the trained length', () => {
  const adkvc: CacheConfig = { ...DEFAULT_CACHE, ratio: 4 };

  it('a full cache refuses, a bounded one ends at a stated limit', async () => {
    const full = wasm.createCache({ ...DEFAULT_CACHE, policy: 'full' });
    await wasm.feed(full, ids.slice(0, CONTEXT), 'none');
    await expect(wasm.feed(full, [1], 'none')).rejects.toMatchObject({ data: { limit: CONTEXT } });
    full.dispose();
    expect(wasm.positionLimit(full.config)).toBe(CONTEXT);
    expect(wasm.positionLimit(adkvc)).toBe(MAX_POSITIONS);
    const cache = wasm.createCache(adkvc);
    cache.position = MAX_POSITIONS;
    await expect(wasm.feed(cache, [1], 'none')).rejects.toMatchObject({ data: { limit: MAX_POSITIONS } });
    cache.dispose();
  });

  it('queries moved by an offset see a segment as if what was closed after it had never been', async () => {
    // Uniform in 16 bits drops nothing but what is closed: its logits follow from the distances alone.
    const { cache } = await fed(wasm, { ...DEFAULT_CACHE, policy: 'uniform', ratio: 1 }, 128, CONTEXT + 160);
    const { segments, sinks } = cache.offsets(0)!;
    expect(sinks).toBe(cache.gaps.tokens);
    const open = cache.spans.map((_, s) => s).filter((s) => !cache.gaps.has(s));
    expect(segments).toHaveLength(open.length);
    open.forEach((s, i) => {
      let after = 0;
      for (const gap of cache.gaps.order) if (gap > s) after += cache.spans[gap]!.tokens;
      expect(segments[i]).toBe(after);
    });
    cache.dispose();
  });

  it('refuses closed segments that no plan can have closed', async () => {
    const { cache } = await fed(wasm, adkvc, 128, 2 * CONTEXT + 77);
    const { order } = cache.gaps;
    const withClosed = (closed: number[]) => ({
      header: { ...cache.header, closed },
      hot: (layer: number) => cache.hot(layer),
      block: (layer: number, segment: number) => ({
        version: cache.blockVersion(layer, segment),
        bytes: cache.block(layer, segment),
      }),
      journal: [],
    });
    const bytes = wasm.availableBytes;
    for (const closed of [
      [],
      order.slice(1),
      [...order, 0],
      [...order.slice(0, -1), order[0]!],
      [...order.slice(0, -1), cache.spans.length - 1],
      [-1, ...order.slice(1)],
      [0.5, ...order.slice(1)],
    ])
      expect(() => wasm.restoreCache(withClosed(closed))).toThrow(/closed/);
    expect(wasm.availableBytes).toBe(bytes);
    cache.dispose();
  });
});
