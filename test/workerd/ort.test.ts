import wasm from 'onnxruntime-web/ort-wasm-simd-threaded.wasm';
import { describe, expect, it } from 'vitest';
import { createOrtRunner } from '../../src/runtime/ort.ts';
import { claimAttentionOnly, claimDecoder, partition } from '../../src/runtime/partition.ts';
import { interpret } from '../helpers/graph-interpreter.ts';
import { largestDifference, runStages } from '../helpers/run-stages.ts';
import { tinyDecoder } from '../helpers/tiny-decoder.ts';
import encoded from './fixtures/stages.json' with { type: 'json' };

const IDS = [3, 1, 4, 1, 5, 39, 0];
/** Lowered in Node, where test/runtime/ort.test.ts writes and checks them: as in a bundle, a Worker reads models and makes none. */
const decode = (models: string[]): Uint8Array[] =>
  models.map((model) => Uint8Array.from(atob(model), (c) => c.charCodeAt(0)));

describe('onnxruntime-web inside workerd', () => {
  it('is not instantiated for a decoder that the kernels claim', async () => {
    const decoder = tinyDecoder();
    let asked = 0;
    const runner = createOrtRunner({
      wasm: () => {
        asked++;
        return wasm;
      },
    });
    const stages = partition(decoder.graph, claimDecoder);
    const values = await runStages(decoder, stages, [], IDS, runner);
    expect(values.get('logits')!.dims).toEqual([IDS.length, 40]);
    expect([asked, runner.heapBytes()]).toEqual([0, 0]);
  });

  it.each([
    [
      'runs an operator that nobody claims, between stages of kernels',
      tinyDecoder('Softplus'),
      claimDecoder,
      encoded.softplus,
    ],
    ['runs everything but attention', tinyDecoder(), claimAttentionOnly, encoded.attentionOnly],
  ] as const)('%s: logits within 1e-5 of float64', async (_, decoder, claims, models) => {
    const stages = partition(decoder.graph, claims);
    expect(stages).toHaveLength(5);
    const runner = createOrtRunner({ wasm: () => wasm });
    const logits = (await runStages(decoder, stages, decode(models), IDS, runner)).get('logits')!;

    const values = new Map([['input_ids', { dims: [IDS.length], data: Float64Array.from(IDS) }]]);
    interpret(decoder.graph.nodes, values, decoder);
    expect(largestDifference(logits.data, values.get('logits')!.data)).toBeLessThan(1e-5);
    // An isolate has 128 MB: the heap is what the ledger counts for it.
    expect(runner.heapBytes()).toBe(16 * 2 ** 20);
  });
});
