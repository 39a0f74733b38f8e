import { mkdtempSync, readdirSync, rmSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import project from '../../package.json' with { type: 'json' };
import { decodeSource } from '../../src/kernels/weights.ts';
import { writeBundle } from '../../src/prepare/bundle.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { type Activation, llamaGraph } from '../../src/prepare/llama-graph.ts';
import { ACTIVATIONS } from '../../src/prepare/onnx-decoder.ts';
import { openModel } from '../../src/prepare/open-model.ts';
import type { ModelSource } from '../../src/prepare/source.ts';
import { verifyBundle } from '../../src/prepare/verify.ts';
import { createOrtRunner } from '../../src/runtime/ort.ts';
import { ortWasmInNode } from '../../src/runtime/ort-node.ts';
import { stageModel } from '../../src/runtime/stage-model.ts';
import { EXACT_FULL, maxDifference, score } from '../helpers/golden.ts';
import { interpret, type Value } from '../helpers/graph-interpreter.ts';
import { preparedEngines } from '../helpers/prepared-engine.ts';
import { writeTinyGguf } from '../helpers/tiny-gguf.ts';

const IDS = [5, 17, 299, 2, 41, 5];
const RELU: Activation = { op: 'Relu', domain: '', attributes: {} };
const withActivation = (activation: Activation) => (source: ModelSource) => ({ ...source, activation });

const engines = preparedEngines();
const folder = mkdtempSync(join(tmpdir(), 'adkvc-activation-'));
const gguf = join(folder, 'tiny.gguf');
beforeAll(() => writeTinyGguf(gguf, { matrix: 'F32', embedding: 'F32' }));
afterAll(() => {
  engines.dispose();
  rmSync(folder, { recursive: true, force: true });
});

/** Logits of the last position in float64. */
async function expected(source: ModelSource): Promise<Float64Array> {
  const weights: Record<string, Value> = {};
  for (const tensor of source.tensors) {
    const [n, k] = tensor.shape.length === 1 ? [1, tensor.shape[0]!] : [tensor.shape[0]!, tensor.shape[1]!];
    const decoded = new Float32Array(n * k);
    decodeSource({ type: tensor.type, data: await tensor.read(), n, k }, decoded);
    weights[tensor.name] = { dims: tensor.shape, data: Float64Array.from(decoded) };
  }
  const graph = llamaGraph(source.config, source.tied, () => 'f32', source.activation);
  const values = new Map<string, Value>([
    ['input_ids', { dims: [IDS.length], data: Float64Array.from(IDS) }],
  ]);
  interpret(graph.nodes, values, { weights, ropeTheta: source.config.ropeTheta });
  return values.get('logits')!.data.slice(-source.config.vocab);
}

describe('an activation that no kernel has', () => {
  it('is run by onnxruntime from the stages of the bundle: logits within 1e-5 of float64', async () => {
    const runner = createOrtRunner({ wasm: ortWasmInNode });
    let files: string[] = [];
    const engine = await engines.prepare(gguf, {
      maxBytes: 64e6,
      runner,
      change: withActivation(RELU),
      prepared: (bundle) => {
        files = readdirSync(bundle).filter((file) => file.startsWith('stage-'));
      },
    });
    expect(files).toHaveLength(engine.model.layers);
    expect(engine.ledger().ortHeap).toBeGreaterThan(8e6);
    expect(engine.numerics).toBe(`reference/3+onnxruntime-web/${project.dependencies['onnxruntime-web']}`);
    const { logits } = await score(engine, EXACT_FULL, IDS, [IDS.length - 1]);
    const source = await openModel(gguf);
    const relu = await expected(withActivation(RELU)(source));
    const silu = await expected(source);
    await source.close();
    expect(maxDifference(logits.get(IDS.length - 1)!, relu)).toBeLessThan(1e-5);
    // The activation does change the answer, or the comparison would say nothing.
    expect(maxDifference(silu, relu)).toBeGreaterThan(1e-3);
  });

  it('is not needed for SiLU: onnxruntime is never asked for, and the bundle holds no stages', async () => {
    const engine = await engines.prepare(gguf, {
      maxBytes: 64e6,
      runner: {
        load: () => Promise.reject(new Error('onnxruntime must not be used')),
        heapBytes: () => 0,
      },
      prepared: (bundle) => expect(readdirSync(bundle).join()).not.toMatch(/stage-/),
    });
    expect(engine.ledger().ortHeap).toBe(0);
    expect(engine.numerics).toBe('reference/3');
    const { logits } = await score(engine, EXACT_FULL, IDS, [IDS.length - 1]);
    const source = await openModel(gguf);
    expect(maxDifference(logits.get(IDS.length - 1)!, await expected(source))).toBeLessThan(1e-5);
    await source.close();
  });

  it('is refused by name, when prepared, if nobody can run it; nothing is left behind', async () => {
    const source = await openModel(gguf);
    const out = join(folder, 'refused');
    const unknown = withActivation({ op: 'SnakeBeta', domain: 'my.own', attributes: {} })(source);
    await expect(writeBundle(unknown, out, { form: 'exact' })).rejects.toMatchObject({
      code: 'unsupported_model',
      message: expect.stringMatching(/layers\.0\/activation has operator my\.own::SnakeBeta/),
    });
    await source.close();
    expect(readdirSync(folder)).toEqual(['tiny.gguf']);
  });

  it.each([...ACTIVATIONS, 'Sigmoid'])(
    '%s gives a row the same bits alone and among 128',
    async (qualified) => {
      const [domain, op] = qualified.includes('::') ? qualified.split('::') : ['', qualified];
      const node = { name: 'n', op: op!, domain: domain!, inputs: ['x'], outputs: ['y'], attributes: {} };
      const stage = { kind: 'ort', nodes: [node], inputs: ['x'], outputs: ['y'], weights: [] } as const;
      const loaded = await createOrtRunner({ wasm: ortWasmInNode }).load(stageModel(stage, () => []));
      // No multiple of a vector's four lanes, so that tails fall into different places.
      const [rows, width] = [128, 30];
      const x = Float32Array.from({ length: rows * width }, (_, i) => Math.sin(i * 1.37) * 4);
      const { y } = await loaded.run({ x: { dims: [rows, width], data: x } });
      for (const count of [1, 17])
        for (let row = 0; row + count <= rows; row += count) {
          const part = x.slice(row * width, (row + count) * width);
          const alone = await loaded.run({ x: { dims: [count, width], data: part } });
          expect(alone.y).toEqual(y!.slice(row * width, (row + count) * width));
        }
      await loaded.dispose();
    },
  );

  it('damage to a stage is seen by verifying, by loading and by preparing again', async () => {
    const source = withActivation(RELU)(await openModel(gguf));
    const out = join(folder, 'damaged');
    await writeBundle(source, out, { form: 'exact' });
    await expect(verifyBundle(folderSource(out))).resolves.toMatchObject({ stages: expect.any(Array) });
    truncateSync(join(out, 'stage-0.onnx'), 20);
    await expect(verifyBundle(folderSource(out))).rejects.toMatchObject({ code: 'corrupt_data' });
    await expect(
      engines.prepare(gguf, {
        maxBytes: 64e6,
        change: withActivation(RELU),
        prepared: (bundle) => truncateSync(join(bundle, 'stage-1.onnx'), 20),
      }),
    ).rejects.toMatchObject({ code: 'corrupt_data', message: expect.stringMatching(/stage-1\.onnx/) });
    expect(await writeBundle(source, out, { form: 'exact' })).toMatchObject({ written: true });
    await source.close();
  });
});
