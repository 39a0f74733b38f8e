import { describe, expect, it } from 'vitest';
import type { WeightForm } from '../../src/kernels/kernels.ts';
import { packWeight, unpackWeight } from '../../src/kernels/weights.ts';
import type { GraphNode } from '../../src/runtime/graph.ts';
import { partData } from '../../src/runtime/low-bit.ts';
import { createOrtRunner } from '../../src/runtime/ort.ts';
import { ortWasmInNode } from '../../src/runtime/ort-node.ts';
import type { Stage } from '../../src/runtime/partition.ts';
import { stageModel } from '../../src/runtime/stage-model.ts';
import { largestDifference } from '../helpers/run-stages.ts';
import { encodeValues } from '../helpers/tiny-gguf.ts';

const runner = createOrtRunner({ wasm: ortWasmInNode });
const noise = (count: number, seed: number): Float32Array =>
  Float32Array.from({ length: count }, (_, i) => Math.sin((i + 1) * 12.9898 + seed * 78.233) + 0.25);

const stageOf = (op: string, inputs: string[], attributes: GraphNode['attributes'] = {}): Stage => ({
  kind: 'ort',
  nodes: [{ name: 'node', op, domain: '', inputs, outputs: ['y'], attributes }],
  inputs: inputs.filter((name) => name !== 'w'),
  outputs: ['y'],
  weights: ['w'],
});

/** A weight in a form of the kernels, and the f32 values it stands for. */
function weight(form: 'q4_1' | 'q8_0', n: number, k: number) {
  const type = form === 'q4_1' ? 'Q4_1' : 'Q8_0';
  const bytes = packWeight(form, { type, data: encodeValues(type, noise(n * k, n)), n, k });
  return { bytes, values: unpackWeight(form, bytes, n, k) };
}

async function run(
  stage: Stage,
  form: WeightForm,
  shape: number[],
  data: Parameters<typeof runner.load>[1],
  input: Parameters<Awaited<ReturnType<typeof runner.load>>['run']>[0],
) {
  const loaded = await runner.load(
    stageModel(stage, () => shape, { formOf: () => form }),
    data,
  );
  const { y } = await loaded.run(input);
  await loaded.dispose();
  return y!;
}

describe("onnxruntime's low-bit operators on the kernels' weight forms", () => {
  it.each([
    ['q4_1', 1, 64, 96],
    ['q4_1', 8, 30, 32],
    ['q4_1', 128, 192, 576],
    ['q8_0', 1, 64, 96],
    ['q8_0', 8, 30, 32],
    ['q8_0', 128, 192, 576],
  ] as const)(
    '%s, %d rows, [%d, %d]: within 1e-4 of the product with the decoded weight, relative to its size',
    async (form, rows, n, k) => {
      const { bytes, values } = weight(form, n, k);
      const input = { x: { dims: [rows, k], data: noise(rows * k, 3) } };
      const stage = stageOf('MatMul', ['x', 'w']);
      const dense = await run(stage, 'f32', [n, k], { w: values }, input);
      const lowBit = await run(stage, form, [n, k], partData('w', form, bytes, n, k), input);
      const size = Math.sqrt(dense.reduce((sum, v) => sum + v * v, 0) / dense.length);
      expect(largestDifference(lowBit, dense) / size).toBeLessThan(1e-4);
    },
  );

  it('q8_0 rows are looked up exactly', async () => {
    const { bytes, values } = weight('q8_0', 40, 64);
    const input = { ids: { dims: [3], data: BigInt64Array.of(39n, 0n, 7n) } };
    const stage = stageOf('Gather', ['w', 'ids'], { axis: 0 });
    const dense = await run(stage, 'f32', [40, 64], { w: values }, input);
    expect(await run(stage, 'q8_0', [40, 64], partData('w', 'q8_0', bytes, 40, 64), input)).toEqual(dense);
    expect(dense.subarray(64, 128)).toEqual(values.subarray(0, 64));
  });

  it('holds q4_1 in a fifth of the bytes of f32', () => {
    const { bytes, values } = weight('q4_1', 192, 576);
    const parts = Object.values(partData('w', 'q4_1', bytes, 192, 576));
    expect(parts.reduce((sum, part) => sum + part.byteLength, 0) / values.byteLength).toBeLessThan(0.2);
  });
});
