import { expect, it } from 'vitest';
import { uniform01 } from '../../src/core/random.ts';
import { topK } from '../../src/engine/sampler.ts';
import { CommandStream } from '../../src/kernels/webgpu-stream.ts';
import { GpuTop } from '../../src/runtime/webgpu/top.ts';
import { shaders, testDevice, uploaded } from '../helpers/webgpu.ts';

const device = await testDevice();

/** Values of few kinds, so that many are equal; zeros of both signs, infinities. */
const row = (count: number, seed: number): Float32Array =>
  Float32Array.from({ length: count }, (_, i) => {
    const x = Math.floor(uniform01(seed, i) * 40) - 30;
    if (x === 0) return i % 2 === 0 ? 0 : -0;
    return x === -30 ? Number.NEGATIVE_INFINITY : x / 4;
  });

it.each([
  [7, 3, [1, 7]],
  [2049, 2, [1, 40]],
  [49_152, 2, [1, 64]],
])(
  'of %i values in %i rows: the largest, best first, equal ones by the lowest id',
  async (count, rows, asked) => {
    const stride = Math.ceil(count / 4) * 4;
    const all = Array.from({ length: rows }, (_, r) => row(count, r));
    const bytes = new Float32Array(8 + rows * stride);
    all.forEach((values, r) => {
      bytes.set(values, 8 + r * stride);
    });
    const values = uploaded(device, new Uint8Array(bytes.buffer));
    const stream = new CommandStream(device);
    const top = new GpuTop({ stream, shaders: shaders(), values, at: 8, stride, count, rows });
    expect(top.most).toBe(Math.min(64, count));
    for (const most of asked) {
      top.record(rows, most);
      const found = await stream.read(
        all.map((_, r) => ({ buffer: top.pairs, at: top.at + r * top.stride, bytes: most * 8 })),
      );
      all.forEach((values, r) => {
        const pairs = new Uint32Array(found[r]!.buffer, found[r]!.byteOffset, most * 2);
        const expected = topK(values, most);
        expect([...pairs].filter((_, i) => i % 2 === 1)).toEqual(expected.map(({ id }) => id));
        const logits = new Float32Array(pairs.slice().buffer).filter((_, i) => i % 2 === 0);
        // Both zeros are the same to whoever draws.
        expect([...logits].map((x) => x + 0)).toEqual(expected.map(({ logit }) => logit + 0));
      });
    }
  },
);
