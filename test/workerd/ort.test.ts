import wasm from 'onnxruntime-web/ort-wasm-simd-threaded.wasm';
import { describe, expect, it } from 'vitest';
import { createWasmKernels } from '../../src/kernels/wasm.ts';
import { createOrtRunner } from '../../src/runtime/ort.ts';
import { claimAttentionOnly, claimDecoder, partition } from '../../src/runtime/partition.ts';
import plain from '../../wasm/build/adkvc-plain.wasm';
import { interpret, type Value } from '../helpers/graph-interpreter.ts';
import { bundleLogits, memoryBundle } from '../helpers/memory-bundle.ts';
import { largestDifference } from '../helpers/run-stages.ts';
import { type TinyDecoder, tinyDecoder } from '../helpers/tiny-decoder.ts';
import encoded from './fixtures/stages.json' with { type: 'json' };

const IDS = [3, 1, 4, 1, 5, 39, 0];
/** Lowered in Node, where test/runtime/ort.test.ts writes and checks them: as in a bundle, a Worker reads models and makes none. */
const decode = (models: string[]): Uint8Array[] =>
  models.map((model) => Uint8Array.from(atob(model), (c) => c.charCodeAt(0)));
const expected = (decoder: TinyDecoder): Float64Array => {
  const values = new Map<string, Value>([
    ['input_ids', { dims: [IDS.length], data: Float64Array.from(IDS) }],
  ]);
  interpret(decoder.graph.nodes, values, decoder);
  return values.get('logits')!.data;
};

describe('onnxruntime-web inside workerd, beside the WASM kernels', () => {
  it('is not instantiated for a decoder that the kernels claim', async () => {
    const decoder = tinyDecoder();
    let asked = 0;
    const runner = createOrtRunner({
      wasm: () => {
        asked++;
        return wasm;
      },
    });
    const kernels = createWasmKernels({ module: plain, variant: 'plain', maxBytes: 32e6 });
    const logits = await bundleLogits(memoryBundle(decoder, []), kernels, claimDecoder, runner, IDS);
    expect(largestDifference(logits, expected(decoder))).toBeLessThan(1e-5);
    expect([asked, runner.heapBytes()]).toEqual([0, 0]);
  });

  it.each([
    [
      'runs an operator that nobody claims, between stages of kernels',
      tinyDecoder('Softplus'),
      claimDecoder,
      encoded.softplus,
      ['kernels', 'ort', 'kernels', 'ort', 'kernels'],
    ],
    [
      'runs everything but attention',
      tinyDecoder(),
      claimAttentionOnly,
      encoded.attentionOnly,
      ['ort', 'kernels', 'ort', 'kernels', 'ort'],
    ],
  ] as const)('%s: logits within 1e-5 of float64', async (_, decoder, claims, models, kinds) => {
    expect(partition(decoder.graph, claims).map((stage) => stage.kind)).toEqual(kinds);
    const runner = createOrtRunner({ wasm: () => wasm });
    const kernels = createWasmKernels({ module: plain, variant: 'plain', maxBytes: 32e6 });
    const source = memoryBundle(decoder, decode([...models]));
    const logits = await bundleLogits(source, kernels, claims, runner, IDS);
    expect(largestDifference(logits, expected(decoder))).toBeLessThan(1e-5);
    // An isolate has 128 MB: this is what the ledger counts for the heap.
    expect(runner.heapBytes()).toBe(16 * 2 ** 20);
  });
});
