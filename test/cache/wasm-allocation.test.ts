import { expect, it } from 'vitest';
import { allocate } from '../../src/cache/allocate.ts';
import { type CacheView, FRESH } from '../../src/cache/policy.ts';
import { hash32, uniform01 } from '../../src/core/random.ts';
import { cellBytes, DROP, tierNamed } from '../../src/kernels/layout.ts';
import { PlanInstances } from '../../src/kernels/wasm-plan.ts';
import { wasmModules } from '../helpers/kernels.ts';

const LADDERS = [
  '8,8 8,4 4,4 4,2 3,2 2,1 drop',
  '8,8 8,4 4,4 4,2 3,2 2,2 2,1 drop',
  // Tokens that are held more coarsely than the last one stay so.
  '8,8 4,4 2,2',
  'q8_0 q4_0 drop',
  '4,4',
];
const LENGTHS = [[128], [60, 128, 128, 1, 17], [108, 128, 128, 128, 128, 128, 127]];

/** Relevance of a heavy tail, some of it none; every other segment holds tokens of all tiers, of which some are gone. */
function scene(seed: number) {
  const tiers = LADDERS[seed % LADDERS.length]!.split(' ').map(tierNamed);
  const [layers, kvHeads] = [2 + (seed % 3), 1 + (seed % 4)];
  const heads = layers * kvHeads;
  const held = [...tiers, DROP];
  let start = 4;
  const segments = LENGTHS[seed % LENGTHS.length]!.map((tokens, index) => {
    start += tokens;
    return {
      ...{ index, start: start - tokens, tokens, mass: undefined },
      tiers: Uint8Array.from({ length: heads * tokens }, (_, i) =>
        (index + seed) % 2 === 0 ? FRESH : held[hash32(seed, index, i) % held.length]!,
      ),
    };
  });
  const view: CacheView = { layers, kvHeads, headDim: 64, position: start, segments, seed: 0 };
  const relevance = (line: Float32Array, head: number): void => {
    for (let i = 0; i < line.length; i++) {
      const x = uniform01(seed, head, i);
      line[i] = x < 0.05 ? 0 : Math.exp((1 + (seed % 40)) * (x - 0.5));
    }
    // Many alike: the first of them are taken.
    if (head % 3 === 2) line.fill(0.25);
  };
  const distortions = Array.from({ length: heads }, (_, h) =>
    tiers.map((_, i) => 1e-4 * 4 ** i * (0.3 + uniform01(seed, h, i))).sort((a, b) => a - b),
  );
  return {
    ...{ view, relevance, mass: seed % 2 === 0, distortions: () => distortions },
    options: tiers.map((tier) => ({ tier, bytes: cellBytes(tier, 64, true) })),
  };
}

it.each(['relaxed', 'plain'] as const)('makes the plans of TypeScript, byte for byte (%s)', (variant) => {
  const source = wasmModules[variant];
  const instances = new PlanInstances(typeof source === 'function' ? source() : source);
  for (let seed = 0; seed < 60; seed++) {
    const input = scene(seed);
    const tokens = input.view.segments.reduce((sum, s) => sum + s.tiers.length, 0);
    for (const budgetBytes of [0, tokens * 24, tokens * 48, tokens * 80, Number.POSITIVE_INFINITY]) {
      const asked = { ...input, budgetBytes };
      expect(allocate(asked, instances), `seed ${seed}, ${budgetBytes} bytes`).toEqual(allocate(asked));
    }
  }
});

it('plans of several conversations are made in turn, each in an instance of its own', () => {
  const source = wasmModules.plain;
  const instances = new PlanInstances(typeof source === 'function' ? source() : source);
  const first = instances.take();
  const second = instances.take();
  expect(second.memory).not.toBe(first.memory);
  instances.give(first);
  expect(instances.take()).toBe(first);
});
