import { createHash } from 'node:crypto';
import { expect, test } from 'vitest';
import { type CacheConfig, type CacheView, DEFAULT_CACHE, FRESH } from '../../src/cache/policy.ts';
import type { HeadProfile } from '../../src/cache/profile.ts';
import { createPolicy, ONE_SHOT_ONLY, POLICIES } from '../../src/cache/registry.ts';
import type { ModelConfig } from '../../src/core/config.ts';
import { hash32, uniform01 } from '../../src/core/random.ts';
import { rowVersion } from '../../src/eval/rows.ts';
import { LAYOUT_VERSION } from '../../src/kernels/layout.ts';

const MODEL: ModelConfig = {
  ...{
    name: 'six heads',
    architecture: 'llama',
    layers: 3,
    hidden: 256,
    heads: 4,
    kvHeads: 2,
    headDim: 64,
    ffn: 512,
    vocab: 256,
  },
  ...{ contextLength: 2048, ropeTheta: 1e5, rmsEps: 1e-5, attentionScale: 0.125 },
};
const HEADS = MODEL.layers * MODEL.kvHeads;
const list = (of: number): Float64Array =>
  Float64Array.from({ length: HEADS }, (_, h) => 1e-4 * uniform01(of, h));
const PROFILE: HeadProfile = {
  fingerprint: 'test',
  // Dropping does more harm than two bits, as measured profiles say.
  ...{ keys: list(1), values: list(2), drop: list(3).map((x) => 8 * x), needle: list(4) },
};

/** Eight segments, the newest fresh, others held in several tiers; masses of a heavy tail. */
function view(): CacheView {
  const segments = Array.from({ length: 8 }, (_, index) => {
    const [start, end] = [index === 0 ? 4 : index * 128 - 16, (index + 1) * 128 - 16];
    const n = HEADS * (end - start);
    return {
      ...{ index, start, tokens: end - start },
      tiers: Uint8Array.from({ length: n }, (_, i) => (index === 7 ? FRESH : 2 + (hash32(5, index, i) % 3))),
      mass: Uint16Array.from(
        { length: n },
        (_, i) => hash32(6, index, i) >>> (20 + (hash32(7, index, i) % 12)),
      ),
    };
  });
  return {
    ...{ layers: MODEL.layers, kvHeads: MODEL.kvHeads, headDim: MODEL.headDim },
    ...{ position: 1024, segments, seed: 9 },
  };
}

const planOf = (config: CacheConfig, profile?: HeadProfile): string => {
  const hash = createHash('sha256');
  const budget = { recordBytes: (1024 * HEADS * MODEL.headDim * 4) / (config.ratio ?? 4) };
  for (const tiers of createPolicy(config, MODEL, profile).plan(view(), budget).tiers) hash.update(tiers);
  return hash.digest('hex').slice(0, 8);
};

/**
 * A row's key holds the configuration, not the constants that a policy completes it by: rows of other constants would be taken for finished ones. Whoever changes a plan raises
 * its policy's version (rows.ts) and writes down the new digests.
 */
test('rows of this version are of these plans', () => {
  const plans = Object.keys(POLICIES)
    .filter((policy) => !ONE_SHOT_ONLY.has(policy))
    .map((policy) => {
      const config = { ...DEFAULT_CACHE, policy, ratio: 4 };
      return [
        policy,
        rowVersion(policy),
        planOf(config, PROFILE),
        planOf(config),
        planOf({ ...config, ratio: 8 }, PROFILE),
      ].join(' ');
    });
  expect({ layout: LAYOUT_VERSION, plans }).toMatchInlineSnapshot(`
    {
      "layout": 2,
      "plans": [
        "adkvc 2 8e22ff2e ea224f07 8976f586",
        "adkvc-adapted 1 ed7fa535 ed7fa535 316d755d",
        "adkvc-evict 1 57eb6e94 57eb6e94 035a8fb5",
        "adkvc-fixed 1 e68abf27 e68abf27 e68abf27",
        "adkvc-quantize 2 08d64923 ea224f07 b6d7197e",
        "dynamickv 1 dbfcf4c8 dbfcf4c8 b25020e9",
        "full 1 a7c42a05 a7c42a05 a7c42a05",
        "h2o 1 f73bbdf9 f73bbdf9 2c6f49c1",
        "pyramidkv 1 c501245a c501245a e2f8f969",
        "random 1 57f18949 57f18949 eeee42cf",
        "snapkv 1 e148be49 e148be49 f37d20d4",
        "tova 1 68bf7bee 68bf7bee 6e5010cb",
        "uniform 1 30c12029 30c12029 9c9e3d03",
        "uniform-int4 1 5c893534 5c893534 5c893534",
        "uniform-int8 1 c548d90d c548d90d c548d90d",
        "window 1 4bfdf068 4bfdf068 b4b18ea1",
      ],
    }
  `);
});
