import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import * as v from 'valibot';
import type { ModelConfig } from '../core/config.ts';
import { UnsupportedModelError } from '../core/errors.ts';
import { DEFAULT_GENERATION } from './embedded-model.ts';
import { checkShape, EMBEDDING, FINAL_NORM, llamaWeights, OUTPUT } from './llama-graph.ts';
import { openSafetensors, type SafeTensors } from './safetensors.ts';
import type { ModelSource, SourceTensor } from './source.ts';

const size = v.pipe(v.number(), v.integer(), v.minValue(1));
const id = v.pipe(v.number(), v.integer(), v.minValue(0));
/** An id, several, or none. */
const idList = v.optional(
  v.pipe(
    v.nullable(v.union([id, v.array(id)])),
    v.transform((x) => (x === null ? [] : typeof x === 'number' ? [x] : x)),
  ),
  null,
);
const rope = v.object({
  rope_type: v.optional(v.string()),
  type: v.optional(v.string()),
  rope_theta: v.optional(v.number()),
});

const configSchema = v.object({
  model_type: v.literal('llama', (issue) => `the architecture is ${issue.received}; only llama is supported`),
  hidden_size: size,
  num_hidden_layers: size,
  num_attention_heads: size,
  num_key_value_heads: v.nullish(size),
  head_dim: v.nullish(size),
  intermediate_size: size,
  vocab_size: size,
  max_position_embeddings: size,
  rms_norm_eps: v.number(),
  rope_theta: v.nullish(v.number()),
  rope_scaling: v.nullish(rope),
  rope_parameters: v.nullish(rope),
  hidden_act: v.optional(v.literal('silu')),
  attention_bias: v.optional(v.literal(false)),
  mlp_bias: v.optional(v.literal(false)),
  tie_word_embeddings: v.optional(v.boolean(), false),
  bos_token_id: idList,
  eos_token_id: idList,
});
const generationSchema = v.object({
  eos_token_id: idList,
  do_sample: v.optional(v.boolean(), false),
  temperature: v.nullish(v.number()),
  top_p: v.nullish(v.number()),
});
const tokenizerConfigSchema = v.object({
  chat_template: v.nullish(
    v.union([v.string(), v.array(v.object({ name: v.string(), template: v.string() }))]),
  ),
});

/** The names of HuggingFace's LlamaForCausalLM. */
function checkpointName(weight: string): string {
  if (weight === EMBEDDING || weight === FINAL_NORM) return `model.${weight}.weight`;
  if (weight === OUTPUT) return 'lm_head.weight';
  const [, layer, part] = weight.split('.');
  const norms: Record<string, string> = {
    attn_norm: 'input_layernorm',
    ffn_norm: 'post_attention_layernorm',
  };
  const module = norms[part!] ?? `${/^[qkvo]_/.test(part!) ? 'self_attn' : 'mlp'}.${part}`;
  return `model.layers.${layer}.${module}.weight`;
}

/**
 * Reads a HuggingFace folder of the llama family: config.json, safetensors, tokenizer.json; generation_config.json,
 * tokenizer_config.json and chat_template.jinja where they are.
 * @throws UnsupportedModelError naming the file, tensor, type or field at fault
 */
export async function openLlamaFolder(path: string): Promise<ModelSource> {
  const folder = resolve(path);
  const hash = createHash('sha256');
  const read = async (file: string): Promise<string | undefined> => {
    const text = await readFile(join(folder, file), 'utf8').catch(() => undefined);
    hash.update(`${file}:${text === undefined ? 'none' : Buffer.byteLength(text)}\n`).update(text ?? '');
    return text;
  };
  const config = check('config.json', configSchema, await read('config.json'));
  const generation = check(
    'generation_config.json',
    generationSchema,
    (await read('generation_config.json')) ?? '{}',
  );
  const tokenizerConfig = check(
    'tokenizer_config.json',
    tokenizerConfigSchema,
    (await read('tokenizer_config.json')) ?? '{}',
  );
  const jinja = await read('chat_template.jinja');
  const tokenizer = readTokenizer(await read('tokenizer.json'));
  const { model, tied } = readConfig(config, basename(folder));

  const weights = await openSafetensors(folder);
  try {
    const tensors = mapTensors(weights, model, tied);
    await weights.hash(hash);
    const eosIds = generation.eos_token_id.length > 0 ? generation.eos_token_id : config.eos_token_id;
    if (eosIds.length === 0) throw new UnsupportedModelError('config.json: eos_token_id is missing');
    return {
      config: model,
      tensors,
      tied,
      tokenizer,
      chatTemplate: jinja ?? defaultTemplate(tokenizerConfig.chat_template),
      eosIds,
      bosId: beginsWithBos(tokenizer) ? (config.bos_token_id[0] ?? null) : null,
      generation: generation.do_sample
        ? {
            temperature: generation.temperature ?? DEFAULT_GENERATION.temperature,
            topP: generation.top_p ?? DEFAULT_GENERATION.topP,
            maxTokens: DEFAULT_GENERATION.maxTokens,
          }
        : DEFAULT_GENERATION,
      source: { file: basename(folder), bytes: weights.bytes, sha256: hash.digest('hex') },
      close: () => weights.close(),
    };
  } catch (error) {
    await weights.close();
    throw error;
  }
}

function check<S extends v.GenericSchema>(
  file: string,
  schema: S,
  text: string | undefined,
): v.InferOutput<S> {
  if (text === undefined) throw new UnsupportedModelError(`${file} is missing`, { file });
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    throw new UnsupportedModelError(`${file} is not valid JSON`, { file });
  }
  const parsed = v.safeParse(schema, json);
  if (parsed.success) return parsed.output;
  const issue = parsed.issues[0]!;
  throw new UnsupportedModelError(`${file}: ${v.getDotPath(issue) ?? 'root'}: ${issue.message}`, { file });
}

function readConfig(
  c: v.InferOutput<typeof configSchema>,
  name: string,
): { model: ModelConfig; tied: boolean } {
  const refuse = (message: string): never => {
    throw new UnsupportedModelError(`config.json: ${message}`);
  };
  const scaling = c.rope_parameters ?? c.rope_scaling;
  const kind = scaling?.rope_type ?? scaling?.type ?? 'default';
  if (kind !== 'default') refuse(`rope scaling ${kind} is not supported`);
  const headDim = c.head_dim ?? c.hidden_size / c.num_attention_heads;
  const model: ModelConfig = {
    name,
    architecture: 'llama',
    layers: c.num_hidden_layers,
    hidden: c.hidden_size,
    heads: c.num_attention_heads,
    kvHeads: c.num_key_value_heads ?? c.num_attention_heads,
    headDim,
    ffn: c.intermediate_size,
    vocab: c.vocab_size,
    contextLength: c.max_position_embeddings,
    ropeTheta: c.rope_parameters?.rope_theta ?? c.rope_theta ?? 10000,
    rmsEps: c.rms_norm_eps,
    attentionScale: 1 / Math.sqrt(headDim),
  };
  checkShape(model, refuse);
  return { model, tied: c.tie_word_embeddings };
}

function mapTensors(weights: SafeTensors, model: ModelConfig, tied: boolean): SourceTensor[] {
  const unused = new Set(weights.tensors.keys());
  const tensors = llamaWeights(model, tied).map((weight): SourceTensor => {
    const sourceName = checkpointName(weight.name);
    const tensor = weights.tensors.get(sourceName);
    if (!tensor) throw new UnsupportedModelError(`tensor ${sourceName} is missing`, { tensor: sourceName });
    unused.delete(sourceName);
    if (tensor.shape.join() !== weight.shape.join())
      throw new UnsupportedModelError(
        `tensor ${sourceName} is [${tensor.shape.join(', ')}], config.json says [${weight.shape.join(', ')}]`,
        { tensor: sourceName },
      );
    return {
      name: weight.name,
      sourceName,
      type: tensor.type,
      shape: weight.shape,
      bytes: tensor.bytes,
      read: tensor.read,
    };
  });
  for (const name of unused) {
    // A copy of the tied matrix, and a table that older exports kept: neither holds anything new.
    if ((tied && name === 'lm_head.weight') || name.endsWith('.rotary_emb.inv_freq')) continue;
    throw new UnsupportedModelError(`tensor ${name} is not part of a plain llama decoder`, { tensor: name });
  }
  return tensors;
}

function readTokenizer(text: string | undefined): Record<string, unknown> {
  return check('tokenizer.json', v.record(v.string(), v.unknown()), text);
}

/** Whether the tokenizer's post-processor puts a token in front of every text. */
function beginsWithBos(tokenizer: Record<string, unknown>): boolean {
  const parsed = v.safeParse(
    v.object({
      type: v.literal('TemplateProcessing'),
      single: v.pipe(
        v.array(v.record(v.string(), v.unknown())),
        v.check((steps) => steps[0] !== undefined && 'SpecialToken' in steps[0]),
      ),
    }),
    tokenizer.post_processor,
  );
  return parsed.success;
}

function defaultTemplate(
  template: string | { name: string; template: string }[] | null | undefined,
): string | null {
  if (typeof template === 'string') return template;
  return template?.find(({ name }) => name === 'default')?.template ?? null;
}
