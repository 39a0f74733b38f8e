import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { loadEngine } from '../../src/engine/load.ts';
import { createReferenceKernels } from '../../src/kernels/reference.ts';
import { writeBundle } from '../../src/prepare/bundle.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { openModel } from '../../src/prepare/open-model.ts';
import { loadForeignStages } from '../../src/runtime/foreign.ts';
import { createOrtRunner } from '../../src/runtime/ort.ts';
import { ortWasmInNode } from '../../src/runtime/ort-node.ts';
import { claimAttentionOnly } from '../../src/runtime/partition.ts';
import { stageModels } from '../../src/runtime/stage-model.ts';
import { EXACT_FULL, golden, maxDifference, readNpy, score } from '../helpers/golden.ts';
import { logitGoldens } from '../helpers/golden-suites.ts';
import { describeShared, sharedPath } from '../helpers/shared.ts';

const folders: string[] = [];
afterAll(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});

/** A model of which the kernels run the attention alone; onnxruntime-web runs all the rest, from f32 weights. */
async function attentionOnly(path: string, maxBytes: number): Promise<ModelEngine> {
  const folder = mkdtempSync(join(tmpdir(), 'adkvc-attention-only-'));
  folders.push(folder);
  const model = await openModel(path);
  await writeBundle(model, join(folder, 'bundle'), { form: 'exact' });
  await model.close();
  const runner = createOrtRunner({ wasm: ortWasmInNode });
  return loadEngine({
    source: folderSource(join(folder, 'bundle')),
    kernels: createReferenceKernels({ maxBytes }),
    claims: claimAttentionOnly,
    foreign: async (loaded, stages) => {
      expect(stages.filter((s) => s.kind === 'kernels')).toHaveLength(loaded.config.layers);
      expect(stages.filter((s) => s.kind === 'ort')).toHaveLength(loaded.config.layers + 1);
      const models = stageModels(stages, (name) => loaded.manifest.tensors[name]!.shape);
      return (await loadForeignStages(loaded, stages, models, runner)).stages;
    },
  });
}

describeShared('attention alone claimed: stories260K', () => {
  it.each(['fp32-head8', 'transformersjs'])(
    '%s: every logit within 1e-4 of the float golden',
    async (name) => {
      const engine = await attentionOnly(sharedPath('models', 'stories260K-onnx', name)!, 64e6);
      for (const { ids, logits_file } of golden('stories260K.json').prompts) {
        const expected = readNpy(logits_file);
        const { logits } = await score(engine, EXACT_FULL, ids, [...ids.keys()]);
        console.log(
          'DBG',
          ids.length,
          expected.length,
          [...logits]
            .map(
              ([i, row]) =>
                i + ':' + maxDifference(row, expected.subarray(i * 512, i * 512 + 512)).toExponential(1),
            )
            .join(' '),
        );
        for (const [i, row] of logits)
          expect(maxDifference(row, expected.subarray(i * 512, i * 512 + 512))).toBeLessThan(1e-4);
      }
    },
  );
});

describeShared('attention alone claimed: SmolLM2-135M-Instruct', () => {
  let engine: ModelEngine;
  beforeAll(async () => {
    engine = await attentionOnly(sharedPath('models', 'SmolLM2-135M-Instruct.Q4_1.gguf')!, 400e6);
  }, 120_000);
  logitGoldens(() => engine, ['plain-33'], 120_000);
});
