import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { KvCache } from '../../src/cache/cache.ts';
import { distortions } from '../../src/cache/policies/adkvc.ts';
import { type HeadProfile, parseProfile } from '../../src/cache/profile.ts';
import { restoreCache } from '../../src/cache/restore.ts';
import { CorruptDataError } from '../../src/core/errors.ts';
import { DROP, TIERS, tierNamed } from '../../src/kernels/layout.ts';
import { EMBEDDED_MODEL } from '../../src/prepare/embedded-model.ts';
import { cacheDriver, SHAPE } from '../helpers/cache-driver.ts';

const HEADS = SHAPE.layers * SHAPE.kvHeads;
const even = (value: number): Float64Array => new Float64Array(HEADS).fill(value);

/** Head 2 (layer 1, kvHead 0) is a thousand times as sensitive as the others. */
const profile = (fingerprint = 'p'): HeadProfile => {
  const steep = (value: number) => even(value).map((x, head) => (head === 2 ? 1000 * x : x));
  return { fingerprint, keys: steep(1e-4), values: steep(1e-5), drop: steep(1e-3), needle: even(0) };
};

/** Mean tier id by head; dropped counts as 15. */
function meanTiers(cache: KvCache): number[] {
  return Array.from({ length: HEADS }, (_, head) => {
    let sum = 0;
    let tokens = 0;
    cache.spans.forEach((span, s) => {
      const tiers = new Uint8Array(span.tokens);
      const layer = Math.floor(head / SHAPE.kvHeads);
      cache.reader(cache.blocks[layer]![s]!).tiers(head % SHAPE.kvHeads, tiers, 0);
      for (const tier of tiers) sum += tier;
      tokens += span.tokens;
    });
    return sum / tokens;
  });
}

describe('adkvc under a head profile', () => {
  it('holds the sensitive head much more precisely than the others, at the same bytes', () => {
    const run = (p?: HeadProfile) => {
      const driver = cacheDriver({ policy: 'adkvc', ratio: 5 }, p ? { profile: p } : {});
      const cache = driver.create();
      driver.feedTo(cache, 1280);
      cache.finish();
      return cache;
    };
    const [with_, without] = [run(profile()), run()];
    const [a, b] = [meanTiers(with_), meanTiers(without)];
    expect(a[2]).toBeLessThan(b[2]! - 2);
    for (const head of [0, 1, 3]) expect(a[head]).toBeGreaterThan(b[head]!);
    expect(with_.report()).toMatchObject({ profile: 'p' });
    expect(without.report()).toMatchObject({ profile: 'none' });
    expect(with_.bytes / without.bytes).toBeGreaterThan(0.95);
    expect(with_.bytes / without.bytes).toBeLessThan(1.05);
  });

  it('plans without it when the configuration says so', () => {
    const driver = cacheDriver({ policy: 'adkvc', ratio: 5, useProfile: false }, { profile: profile() });
    expect(driver.create().report().profile).toBe('none');
  });

  it('a cache is not continued under another profile, nor without one', () => {
    const driver = cacheDriver({ policy: 'adkvc', ratio: 5 }, { profile: profile() });
    const cache = driver.create();
    driver.feedTo(cache, 300);
    const reader = {
      header: cache.header,
      hot: (layer: number) => cache.hot(layer),
      block: (layer: number, segment: number) => ({
        version: cache.blockVersion(layer, segment),
        bytes: cache.block(layer, segment),
      }),
      journal: [],
    };
    for (const other of [profile('q'), undefined])
      expect(() => restoreCache({ ...driver.context, profile: other }, reader)).toThrow(/head profile p/);
    expect(restoreCache(driver.context, reader).position).toBe(300);
  });

  it('harm rises from tier to tier for every head', () => {
    const tiers = [...['8,8', '4,4', '3,2', '2,2', '2,1'].map(tierNamed), DROP];
    for (const list of [...distortions(tiers, HEADS, profile()), ...distortions(tiers, 1, undefined)])
      for (let i = 1; i < list.length; i++) expect(list[i]).toBeGreaterThan(list[i - 1]!);
    expect(TIERS.length).toBeLessThan(DROP);
  });
});

describe('profile files', () => {
  const file = JSON.parse(readFileSync(join(import.meta.dirname, '../..', EMBEDDED_MODEL.profile), 'utf8'));
  const model = { layers: 30, kvHeads: 3 };

  it('the embedded model has one, measured on the very file', () => {
    const parsed = parseProfile(file, model, 'f');
    expect(file.source).toBe(EMBEDDED_MODEL.sha256);
    expect(parsed.keys).toHaveLength(90);
    // Sensitivities of heads differ by orders of magnitude: what makes the profile worth having.
    const sorted = [...parsed.keys].sort((a, b) => a - b);
    expect(sorted[81]! / sorted[9]!).toBeGreaterThan(10);
  });

  it.each([
    ['another format', { ...file, format: 'x' }],
    ['another version', { ...file, version: 2 }],
    ['too few heads', { ...file, keys: file.keys.slice(1) }],
    ['a negative number', { ...file, drop: [-1, ...file.drop.slice(1)] }],
    ['nothing', null],
  ])('refuses %s', (_, json) => {
    expect(() => parseProfile(json, model, 'f')).toThrow(CorruptDataError);
  });
});
