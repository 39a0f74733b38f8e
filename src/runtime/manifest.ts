import * as v from 'valibot';

/** The bundle's manifest.json. Paths are relative to it. */
export const MANIFEST_FORMAT = 'adkvc-bundle';
export const MANIFEST_VERSION = 1;
/** Cloudflare refuses static assets above 25 MiB; shards stay well below. https://developers.cloudflare.com/workers/platform/limits/ */
export const MAX_SHARD_BYTES = 20 * 1024 * 1024;

const count = v.pipe(v.number(), v.integer(), v.minValue(1));
const bytes = v.pipe(v.number(), v.integer(), v.minValue(0));
const sha256 = v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/));

const nodeSchema = v.object({
  name: v.string(),
  op: v.string(),
  domain: v.string(),
  inputs: v.array(v.string()),
  outputs: v.array(v.string()),
  attributes: v.record(v.string(), v.union([v.number(), v.string(), v.array(v.number())])),
});

export const manifestSchema = v.object({
  format: v.literal(MANIFEST_FORMAT),
  version: v.literal(MANIFEST_VERSION),
  model: v.object({
    name: v.string(),
    architecture: v.literal('llama'),
    layers: count,
    hidden: count,
    heads: count,
    kvHeads: count,
    headDim: count,
    ffn: count,
    vocab: count,
    contextLength: count,
    ropeTheta: v.number(),
    rmsEps: v.number(),
    attentionScale: v.number(),
  }),
  weightForm: v.picklist(['compact', 'exact']),
  /** Of the preparation that wrote the bundle; only decides whether it is made anew. */
  preparerVersion: v.optional(count),
  source: v.object({ file: v.string(), bytes, sha256 }),
  /** sha256 over everything that decides results: graph, weights, tokenizer, template. Stored with every session. */
  fingerprint: sha256,
  graph: v.object({
    file: v.string(),
    inputs: v.array(v.string()),
    outputs: v.array(v.string()),
    nodes: v.array(nodeSchema),
  }),
  /**
   * ONNX models of the stages that onnxruntime runs on WASM, in the order of partition(graph, claimDecoder); absent where the
   * kernels claim every node. Their weights are external, by name: hosts need no protobuf, and no weight is stored twice.
   */
  stages: v.optional(v.array(v.object({ file: v.string(), bytes, sha256 }))),
  /** Weight name -> form, logical shape [n, k] (or [dim]), and its place. A tensor may be shared (tied embedding). Never spans two shards unless `parts` has several. */
  tensors: v.record(
    v.string(),
    v.object({
      form: v.picklist(['f32', 'q4_1', 'q8_0', 'q4r', 'q6h']),
      shape: v.array(count),
      bytes,
      parts: v.array(v.object({ shard: bytes, offset: bytes, bytes })),
    }),
  ),
  shards: v.array(v.object({ file: v.string(), bytes, sha256 })),
  /** `tables`: made of the file, for a start without parsing it (src/engine/tokenizer-tables.ts). */
  tokenizer: v.object({
    file: v.string(),
    sha256,
    tables: v.optional(v.object({ file: v.string(), bytes, sha256 })),
  }),
  /** The heads' measured sensitivity (src/cache/profile.ts), if the model was calibrated. Not part of the fingerprint: caches name the profile themselves. */
  profile: v.optional(v.object({ file: v.string(), sha256 })),
  chatTemplate: v.nullable(v.string()),
  /** Ids that end a reply, and the one that names the beginning (null where the model uses none). */
  eosIds: v.array(bytes),
  bosId: v.nullable(bytes),
  /** Used where a request leaves sampling unset. */
  generation: v.object({ temperature: v.number(), topP: v.number(), maxTokens: count }),
});
export type Manifest = v.InferOutput<typeof manifestSchema>;
export type TensorEntry = Manifest['tensors'][string];

/** Reads a bundle's files wherever they lie: a folder, static assets of a Worker, a page's cache. */
export interface BundleSource {
  readonly describe: string;
  json(file: string): Promise<unknown>;
  text(file: string): Promise<string>;
  /** The file's bytes in pieces of any size, in order; never the whole shard at once. */
  stream(file: string): AsyncIterable<Uint8Array>;
}
