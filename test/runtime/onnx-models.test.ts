import { afterAll, expect, it } from 'vitest';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { selectKernels } from '../../src/kernels/select.ts';
import { EXACT_FULL, golden } from '../helpers/golden.ts';
import { wasmModules } from '../helpers/kernels.ts';
import { preparedEngines } from '../helpers/prepared-engine.ts';
import { describeShared, sharedPath } from '../helpers/shared.ts';

const engines = preparedEngines();
afterAll(engines.dispose);

interface Expected {
  prompt: string;
  greedy_ids: number[];
  margin: number[];
}

/** The tokens of largest logit, one by one. */
async function greedy(engine: ModelEngine, prompt: readonly number[], count: number): Promise<number[]> {
  const cache = engine.createCache(EXACT_FULL);
  const ids: number[] = [];
  for (let next = prompt; ids.length < count; next = ids.slice(-1)) {
    const logits = await engine.feed(cache, next, 'last');
    ids.push(logits.indexOf(Math.max(...logits)));
  }
  cache.dispose();
  return ids;
}

/** Graphs that onnxruntime computes in float32 from the stored values. */
const GRAPHS = [
  'fp32/model.onnx',
  'int4-asym-f32embed/model.onnx',
  'int8-qkv-unfused/model.onnx',
  'transformersjs/onnx/model.onnx',
  'transformersjs/onnx/model_q4.onnx',
];

describeShared('prepared from ONNX exports of stories260K', () => {
  it.each(GRAPHS)(
    '%s: the same greedy tokens as onnxruntime, up to the first margin below 1e-3',
    async (graph) => {
      const engine = await engines.prepare(sharedPath('models', 'stories260K-onnx', graph)!, {
        maxBytes: 64e6,
        kernels: selectKernels({ modules: wasmModules, maxBytes: 64e6 }).kernels,
      });
      const prompts: { name: string; ids: number[] }[] = golden('stories260K.json').prompts;
      const graphs: { graph: string; expected: Expected[] }[] = golden('stories260K-onnx.json').graphs;
      for (const { prompt, greedy_ids, margin } of graphs.find((g) => g.graph === graph)!.expected) {
        const near = margin.findIndex((lead) => lead < 1e-3);
        const count = near === -1 ? greedy_ids.length : near;
        expect(count, prompt).toBeGreaterThan(prompt === 'ctx512' ? -1 : 8);
        const { ids } = prompts.find((p) => p.name === prompt)!;
        expect(await greedy(engine, ids, count), prompt).toEqual(greedy_ids.slice(0, count));
      }
    },
  );
});
