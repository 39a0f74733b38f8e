import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { ModelEngine } from '../../src/engine/engine.ts';
import type { WeightForm } from '../../src/kernels/kernels.ts';
import { selectKernels } from '../../src/kernels/select.ts';
import { claimAttentionOnly } from '../../src/runtime/partition.ts';
import { stageModels } from '../../src/runtime/stage-model.ts';
import { EXACT_FULL, golden, maxDifference, readNpy, score } from '../helpers/golden.ts';
import { logitGoldens } from '../helpers/golden-suites.ts';
import { wasmModules } from '../helpers/kernels.ts';
import { preparedEngines } from '../helpers/prepared-engine.ts';
import { describeShared, sharedPath } from '../helpers/shared.ts';

const engines = preparedEngines();
afterAll(engines.dispose);

/** A model of which the kernels run the attention alone; onnxruntime-web runs all the rest, from f32 weights. */
const attentionOnly = (path: string, maxBytes: number, lowBit = false): Promise<ModelEngine> =>
  engines.prepare(path, {
    maxBytes,
    lowBit,
    kernels: selectKernels({ modules: wasmModules, maxBytes }).kernels,
    claims: claimAttentionOnly,
    models: (stages, { config, manifest }) => {
      expect(stages.filter((s) => s.kind === 'kernels')).toHaveLength(config.layers);
      expect(stages.filter((s) => s.kind === 'ort')).toHaveLength(config.layers + 1);
      const formOf = (name: string): WeightForm => manifest.tensors[name]!.form;
      return stageModels(stages, (name) => manifest.tensors[name]!.shape, lowBit ? { formOf } : {});
    },
  });

describeShared('attention alone claimed: stories260K', () => {
  it.each(['fp32-head8', 'transformersjs'])(
    '%s: every logit within 1e-4 of the float golden',
    async (name) => {
      const engine = await attentionOnly(sharedPath('models', 'stories260K-onnx', name)!, 64e6);
      for (const { ids, logits_file } of golden('stories260K.json').prompts) {
        const expected = readNpy(logits_file);
        // One prompt has the logits of its last position only.
        const first = ids.length - expected.length / 512;
        const wanted: number[] = [...ids.keys()].slice(first);
        const { logits } = await score(engine, EXACT_FULL, ids, wanted);
        const apart = wanted.map((i) =>
          maxDifference(logits.get(i)!, expected.subarray((i - first) * 512, (i - first + 1) * 512)),
        );
        expect(Math.max(...apart), logits_file).toBeLessThan(1e-4);
      }
    },
  );
});

/** Decoded to f32, and in the codes that onnxruntime's low-bit operators read: the same values. */
describeShared('attention alone claimed: SmolLM2-135M-Instruct', () => {
  for (const [weights, lowBit, prompts] of [
    ['f32 weights', false, ['plain-33', 'plain-129']],
    ['low-bit weights', true, ['chat-short']],
  ] as const)
    describe(weights, () => {
      let engine: ModelEngine;
      beforeAll(async () => {
        engine = await attentionOnly(sharedPath('models', 'SmolLM2-135M-Instruct.Q4_1.gguf')!, 400e6, lowBit);
      }, 120_000);
      logitGoldens(() => engine, prompts, 120_000);
    });
});
