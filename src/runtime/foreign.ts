import { CorruptDataError } from '../core/errors.ts';
import { unpackWeight } from '../kernels/weights.ts';
import type { ForeignStage } from './forward.ts';
import { isLowBit, partData } from './low-bit.ts';
import type { BundleSource } from './manifest.ts';
import type { LoadedModel } from './model.ts';
import type { OrtRunner, OrtStage, OrtTensor } from './ort.ts';
import type { Stage } from './partition.ts';

/** Names the library whose arithmetic ort stages have; a test holds it to the installed version. */
export const ORT_NUMERICS = 'onnxruntime-web/1.30.0';

/**
 * What loadEngine calls for the stages that no kernel claimed: their models come from the bundle, and `runner` is not touched before.
 * @example loadEngine({ source, kernels, foreign: foreignFromBundle(source, createOrtRunner({ wasm })) })
 */
export const foreignFromBundle =
  (source: BundleSource, runner: OrtRunner) =>
  async (model: LoadedModel, stages: readonly Stage[]): Promise<ReadonlyMap<number, ForeignStage>> => {
    const models: Uint8Array[] = [];
    for (const { file, bytes } of model.manifest.stages ?? [])
      models.push(await readAll(source, file, bytes));
    return (await loadForeignStages(model, stages, models, runner)).stages;
  };

async function readAll(source: BundleSource, file: string, bytes: number): Promise<Uint8Array> {
  const all = new Uint8Array(bytes);
  let at = 0;
  for await (const piece of source.stream(file)) {
    if (at + piece.length <= bytes) all.set(piece, at);
    at += piece.length;
  }
  if (at !== bytes)
    throw new CorruptDataError(
      `${source.describe}: ${file} has ${at} bytes, its manifest says ${bytes}; prepare the model again`,
    );
  return all;
}

export interface ForeignStages {
  /** By index into the stage list, as Forward wants them. */
  readonly stages: ReadonlyMap<number, ForeignStage>;
  dispose(): Promise<void>;
}

/**
 * Loads every stage of kind 'ort', its weights decoded to f32 from kernel memory, or, with `lowBit`, handed over in codes
 * where onnxruntime's low-bit operators read them (models lowered with `formOf`). `models`: their ONNX models in order, from the bundle
 * (manifest.stages) or from stageModels. A list without such stages touches `runner` not at all, so that onnxruntime is never instantiated.
 * @throws CorruptDataError when there are not as many models as stages, or one has other outputs
 */
export async function loadForeignStages(
  model: LoadedModel,
  stages: readonly Stage[],
  models: readonly Uint8Array[],
  runner: OrtRunner,
  { lowBit = false }: { readonly lowBit?: boolean } = {},
): Promise<ForeignStages> {
  const foreign = [...stages.entries()].filter(([, stage]) => stage.kind === 'ort');
  if (foreign.length !== models.length)
    throw new CorruptDataError(
      `the graph leaves ${foreign.length} stages to onnxruntime, the bundle holds ${models.length}; prepare the model again`,
    );
  const loaded: OrtStage[] = [];
  const dispose = async (): Promise<void> => {
    for (const stage of loaded.splice(0)) await stage.dispose();
  };
  try {
    const entries: [number, ForeignStage][] = [];
    for (const [i, [index, stage]] of foreign.entries()) {
      const ort = await runner.load(models[i]!, stageWeights(model, stage, lowBit));
      loaded.push(ort);
      if (ort.outputs.join() !== stage.outputs.join())
        throw new CorruptDataError(
          `stage ${index} returns ${ort.outputs.join(', ')}, the graph wants ${stage.outputs.join(', ')}; prepare the model again`,
        );
      entries.push([index, foreignStage(ort)]);
    }
    return { stages: new Map(entries), dispose };
  } catch (error) {
    await dispose();
    throw error;
  }
}

const foreignStage =
  (ort: OrtStage): ForeignStage =>
  (inputs) => {
    const tensors: Record<string, OrtTensor> = {};
    for (const [name, { rows, width, data }] of Object.entries(inputs))
      tensors[name] = { dims: data instanceof Float32Array ? [rows, width] : [rows], data };
    return ort.run(tensors);
  };

function stageWeights(
  model: LoadedModel,
  stage: Stage,
  lowBit: boolean,
): Record<string, Float32Array | Uint8Array> {
  const data: Record<string, Float32Array | Uint8Array> = {};
  for (const node of stage.nodes)
    for (const name of node.inputs) {
      if (!stage.weights.includes(name)) continue;
      const weight = model.weights.get(name);
      if (!weight) throw new CorruptDataError(`weight ${name} is not in the bundle; prepare the model again`);
      const [n, k] = weight.shape.length === 1 ? [1, weight.shape[0]!] : [weight.shape[0]!, weight.shape[1]!];
      const bytes = new Uint8Array(model.kernels.arena.memory.buffer, weight.ptr, weight.bytes);
      if (lowBit && isLowBit(node.op, weight.form))
        Object.assign(data, partData(name, weight.form, bytes, n, k));
      else data[name] ??= unpackWeight(weight.form, bytes, n, k);
    }
  return data;
}
