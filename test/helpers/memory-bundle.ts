import { KvCache } from '../../src/cache/cache.ts';
import { DEFAULT_CACHE } from '../../src/cache/policy.ts';
import type { Kernels } from '../../src/kernels/kernels.ts';
import { packWeight } from '../../src/kernels/weights.ts';
import { foreignFromBundle } from '../../src/runtime/foreign.ts';
import { Forward } from '../../src/runtime/forward.ts';
import {
  type BundleSource,
  MANIFEST_FORMAT,
  MANIFEST_VERSION,
  type Manifest,
} from '../../src/runtime/manifest.ts';
import { loadModel, readManifest } from '../../src/runtime/model.ts';
import type { OrtRunner } from '../../src/runtime/ort.ts';
import { type Claims, partition } from '../../src/runtime/partition.ts';
import type { TinyDecoder } from './tiny-decoder.ts';

const NO_SHA256 = '0'.repeat(64);

/** A bundle of f32 weights, held in memory, so that it can be had in a Worker. `models`: its stages for onnxruntime. */
export function memoryBundle(decoder: TinyDecoder, models: readonly Uint8Array[]): BundleSource {
  const tensors: Manifest['tensors'] = {};
  const packed: Uint8Array[] = [];
  let offset = 0;
  for (const [name, { dims, data }] of Object.entries(decoder.weights)) {
    const [n, k] = dims.length === 1 ? [1, dims[0]!] : [dims[0]!, dims[1]!];
    const source = new Uint8Array(Float32Array.from(data).buffer);
    const bytes = packWeight('f32', { type: 'F32', data: source, n, k });
    packed.push(bytes);
    const parts = [{ shard: 0, offset, bytes: bytes.length }];
    tensors[name] = { form: 'f32', shape: [...dims], bytes: bytes.length, parts };
    offset += bytes.length;
  }
  const shard = new Uint8Array(offset);
  let at = 0;
  for (const bytes of packed) {
    shard.set(bytes, at);
    at += bytes.length;
  }
  const files = new Map<string, Uint8Array>([['weights.bin', shard]]);
  models.forEach((model, i) => void files.set(`stage-${i}.onnx`, model));
  const manifest = {
    format: MANIFEST_FORMAT,
    version: MANIFEST_VERSION,
    model: decoder.config,
    weightForm: 'exact',
    source: { file: 'tiny', bytes: offset, sha256: NO_SHA256 },
    fingerprint: NO_SHA256,
    graph: { file: 'model.onnx', ...decoder.graph },
    stages: models.map((model, i) => ({
      ...{ file: `stage-${i}.onnx`, bytes: model.length, sha256: NO_SHA256 },
    })),
    tensors,
    shards: [{ file: 'weights.bin', bytes: offset, sha256: NO_SHA256 }],
    tokenizer: { file: 'tokenizer.json', sha256: NO_SHA256 },
    chatTemplate: null,
    eosIds: [0],
    bosId: null,
    generation: { temperature: 0, topP: 1, maxTokens: 1 },
  };
  const missing = (file: string): never => {
    throw new Error(`the bundle has no ${file}`);
  };
  return {
    describe: 'a bundle in memory',
    json: async (file) => (file === 'manifest.json' ? structuredClone(manifest) : missing(file)),
    text: async (file) => missing(file),
    async *stream(file) {
      const bytes = files.get(file) ?? missing(file);
      // In pieces, as files come.
      for (let from = 0; from < bytes.length; from += 1000) yield bytes.subarray(from, from + 1000);
    },
  };
}

/** Logits of every position, [ids, vocab]: the product's own path from a bundle through cache, stages and kernels. */
export async function bundleLogits(
  source: BundleSource,
  kernels: Kernels,
  claims: Claims,
  runner: OrtRunner,
  ids: readonly number[],
): Promise<Float32Array> {
  const manifest = await readManifest(source);
  const loaded = await loadModel(source, manifest, kernels);
  const stages = partition(manifest.graph, claims);
  const foreign = stages.some((s) => s.kind === 'ort')
    ? await foreignFromBundle(source, runner)(loaded, stages)
    : undefined;
  const forward = new Forward(loaded, stages, foreign);
  const { config, tierScratch } = loaded;
  const cache = new KvCache(
    { kernels, model: config, fingerprint: manifest.fingerprint, tierScratch },
    { ...DEFAULT_CACHE, policy: 'full', exactBits: 32, arithmetic: 'float' },
  );
  const logits = new Float32Array(ids.length * config.vocab);
  // Two chunks: the second reads keys that the first has left in the cache.
  const middle = Math.ceil(ids.length / 2);
  for (const [from, to] of [
    [0, middle],
    [middle, ids.length],
  ] as const)
    await forward.run(cache, ids.slice(from, to), [...Array(to - from).keys()], (row, values) =>
      logits.set(values, (from + row) * config.vocab),
    );
  cache.dispose();
  return logits;
}
