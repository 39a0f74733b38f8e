import { writeFileSync } from 'node:fs';
import { floatToHalf } from '../../src/core/half.ts';
import type { SourceType } from '../../src/kernels/weights.ts';

/** A tiny llama model with random weights. Everything has a default; the same options give the same bytes. */
export interface TinyOptions {
  seed?: number;
  layers?: number;
  hidden?: number;
  heads?: number;
  kvHeads?: number;
  headDim?: number;
  ffn?: number;
  context?: number;
  ropeTheta?: number;
  /** Type of the layers' matrices, and of the embedding. A width that the type's blocks do not divide needs F32 or F16. */
  matrix?: SourceType;
  embedding?: SourceType;
  /** An output matrix of its own instead of the tied embedding. */
  untied?: boolean;
  /** No answer ends by itself, whatever is drawn: only its limit or a stop string ends it. Takes an output matrix of its own. */
  endless?: boolean;
  /** Metadata to add, replace or (undefined) leave out. */
  metadata?: Record<string, MetadataValue | undefined>;
  /** Last changes before the file is written: for files that must be refused. */
  editTensors?: (tensors: TinyTensor[]) => TinyTensor[];
}

export interface TinyTensor {
  name: string;
  /** ggml's type number. */
  type: number;
  /** Outermost first. */
  shape: number[];
  data: Uint8Array;
}

type MetadataValue = string | boolean | string[] | number[] | { u32: number } | { f32: number };
export const u32 = (value: number): MetadataValue => ({ u32: value });
export const f32 = (value: number): MetadataValue => ({ f32: value });

/** ggml's numbers of the types. Source: ggml.h (enum ggml_type). */
export const GGML_TYPES: Readonly<Record<SourceType, number>> = { F32: 0, F16: 1, Q4_0: 2, Q4_1: 3, Q8_0: 8 };

const SPECIALS = ['<|endoftext|>', '<|im_start|>', '<|im_end|>'];
export const TINY_EOS = 2;
/** Merges in GPT-2's alphabet, where U+0120 is the space. Each half is a byte or was merged before. */
const MERGES = (
  '\u0120 t|h e|\u0120t he|i n|r e|o n|e r|a t|\u0120 a|\u0120 s|e n|i s|u s|us er|s t|a s|as s|is t|ass ist|a n|an t|assist ant|' +
  's y|sy st|e m|syst em|\u0120 w|o r|\u0120 o|n d|o u|i t|e s|\u0120 b|\u0120 c|in g|l l|\u0120 m|a r|e d|\u0120 l'
).split('|');
const CHATML =
  "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/** Bytes as GPT-2's printable characters. */
const byteCharacters = (): string[] => {
  let shifted = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    return String.fromCharCode(printable ? byte : shifted++);
  });
};

/** The file's bytes: a valid GGUF (version 3) of two layers unless the options say otherwise. */
export function tinyGguf(options: TinyOptions = {}): Uint8Array {
  const { seed = 1, layers = 2, hidden = 64, heads = 4, kvHeads = 2, headDim = 16, ffn = 128 } = options;
  const { context = 1024, ropeTheta = 10000, matrix = 'Q4_1', embedding = 'Q8_0' } = options;
  const tokens = [...SPECIALS, ...byteCharacters(), ...MERGES.map((merge) => merge.replace(' ', ''))];
  const vocab = tokens.length;
  const random = gaussian(seed);
  const tensors: TinyTensor[] = [];
  type Edit = (values: Float32Array) => void;
  const add = (
    name: string,
    type: SourceType,
    shape: number[],
    deviation: number,
    mean = 0,
    edit?: Edit,
  ): void => {
    const values = Float32Array.from(
      { length: shape.reduce((a, b) => a * b, 1) },
      () => mean + deviation * random(),
    );
    edit?.(values);
    tensors.push({ name, type: GGML_TYPES[type], shape, data: encodeValues(type, values) });
  };
  // An endless model's first channel is the same for each token and position, and speaks against the end alone.
  const { endless = false, untied = endless } = options;
  const embed: Edit = (values) => {
    for (let token = 0; token < vocab; token++) values[token * hidden] = 4;
  };
  const output: Edit = (values) => {
    for (let token = 0; token < vocab; token++) values[token * hidden] = token === TINY_EOS ? -64 : 0;
  };
  const hold: Edit = (values) => {
    values.fill(0, 0, values.length / hidden);
  };
  add('token_embd.weight', embedding, [vocab, hidden], 1, 0, endless ? embed : undefined);
  for (let i = 0; i < layers; i++) {
    const weight = (name: string, n: number, k: number, edit?: Edit) =>
      add(`blk.${i}.${name}.weight`, matrix, [n, k], 1 / Math.sqrt(k), 0, edit);
    add(`blk.${i}.attn_norm.weight`, 'F32', [hidden], 0.1, 1);
    weight('attn_q', heads * headDim, hidden);
    weight('attn_k', kvHeads * headDim, hidden);
    weight('attn_v', kvHeads * headDim, hidden);
    weight('attn_output', hidden, heads * headDim, endless ? hold : undefined);
    add(`blk.${i}.ffn_norm.weight`, 'F32', [hidden], 0.1, 1);
    weight('ffn_gate', ffn, hidden);
    weight('ffn_up', ffn, hidden);
    weight('ffn_down', hidden, ffn, endless ? hold : undefined);
  }
  add('output_norm.weight', 'F32', [hidden], 0.1, 1);
  if (untied)
    add('output.weight', embedding, [vocab, hidden], 1 / Math.sqrt(hidden), 0, endless ? output : undefined);

  const metadata: Record<string, MetadataValue | undefined> = {
    'general.architecture': 'llama',
    'general.name': 'tiny',
    'llama.block_count': u32(layers),
    'llama.context_length': u32(context),
    'llama.embedding_length': u32(hidden),
    'llama.feed_forward_length': u32(ffn),
    'llama.attention.head_count': u32(heads),
    'llama.attention.head_count_kv': u32(kvHeads),
    'llama.attention.key_length': u32(headDim),
    'llama.attention.value_length': u32(headDim),
    'llama.attention.layer_norm_rms_epsilon': f32(1e-5),
    'llama.rope.freq_base': f32(ropeTheta),
    'llama.rope.dimension_count': u32(headDim),
    'llama.vocab_size': u32(vocab),
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': 'smollm',
    'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.token_type': tokens.map((_, id) => (id < SPECIALS.length ? 3 : 1)),
    'tokenizer.ggml.merges': MERGES,
    'tokenizer.ggml.bos_token_id': u32(1),
    'tokenizer.ggml.eos_token_id': u32(TINY_EOS),
    'tokenizer.ggml.add_bos_token': false,
    'tokenizer.chat_template': CHATML,
    ...options.metadata,
  };
  return serialise(metadata, options.editTensors?.(tensors) ?? tensors);
}

/** Writes the tiny model to `path` and returns the path. */
export function writeTinyGguf(path: string, options: TinyOptions = {}): string {
  writeFileSync(path, tinyGguf(options));
  return path;
}

const ALIGNMENT = 32;

/** Source of the format: ggml, docs/gguf.md. */
function serialise(metadata: Record<string, MetadataValue | undefined>, tensors: TinyTensor[]): Uint8Array {
  const parts: Uint8Array[] = [];
  let length = 0;
  const bytes = (data: Uint8Array): void => {
    parts.push(data);
    length += data.length;
  };
  const number = (size: number, set: (view: DataView) => void): void => {
    const data = new Uint8Array(size);
    set(new DataView(data.buffer));
    bytes(data);
  };
  const int32 = (value: number) => number(4, (view) => view.setUint32(0, value, true));
  const int64 = (value: number) => number(8, (view) => view.setBigUint64(0, BigInt(value), true));
  const float = (value: number) => number(4, (view) => view.setFloat32(0, value, true));
  const text = (value: string): void => {
    const data = new TextEncoder().encode(value);
    int64(data.length);
    bytes(data);
  };
  const pad = (): void => bytes(new Uint8Array((ALIGNMENT - (length % ALIGNMENT)) % ALIGNMENT));

  const entries = Object.entries(metadata).filter(
    (entry): entry is [string, MetadataValue] => entry[1] !== undefined,
  );
  bytes(new TextEncoder().encode('GGUF'));
  int32(3);
  int64(tensors.length);
  int64(entries.length);
  for (const [key, value] of entries) {
    text(key);
    if (typeof value === 'string') {
      int32(8);
      text(value);
    } else if (typeof value === 'boolean') {
      int32(7);
      bytes(Uint8Array.of(value ? 1 : 0));
    } else if (Array.isArray(value)) {
      int32(9);
      int32(typeof value[0] === 'string' ? 8 : 5);
      int64(value.length);
      for (const item of value) typeof item === 'string' ? text(item) : int32(item);
    } else if ('u32' in value) {
      int32(4);
      int32(value.u32);
    } else {
      int32(6);
      float(value.f32);
    }
  }
  let offset = 0;
  for (const { name, shape, type, data } of tensors) {
    text(name);
    int32(shape.length);
    for (const dimension of [...shape].reverse()) int64(dimension);
    int32(type);
    int64(offset);
    offset += Math.ceil(data.length / ALIGNMENT) * ALIGNMENT;
  }
  pad();
  for (const { data } of tensors) {
    bytes(data);
    pad();
  }
  const out = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** Values in a GGUF type, rounded to nearest: blocks of 32 for the quantised ones. */
export function encodeValues(type: SourceType, values: Float32Array): Uint8Array {
  if (type === 'F32') return new Uint8Array(values.buffer.slice(0));
  if (type === 'F16') return new Uint8Array(Uint16Array.from(values, floatToHalf).buffer);
  if (values.length % 32 !== 0) throw new Error(`${type} needs blocks of 32`);
  const blockBytes = { Q4_0: 18, Q4_1: 20, Q8_0: 34 }[type];
  const out = new Uint8Array((values.length / 32) * blockBytes);
  const view = new DataView(out.buffer);
  for (let b = 0; b * 32 < values.length; b++) {
    const x = values.subarray(b * 32, b * 32 + 32);
    const at = b * blockBytes;
    const low = Math.min(...x);
    const peak = Math.max(...x.map(Math.abs));
    const scale = type === 'Q4_1' ? (Math.max(...x) - low) / 15 : type === 'Q4_0' ? peak / 8 : peak / 127;
    view.setUint16(at, floatToHalf(scale), true);
    if (type === 'Q8_0') {
      x.forEach((value, i) => {
        view.setInt8(at + 2 + i, Math.round(value / scale));
      });
      continue;
    }
    if (type === 'Q4_1') view.setUint16(at + 2, floatToHalf(low), true);
    const codes = at + (type === 'Q4_1' ? 4 : 2);
    x.forEach((value, i) => {
      const exact = type === 'Q4_1' ? (value - low) / scale : value / scale + 8;
      const code = Math.min(15, Math.max(0, Math.round(exact)));
      out[codes + (i % 16)]! |= i < 16 ? code : code << 4;
    });
  }
  return out;
}

/** Normal deviates from a seeded generator (mulberry32, then Box-Muller). */
function gaussian(seed: number): () => number {
  let state = seed >>> 0;
  const uniform = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}
