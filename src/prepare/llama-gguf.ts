import type { ModelConfig } from '../core/config.ts';
import { UnsupportedModelError } from '../core/errors.ts';
import { DEFAULT_GENERATION, EMBEDDED_MODEL } from './embedded-model.ts';
import { type GgufFile, type GgufMetadata, openGguf } from './gguf.ts';
import { checkShape, EMBEDDING, FINAL_NORM, llamaWeights, OUTPUT } from './llama-graph.ts';
import { type ModelSource, type SourceTensor, sourceRowBytes, unpermuteRows } from './source.ts';
import { tokenizerJsonFromGguf } from './tokenizer-json.ts';

/** GGUF's names of one layer's weights. Source: llama.cpp, src/llama-arch.cpp. */
const LAYER_NAMES: Readonly<Record<string, string>> = {
  attn_norm: 'attn_norm',
  q_proj: 'attn_q',
  k_proj: 'attn_k',
  v_proj: 'attn_v',
  o_proj: 'attn_output',
  ffn_norm: 'ffn_norm',
  gate_proj: 'ffn_gate',
  up_proj: 'ffn_up',
  down_proj: 'ffn_down',
};

function ggufName(weight: string): string {
  if (weight === EMBEDDING) return 'token_embd.weight';
  if (weight === FINAL_NORM) return 'output_norm.weight';
  if (weight === OUTPUT) return 'output.weight';
  const [, layer, part] = weight.split('.');
  return `blk.${layer}.${LAYER_NAMES[part!]}.weight`;
}

/**
 * Reads a GGUF file of the llama family as a model source.
 * @throws UnsupportedModelError naming the architecture, tensor, type or metadata key at fault
 */
export async function openLlamaGguf(path: string): Promise<ModelSource> {
  const gguf = await openGguf(path);
  try {
    const config = readConfig(gguf);
    const tied = !gguf.tensors.has('output.weight');
    const tensors = mapTensors(gguf, config, tied);
    const tokenizer = tokenizerJsonFromGguf(gguf.metadata, gguf.file, config.vocab);
    const sha256 = await gguf.sha256();
    const embedded = sha256 === EMBEDDED_MODEL.sha256;
    return {
      config: embedded ? { ...config, name: EMBEDDED_MODEL.name } : config,
      tensors,
      tied,
      tokenizer,
      chatTemplate: gguf.metadata.optionalString('tokenizer.chat_template') ?? null,
      eosIds: endIds(gguf.metadata, gguf.file, config.vocab),
      bosId: gguf.metadata.boolean('tokenizer.ggml.add_bos_token', false)
        ? gguf.metadata.number('tokenizer.ggml.bos_token_id')
        : null,
      generation: embedded ? EMBEDDED_MODEL.generation : DEFAULT_GENERATION,
      source: { file: gguf.file, bytes: gguf.bytes, sha256 },
      close: () => gguf.close(),
    };
  } catch (error) {
    await gguf.close();
    throw error;
  }
}

function readConfig({ metadata, file }: GgufFile): ModelConfig {
  const refuse = (message: string, data: Record<string, unknown> = {}): never => {
    throw new UnsupportedModelError(`${file}: ${message}`, { file, ...data });
  };
  const architecture = metadata.string('general.architecture');
  if (architecture !== 'llama')
    return refuse(`the architecture is ${architecture}; only llama is supported`, { architecture });

  const size = (key: string, fallback?: number): number => {
    const value = fallback === undefined ? metadata.number(key) : metadata.number(key, fallback);
    if (!Number.isInteger(value) || value < 1) refuse(`metadata ${key} is ${value}, not a positive integer`);
    return value;
  };
  const heads = size('llama.attention.head_count');
  const hidden = size('llama.embedding_length');
  const kvHeads = size('llama.attention.head_count_kv', heads);
  const headDim = size('llama.attention.key_length', hidden / heads);
  const config: ModelConfig = {
    name: metadata.optionalString('general.name') ?? file.replace(/\.gguf$/, ''),
    architecture,
    layers: size('llama.block_count'),
    hidden,
    heads,
    kvHeads,
    headDim,
    ffn: size('llama.feed_forward_length'),
    vocab: metadata.strings('tokenizer.ggml.tokens').length,
    contextLength: size('llama.context_length'),
    ropeTheta: metadata.number('llama.rope.freq_base', 10000),
    rmsEps: metadata.number('llama.attention.layer_norm_rms_epsilon'),
    attentionScale: 1 / Math.sqrt(headDim),
  };
  checkShape(config, refuse);
  if (size('llama.attention.value_length', headDim) !== headDim)
    refuse('keys and values of different sizes are not supported (llama.attention.value_length)');
  if (size('llama.vocab_size', config.vocab) !== config.vocab)
    refuse(`llama.vocab_size is not the number of tokens, ${config.vocab}`);
  if (size('llama.rope.dimension_count', headDim) !== headDim)
    refuse('a rotary embedding of only a part of the head is not supported (llama.rope.dimension_count)');
  refuseRopeScaling(metadata, refuse);
  if (metadata.number('llama.expert_count', 0) > 0)
    refuse('mixtures of experts are not supported (llama.expert_count)');
  return config;
}

function refuseRopeScaling(metadata: GgufMetadata, refuse: (message: string) => never): void {
  const scaling = metadata.optionalString('llama.rope.scaling.type');
  if (scaling !== undefined && scaling !== 'none')
    refuse(`rope scaling ${scaling} is not supported (llama.rope.scaling.type)`);
  for (const key of ['llama.rope.scale_linear', 'llama.rope.scaling.factor'])
    if (metadata.number(key, 1) !== 1)
      refuse(`rope scaling by ${metadata.number(key)} is not supported (${key})`);
}

function mapTensors(gguf: GgufFile, config: ModelConfig, tied: boolean): SourceTensor[] {
  const unused = new Set(gguf.tensors.keys());
  const tensors = llamaWeights(config, tied).map((weight): SourceTensor => {
    const sourceName = ggufName(weight.name);
    const tensor = gguf.tensors.get(sourceName);
    if (!tensor)
      throw new UnsupportedModelError(`${gguf.file}: tensor ${sourceName} is missing`, {
        tensor: sourceName,
      });
    unused.delete(sourceName);
    const expected = weight.shape.join(', ');
    if (tensor.shape.join(', ') !== expected)
      throw new UnsupportedModelError(
        `${gguf.file}: tensor ${sourceName} is [${tensor.shape.join(', ')}], the metadata says [${expected}]`,
        { tensor: sourceName, shape: tensor.shape, expected: weight.shape },
      );
    if (weight.role === 'norm' && tensor.type !== 'F32' && tensor.type !== 'F16')
      throw new UnsupportedModelError(
        `${gguf.file}: tensor ${sourceName} has type ${tensor.type}; a norm must be F32 or F16`,
        { tensor: sourceName, type: tensor.type },
      );
    // GGUF orders the rows of q and k for interleaved rotary pairs; the graph rotates halves.
    const heads = weight.name.endsWith('.q_proj')
      ? config.heads
      : weight.name.endsWith('.k_proj')
        ? config.kvHeads
        : 0;
    return {
      name: weight.name,
      sourceName,
      type: tensor.type,
      shape: weight.shape,
      bytes: tensor.bytes,
      read: async () => {
        const data = await gguf.read(tensor);
        if (heads === 0) return data;
        return unpermuteRows(data, sourceRowBytes(tensor.type, config.hidden), heads, config.headDim);
      },
    };
  });
  // A tensor that nobody reads (a bias, rope_freqs.weight, an expert) would change the results if it were ignored.
  for (const name of unused)
    throw new UnsupportedModelError(`${gguf.file}: tensor ${name} is not part of a plain llama decoder`, {
      tensor: name,
    });
  return tensors;
}

function endIds(metadata: GgufMetadata, file: string, vocab: number): number[] {
  const ids = ['tokenizer.ggml.eos_token_id', 'tokenizer.ggml.eot_token_id']
    .map((key) => metadata.optionalNumber(key))
    .filter((id) => id !== undefined);
  if (ids.length === 0)
    throw new UnsupportedModelError(`${file}: metadata tokenizer.ggml.eos_token_id is missing`);
  for (const id of ids)
    if (!(id >= 0 && id < vocab))
      throw new UnsupportedModelError(`${file}: the end token ${id} is not among the ${vocab} tokens`);
  return [...new Set(ids)];
}
