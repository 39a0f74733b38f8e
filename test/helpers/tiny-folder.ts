import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { halfToFloat } from '../../src/core/half.ts';
import { encodeValues } from './tiny-gguf.ts';

interface TinyFolderOptions {
  dtype?: 'F32' | 'F16' | 'BF16';
  /** What the header calls the type, if not what it is. */
  label?: string;
  /** Number of safetensors files. */
  files?: number;
}

/** Writes a HuggingFace folder of a tiny llama model (head size 8). @returns its weights' values by name */
export function writeTinyFolder(folder: string, options: TinyFolderOptions = {}): Map<string, Float32Array> {
  const { dtype = 'F32', label = dtype, files = 1 } = options;
  mkdirSync(folder, { recursive: true });
  const json = (file: string, value: unknown) => writeFileSync(join(folder, file), JSON.stringify(value));
  const characters = [...Array(95).keys()].map((i) => String.fromCharCode(32 + i));
  const tokens = ['<unk>', '<s>', '</s>', '\u2581', ...characters.slice(1)];
  json('config.json', {
    model_type: 'llama',
    hidden_size: 32,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    intermediate_size: 48,
    vocab_size: tokens.length,
    max_position_embeddings: 256,
    rms_norm_eps: 1e-5,
    rope_theta: 5000,
    hidden_act: 'silu',
    attention_bias: false,
    tie_word_embeddings: true,
    bos_token_id: 1,
    eos_token_id: 2,
  });
  json('tokenizer.json', {
    added_tokens: [0, 1, 2].map((id) => ({ id, content: tokens[id], special: true })),
    normalizer: { type: 'Replace', pattern: { String: ' ' }, content: '\u2581' },
    pre_tokenizer: null,
    post_processor: null,
    decoder: {
      type: 'Sequence',
      decoders: [{ type: 'Replace', pattern: { String: '\u2581' }, content: ' ' }],
    },
    model: {
      type: 'BPE',
      unk_token: '<unk>',
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: [],
    },
  });

  const shapes: [string, number[]][] = [
    ['model.embed_tokens.weight', [tokens.length, 32]],
    ['model.norm.weight', [32]],
  ];
  for (let i = 0; i < 2; i++) {
    const at = `model.layers.${i}.`;
    shapes.push(
      [`${at}input_layernorm.weight`, [32]],
      [`${at}self_attn.q_proj.weight`, [32, 32]],
      [`${at}self_attn.k_proj.weight`, [16, 32]],
      [`${at}self_attn.v_proj.weight`, [16, 32]],
      [`${at}self_attn.o_proj.weight`, [32, 32]],
      [`${at}post_attention_layernorm.weight`, [32]],
      [`${at}mlp.gate_proj.weight`, [48, 32]],
      [`${at}mlp.up_proj.weight`, [48, 32]],
      [`${at}mlp.down_proj.weight`, [32, 48]],
    );
  }
  const values = new Map<string, Float32Array>();
  let seed = 1;
  const tensors = shapes.map(([name, shape]) => {
    const count = shape.reduce((a, b) => a * b, 1);
    const drawn = Float32Array.from({ length: count }, () => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      return seed / 2 ** 32 - 0.5;
    });
    const data = encode(dtype, drawn);
    values.set(name, decode(dtype, data));
    return { name, shape, data };
  });

  const map: Record<string, string> = {};
  for (let f = 0; f < files; f++) {
    const own = tensors.filter((_, i) => i % files === f);
    const file = files === 1 ? 'model.safetensors' : `model-0000${f + 1}-of-0000${files}.safetensors`;
    for (const { name } of own) map[name] = file;
    const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
    let offset = 0;
    for (const { name, shape, data } of own) {
      header[name] = { dtype: label, shape, data_offsets: [offset, offset + data.length] };
      offset += data.length;
    }
    const text = new TextEncoder().encode(JSON.stringify(header));
    const length = new Uint8Array(8);
    new DataView(length.buffer).setBigUint64(0, BigInt(text.length), true);
    writeFileSync(join(folder, file), Buffer.concat([length, text, ...own.map(({ data }) => data)]));
  }
  if (files > 1) json('model.safetensors.index.json', { weight_map: map });
  return values;
}

function encode(dtype: 'F32' | 'F16' | 'BF16', values: Float32Array): Uint8Array {
  if (dtype !== 'BF16') return encodeValues(dtype, values);
  const words = new Uint32Array(values.slice().buffer);
  return new Uint8Array(Uint16Array.from(words, (word) => word >>> 16).buffer);
}

function decode(dtype: 'F32' | 'F16' | 'BF16', data: Uint8Array): Float32Array {
  const buffer = data.slice().buffer;
  if (dtype === 'F32') return new Float32Array(buffer);
  const halves = new Uint16Array(buffer);
  if (dtype === 'F16') return Float32Array.from(halves, halfToFloat);
  return new Float32Array(Uint32Array.from(halves, (half) => half << 16).buffer);
}
