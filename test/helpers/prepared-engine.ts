import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { loadEngine } from '../../src/engine/load.ts';
import type { Kernels } from '../../src/kernels/kernels.ts';
import { createReferenceKernels } from '../../src/kernels/reference.ts';
import { writeBundle } from '../../src/prepare/bundle.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { openModel } from '../../src/prepare/open-model.ts';
import type { ModelSource } from '../../src/prepare/source.ts';
import { foreignFromBundle, loadForeignStages } from '../../src/runtime/foreign.ts';
import type { LoadedModel } from '../../src/runtime/model.ts';
import { createOrtRunner, type OrtRunner } from '../../src/runtime/ort.ts';
import { ortWasmInNode } from '../../src/runtime/ort-node.ts';
import { type Claims, claimDecoder, type Stage } from '../../src/runtime/partition.ts';

export interface PreparedOptions {
  readonly maxBytes: number;
  /** The reference by default. */
  readonly kernels?: Kernels;
  readonly claims?: Claims;
  readonly runner?: OrtRunner;
  /** Changes what was read before it is prepared. */
  readonly change?: (source: ModelSource) => ModelSource;
  /** Called with the bundle's folder before it is loaded. */
  readonly prepared?: (bundle: string) => void;
  /** The models read the weights as codes. */
  readonly lowBit?: boolean;
  /** Models of the stages that no kernel claims; by default those that the bundle holds. */
  readonly models?: (stages: readonly Stage[], model: LoadedModel) => readonly Uint8Array[];
}

/** Prepares models in their exact form into folders of their own, each model once unless it is changed, and loads them. */
export function preparedEngines() {
  const folders: string[] = [];
  const bundles = new Map<string, string>();

  async function bundleOf(path: string, { change, prepared }: PreparedOptions): Promise<string> {
    const before = change || prepared ? undefined : bundles.get(path);
    if (before) return before;
    const folder = mkdtempSync(join(tmpdir(), 'adkvc-prepared-'));
    folders.push(folder);
    const bundle = join(folder, 'bundle');
    const model = await openModel(path);
    try {
      await writeBundle(change?.(model) ?? model, bundle, { form: 'exact' });
    } finally {
      await model.close();
    }
    prepared?.(bundle);
    if (!change && !prepared) bundles.set(path, bundle);
    return bundle;
  }

  return {
    async prepare(path: string, options: PreparedOptions): Promise<ModelEngine> {
      const { maxBytes, claims = claimDecoder, models } = options;
      const runner = options.runner ?? createOrtRunner({ wasm: ortWasmInNode });
      const source = folderSource(await bundleOf(path, options));
      return loadEngine({
        source,
        kernels: options.kernels ?? createReferenceKernels({ maxBytes }),
        claims,
        ortHeapBytes: runner.heapBytes,
        foreign: models
          ? async (loaded, stages) =>
              (await loadForeignStages(loaded, stages, models(stages, loaded), runner, options)).stages
          : foreignFromBundle(source, runner),
      });
    },
    dispose(): void {
      for (const folder of folders) rmSync(folder, { recursive: true, force: true });
    },
  };
}
