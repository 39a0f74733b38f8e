import { beforeAll, describe, expect, it } from 'vitest';
import { type CacheConfig, DEFAULT_CACHE, TRACKER_NAMES } from '../../src/cache/policy.ts';
import { STREAMING_POLICIES } from '../../src/cache/registry.ts';
import { uniform01 } from '../../src/core/random.ts';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { stateOf } from '../helpers/cache-driver.ts';
import { tinyEngine } from '../helpers/tiny-engine.ts';

const IDS = (vocab: number, n: number): number[] =>
  Array.from({ length: n }, (_, i) => Math.floor(uniform01(77, i) ** 2 * vocab));

const logitsAndState = async (engine: ModelEngine, config: CacheConfig, chunk: number, tokens: number) => {
  const cache = engine.createCache(config);
  const logits: Float32Array[] = [];
  try {
    await engine.feedEach(
      cache,
      IDS(engine.model.vocab, tokens),
      () => true,
      (_, row) => logits.push(row.slice()),
      { chunk },
    );
    return { logits, state: stateOf(cache) };
  } finally {
    cache.dispose();
  }
};

const CONFIGS: [string, Partial<CacheConfig>][] = [
  ...STREAMING_POLICIES.map((policy): [string, Partial<CacheConfig>] => [
    policy,
    policy === 'full' ? { policy } : { policy, ratio: 2 },
  ]),
  ...TRACKER_NAMES.filter((tracker) => tracker !== 'ema').map((tracker): [string, Partial<CacheConfig>] => [
    `adkvc, tracker ${tracker}`,
    { policy: 'adkvc', ratio: 2, tracker },
  ]),
  ['full, exact', { policy: 'full', exactBits: 32, arithmetic: 'float' }],
  ['adkvc, exact', { policy: 'adkvc', ratio: 2, arithmetic: 'float' }],
];

describe.each(CONFIGS)('a whole model under %s', (_, overrides) => {
  const config = { ...DEFAULT_CACHE, ...overrides };
  let wasm: ModelEngine;
  beforeAll(async () => {
    wasm = await tinyEngine('wasm');
  });

  it('gives bit-identical logits and stored bytes for chunks of 128, 64, 17 and 1', {
    timeout: 120_000,
  }, async () => {
    const [first, ...others] = await Promise.all(
      [128, 64, 17, 1].map((c) => logitsAndState(wasm, config, c, 520)),
    );
    for (const other of others) expect(other).toEqual(first);
  });

  it('gives the same bits in plain SIMD as in relaxed SIMD', { timeout: 120_000 }, async () => {
    const plain = await tinyEngine('wasm-plain');
    expect(await logitsAndState(plain, config, 128, 300)).toEqual(
      await logitsAndState(wasm, config, 128, 300),
    );
  });

  it('equals the plain reference: logits within 1e-4 of it', { timeout: 240_000 }, async () => {
    const reference = await tinyEngine('reference');
    const a = await logitsAndState(wasm, config, 128, 160);
    const b = await logitsAndState(reference, config, 128, 160);
    a.logits.forEach((row, i) => {
      row.forEach((x, j) => {
        expect(Math.abs(x - b.logits[i]![j]!)).toBeLessThan(1e-4);
      });
    });
  });
});
