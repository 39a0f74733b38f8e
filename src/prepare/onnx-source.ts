import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { basename, dirname, join, relative, resolve } from 'node:path';
import type { ModelConfig } from '../core/config.ts';
import { CorruptDataError, InvalidInputError, UnsupportedModelError } from '../core/errors.ts';
import { DEFAULT_GENERATION } from './embedded-model.ts';
import { EMBEDDING, FINAL_NORM, type LayerWeight, layerWeight, llamaWeights, OUTPUT } from './llama-graph.ts';
import { readDecoder } from './onnx-decoder.ts';
import { readOnnx } from './onnx-file.ts';
import type { OnnxMatrix } from './onnx-weights.ts';
import { type ModelSource, type SourceTensor, sourceRowBytes, unpermuteRows } from './source.ts';

type Json = Record<string, unknown>;

/**
 * Reads an ONNX export of a llama-family model: the layout of onnxruntime-genai's builder (model.onnx, genai_config.json) or of
 * transformers.js (onnx/model*.onnx, config.json).
 * @param path a folder, or one of its .onnx files; a folder stands for model.onnx or onnx/model.onnx in it
 * @throws UnsupportedModelError naming the node, tensor or setting at fault
 */
export async function openOnnx(path: string): Promise<ModelSource> {
  const { folder, model: modelPath } = await locate(path);
  const name = relative(folder, modelPath).replaceAll('\\', '/');
  const model = readOnnx(modelPath);
  const genai = await readJson(folder, 'genai_config.json');
  const config = await readJson(folder, 'config.json');
  const tokenizerConfig = await readJson(folder, 'tokenizer_config.json');
  const generation = await readJson(folder, 'generation_config.json');
  const tokenizer = await readJson(folder, 'tokenizer.json');
  if (!tokenizer)
    throw new UnsupportedModelError(`${name}: tokenizer.json is missing beside it`, {
      file: 'tokenizer.json',
    });

  const settings = (genai?.model as Json | undefined) ?? config ?? {};
  const decoder = readDecoder(model);
  const number = (value: unknown, what: string): number => {
    if (typeof value === 'number' && Number.isInteger(value) && value > 0) return value;
    throw new UnsupportedModelError(`${name}: ${what} is missing from genai_config.json or config.json`, {
      what,
    });
  };
  const shape: ModelConfig = {
    name: basename(resolve(folder)),
    architecture: 'llama',
    ...decoder.shape,
    contextLength: number(settings.context_length ?? config?.max_position_embeddings, 'the context length'),
  };
  const tied = decoder.tied();
  const bosId = optionalId(settings.bos_token_id ?? generation?.bos_token_id);
  const eos = settings.eos_token_id ?? generation?.eos_token_id ?? config?.eos_token_id;
  const eosIds = (Array.isArray(eos) ? eos : [eos]).filter((id): id is number => typeof id === 'number');
  if (eosIds.length === 0 || eosIds.some((id) => id < 0 || id >= shape.vocab))
    throw new UnsupportedModelError(
      `${name}: eos_token_id is ${JSON.stringify(eos)}, no token of ${shape.vocab}`,
    );

  return {
    config: shape,
    tied,
    ...(decoder.activation ? { activation: decoder.activation } : {}),
    tensors: llamaWeights(shape, tied).map((spec) => sourceTensor(spec.name, spec.shape, decoder, name)),
    tokenizer,
    chatTemplate: await chatTemplate(folder, tokenizerConfig),
    eosIds: [...new Set(eosIds)],
    bosId: addsBos(tokenizer, tokenizerConfig, bosId) ? bosId : null,
    generation: DEFAULT_GENERATION,
    source: await checksum(folder, name, model.files),
    close: async () => {},
  };
}

/** Whether a path is something that openOnnx reads, rather than a GGUF file. */
export const isOnnxPath = async (path: string): Promise<boolean> =>
  path.endsWith('.onnx') || (await stat(path).catch(() => undefined))?.isDirectory() === true;

async function locate(path: string): Promise<{ folder: string; model: string }> {
  const info = await stat(path).catch(() => undefined);
  if (info?.isFile()) {
    const folder = dirname(path);
    return { folder: basename(folder) === 'onnx' ? dirname(folder) : folder, model: path };
  }
  if (!info?.isDirectory()) throw new InvalidInputError(`${path} is no file or folder`, '--model');
  for (const file of ['model.onnx', join('onnx', 'model.onnx')]) {
    const model = join(path, file);
    if (await stat(model).catch(() => undefined)) return { folder: path, model };
  }
  throw new InvalidInputError(
    `${path} holds neither model.onnx nor onnx/model.onnx; name the .onnx file itself if it is called otherwise`,
    '--model',
  );
}

async function readJson(folder: string, file: string): Promise<Json | undefined> {
  const text = await readFile(join(folder, file), 'utf8').catch(() => undefined);
  if (text === undefined) return undefined;
  try {
    return JSON.parse(text) as Json;
  } catch {
    throw new CorruptDataError(`${file} is not valid JSON`, { file });
  }
}

const optionalId = (value: unknown): number | null => (typeof value === 'number' ? value : null);

/** Whether texts begin with BOS: what the tokenizer's own post-processing adds, or its configuration asks for. */
function addsBos(tokenizer: Json, config: Json | undefined, bosId: number | null): boolean {
  if (bosId === null) return false;
  if (typeof config?.add_bos_token === 'boolean') return config.add_bos_token;
  const processors = (p: unknown): Json[] => {
    const one = p as Json | null | undefined;
    if (!one) return [];
    return one.type === 'Sequence' ? ((one.processors as unknown[]) ?? []).flatMap(processors) : [one];
  };
  return processors(tokenizer.post_processor).some((p) => {
    const first = (p.single as Json[] | undefined)?.[0]?.SpecialToken as Json | undefined;
    const special =
      first && ((p.special_tokens as Json)?.[String(first.id)] as { ids?: number[] } | undefined);
    return special?.ids?.[0] === bosId;
  });
}

async function chatTemplate(folder: string, config: Json | undefined): Promise<string | null> {
  const file = await readFile(join(folder, 'chat_template.jinja'), 'utf8').catch(() => undefined);
  if (file !== undefined) return file;
  const template = config?.chat_template;
  if (typeof template === 'string') return template;
  if (!Array.isArray(template)) return null;
  const named = (template as { name?: string; template?: string }[]).find((t) => t.name === 'default');
  return named?.template ?? null;
}

function sourceTensor(
  name: string,
  shape: readonly number[],
  decoder: ReturnType<typeof readDecoder>,
  file: string,
): SourceTensor {
  const matrix = weightOf(name, decoder);
  const [n, k] = shape.length === 1 ? [1, shape[0]!] : [shape[0]!, shape[1]!];
  if (matrix.n !== n || matrix.k !== k)
    throw new UnsupportedModelError(
      `${file}: ${name} is ${matrix.label}, [${matrix.n}, ${matrix.k}], not [${shape.join(', ')}]`,
      { tensor: matrix.label, expected: shape },
    );
  const { interleaved, shape: config } = decoder;
  const heads = name.endsWith('.q_proj') ? config.heads : name.endsWith('.k_proj') ? config.kvHeads : 0;
  return {
    name,
    sourceName: matrix.label,
    type: matrix.type,
    shape,
    bytes: matrix.bytes,
    read: async () =>
      interleaved && heads > 0
        ? unpermuteRows(matrix.read(), sourceRowBytes(matrix.type, k), heads, config.headDim)
        : matrix.read(),
  };
}

function weightOf(name: string, decoder: ReturnType<typeof readDecoder>): OnnxMatrix {
  if (name === EMBEDDING) return decoder.embedding;
  if (name === OUTPUT) return decoder.output;
  if (name === FINAL_NORM) return decoder.finalNorm;
  const [, layer, part] = name.split('.');
  if (layerWeight(Number(layer), part as LayerWeight) !== name) throw new Error(`no weight is named ${name}`);
  return decoder.layers[Number(layer)]![part as LayerWeight];
}

/** One checksum over the model, its external data and the files that decide what texts become. */
async function checksum(
  folder: string,
  name: string,
  files: readonly string[],
): Promise<ModelSource['source']> {
  const hash = createHash('sha256');
  let bytes = 0;
  const beside = ['tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja', 'genai_config.json']
    .concat('config.json', 'generation_config.json')
    .map((file) => join(folder, file));
  for (const file of [...files, ...beside]) {
    const info = await stat(file).catch(() => undefined);
    if (!info) continue;
    hash.update(`${relative(folder, file).replaceAll('\\', '/')}\0${info.size}\0`);
    bytes += info.size;
    for await (const piece of createReadStream(file)) hash.update(piece as Uint8Array);
  }
  return { file: name, bytes, sha256: hash.digest('hex') };
}
