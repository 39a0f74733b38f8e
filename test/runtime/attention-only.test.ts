import { afterAll, beforeAll, expect, it } from 'vitest';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { claimAttentionOnly } from '../../src/runtime/partition.ts';
import { stageModels } from '../../src/runtime/stage-model.ts';
import { EXACT_FULL, golden, maxDifference, readNpy, score } from '../helpers/golden.ts';
import { logitGoldens } from '../helpers/golden-suites.ts';
import { preparedEngines } from '../helpers/prepared-engine.ts';
import { describeShared, sharedPath } from '../helpers/shared.ts';

const engines = preparedEngines();
afterAll(engines.dispose);

/** A model of which the kernels run the attention alone; onnxruntime-web runs all the rest, from f32 weights. */
const attentionOnly = (path: string, maxBytes: number): Promise<ModelEngine> =>
  engines.prepare(path, {
    maxBytes,
    claims: claimAttentionOnly,
    models: (stages, { config, manifest }) => {
      expect(stages.filter((s) => s.kind === 'kernels')).toHaveLength(config.layers);
      expect(stages.filter((s) => s.kind === 'ort')).toHaveLength(config.layers + 1);
      return stageModels(stages, (name) => manifest.tensors[name]!.shape);
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

describeShared('attention alone claimed: SmolLM2-135M-Instruct', () => {
  let engine: ModelEngine;
  beforeAll(async () => {
    engine = await attentionOnly(sharedPath('models', 'SmolLM2-135M-Instruct.Q4_1.gguf')!, 400e6);
  }, 120_000);
  logitGoldens(() => engine, ['plain-1', 'plain-33', 'plain-129'], 120_000);
});
