import { parseProfile } from '../cache/profile.ts';
import type { Kernels } from '../kernels/kernels.ts';
import { ORT_NUMERICS } from '../runtime/foreign.ts';
import { type ForeignStage, Forward } from '../runtime/forward.ts';
import type { BundleSource } from '../runtime/manifest.ts';
import type { LoadedModel } from '../runtime/model.ts';
import { loadModel, readManifest } from '../runtime/model.ts';
import { claimDecoder, partition, type Stage } from '../runtime/partition.ts';
import { createEngine, type ModelEngine } from './engine.ts';
import { readTokenizer } from './read-tokenizer.ts';
import { createTemplate } from './template.ts';

export interface LoadEngineOptions {
  readonly source: BundleSource;
  readonly kernels: Kernels;
  readonly onProgress?: (done: number, total: number) => void;
  /** How the graph is divided; all of a llama-family decoder goes to the kernels by default. */
  readonly claims?: typeof claimDecoder;
  /** Makes a runner for each stage that no kernel claimed. Called only if there are such stages. */
  readonly foreign?: (
    model: LoadedModel,
    stages: readonly Stage[],
  ) => Promise<ReadonlyMap<number, ForeignStage>>;
  /** onnxruntime's heap as it stands, for the ledger. */
  readonly ortHeapBytes?: () => number;
  /** Rows of logits that the workspace holds at once; a server, which wants one row, saves 3 MB. */
  readonly logitRows?: number;
}

/** Loads a bundle into the kernels' memory and makes it an engine. */
export async function loadEngine(options: LoadEngineOptions): Promise<ModelEngine> {
  const { source, kernels } = options;
  const manifest = await readManifest(source);
  const tokenizer = await readTokenizer(source, manifest);
  const template = createTemplate(manifest.chatTemplate, tokenizer, manifest);
  const loaded = await loadModel(source, manifest, kernels, options.onProgress);
  const stages = partition(manifest.graph, options.claims ?? claimDecoder);
  const foreign = stages.some((s) => s.kind === 'ort') ? await options.foreign?.(loaded, stages) : undefined;
  const forward = new Forward(loaded, stages, foreign, options.logitRows);
  const profile = manifest.profile
    ? parseProfile(await source.json(manifest.profile.file), manifest.model, manifest.profile.sha256)
    : undefined;
  return createEngine({
    ...{ loaded, forward, tokenizer, template, profile, ortHeapBytes: options.ortHeapBytes },
    plans: kernels.plans,
    // Whoever computes a node decides its bits: a state is not continued under another onnxruntime.
    numerics: foreign ? `${kernels.numerics}+${ORT_NUMERICS}` : kernels.numerics,
  });
}
