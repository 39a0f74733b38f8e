import { describe, expect, it } from 'vitest';
import { createOrtRunner, type OrtRunner } from '../../src/runtime/ort.ts';
import { ortWasmInNode } from '../../src/runtime/ort-node.ts';
import {
  claimAttentionOnly,
  claimDecoder,
  ORT_OPERATORS,
  partition,
  type Stage,
} from '../../src/runtime/partition.ts';
import { stageModel, stageModels } from '../../src/runtime/stage-model.ts';
import { interpret, type Value } from '../helpers/graph-interpreter.ts';
import { largestDifference, runStages } from '../helpers/run-stages.ts';
import { tinyDecoder } from '../helpers/tiny-decoder.ts';

const IDS = [3, 1, 4, 1, 5, 39, 0];
const logitsOf = (decoder: ReturnType<typeof tinyDecoder>): Value => {
  const values = new Map([['input_ids', { dims: [IDS.length], data: Float64Array.from(IDS) }]]);
  interpret(decoder.graph.nodes, values, decoder);
  return values.get('logits')!;
};
const refused: OrtRunner = createOrtRunner({
  wasm: () => {
    throw new Error('onnxruntime must not be instantiated');
  },
});

describe('onnxruntime-web stages in Node', () => {
  it('is not instantiated for a decoder that the kernels claim', async () => {
    const decoder = tinyDecoder();
    const values = await runStages(decoder, partition(decoder.graph, claimDecoder), [], IDS, refused);
    expect(values.get('logits')!.dims).toEqual([IDS.length, 40]);
    expect(refused.heapBytes()).toBe(0);
  });

  it('takes its module, and its heap, at the first load only; a failed start can be repeated', async () => {
    const [stage] = partition(tinyDecoder().graph, claimAttentionOnly);
    const model = stageModel(stage!, tinyDecoder().shapeOf);
    await expect(refused.load(model)).rejects.toThrow('must not be instantiated');
    const runner = createOrtRunner({ wasm: ortWasmInNode });
    expect(runner.heapBytes()).toBe(0);
    const instantiate = WebAssembly.instantiate;
    await (await runner.load(model, tinyDecoder().f32(stage!.weights))).dispose();
    expect(WebAssembly.instantiate).toBe(instantiate);
    expect(runner.heapBytes()).toBeGreaterThan(8e6);
    expect(runner.heapBytes()).toBeLessThan(20e6);
  });

  it.each([
    ['an operator that nobody claims', tinyDecoder('Softplus'), claimDecoder, 5],
    ['attention alone claimed', tinyDecoder(), claimAttentionOnly, 5],
  ] as const)('%s: logits within 1e-5 of float64', async (_, decoder, claims, count) => {
    const stages = partition(decoder.graph, claims);
    expect(stages).toHaveLength(count);
    const values = await runStages(
      decoder,
      stages,
      stageModels(stages, decoder.shapeOf),
      IDS,
      createOrtRunner({ wasm: ortWasmInNode }),
    );
    expect(largestDifference(values.get('logits')!.data, logitsOf(decoder).data)).toBeLessThan(1e-5);
  });

  it('refuses a missing input, a missing weight, a broken model and a stage disposed of, by name', async () => {
    const decoder = tinyDecoder();
    const [stage] = partition(decoder.graph, claimAttentionOnly);
    const model = stageModel(stage!, decoder.shapeOf);
    const runner = createOrtRunner({ wasm: ortWasmInNode });
    const loaded = await runner.load(model, decoder.f32(stage!.weights));
    await expect(loaded.run({})).rejects.toMatchObject({ code: 'invalid_input', param: 'input_ids' });
    await loaded.dispose();
    await loaded.dispose();
    await expect(loaded.run({})).rejects.toThrow(/disposed/);
    const { embed_tokens: _, ...rest } = decoder.f32(stage!.weights);
    await expect(runner.load(model, rest)).rejects.toThrow(/embed_tokens/);
    await expect(runner.load(model.subarray(0, 100))).rejects.toMatchObject({ code: 'unsupported_model' });
  });

  it('loads stages that are asked for at once, each with its own weights', async () => {
    const runner = createOrtRunner({ wasm: ortWasmInNode });
    const stage = single('Add', ['x', 'w']);
    const model = stageModel(stage, () => [2]);
    const loaded = await Promise.all(
      [1, 10, 100].map((w) => runner.load(model, { w: Float32Array.of(w, w) })),
    );
    const sums = await Promise.all(
      loaded.map(async (l) => (await l.run({ x: { dims: [1, 2], data: Float32Array.of(1, 2) } })).y![1]),
    );
    expect(sums).toEqual([3, 12, 102]);
    for (const l of loaded) await l.dispose();
  });

  it('lowers to the same bytes every time: those that the test in workerd loads', async () => {
    const encoded = [tinyDecoder('Softplus'), tinyDecoder()].map(({ graph, shapeOf }, i) =>
      stageModels(partition(graph, i === 0 ? claimDecoder : claimAttentionOnly), shapeOf).map((model) =>
        Buffer.from(model).toString('base64'),
      ),
    );
    const json = `${JSON.stringify({ softplus: encoded[0], attentionOnly: encoded[1] }, null, 2)}\n`;
    await expect(json).toMatchFileSnapshot('../workerd/fixtures/stages.json');
  });
});

const single = (op: string, inputs: string[], attributes: Record<string, number> = {}): Stage => {
  const [domain, name] = op.includes('::') ? (op.split('::') as [string, string]) : ['', op];
  const node = { name: op, op: name, domain, inputs, outputs: ['y'], attributes };
  return {
    kind: 'ort',
    nodes: [node],
    inputs: inputs.filter((i) => i === 'x'),
    outputs: ['y'],
    weights: inputs.filter((i) => i !== 'x'),
  };
};

describe('every operator that a stage may contain runs on the WASM provider', () => {
  const runner = createOrtRunner({ wasm: ortWasmInNode });
  const second = new Set([
    'MatMul',
    'SimplifiedLayerNormalization',
    'Add',
    'Mul',
    'com.microsoft::MatMulNBits',
  ]);
  for (const op of [
    'Sub',
    'Div',
    'Pow',
    'Min',
    'Max',
    'PRelu',
    'com.microsoft::BiasGelu',
    'LayerNormalization',
  ])
    second.add(op);
  it.each([...ORT_OPERATORS].filter((op) => op !== 'Gather'))('%s', async (op) => {
    const stage = single(op, second.has(op) ? ['x', 'w'] : ['x']);
    const matrix = op.includes('MatMul');
    const shape = matrix ? [4, 4] : [4];
    const model = stageModel(stage, () => shape);
    const weights: Record<string, Float32Array> = second.has(op)
      ? { w: new Float32Array(matrix ? 16 : 4).fill(2) }
      : {};
    const loaded = await runner.load(model, weights);
    const { y } = await loaded.run({
      x: { dims: [2, 4], data: Float32Array.of(0.5, 1, 2, 3, 0.25, 1, 1, 4) },
    });
    expect(y).toHaveLength(8);
    expect([...y!].every(Number.isFinite)).toBe(true);
    await loaded.dispose();
  });
});
