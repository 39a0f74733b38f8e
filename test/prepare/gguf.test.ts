import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { InvalidInputError, UnsupportedModelError } from '../../src/core/errors.ts';
import { openGguf } from '../../src/prepare/gguf.ts';
import { openLlamaGguf } from '../../src/prepare/llama-gguf.ts';
import { f32, GGML_TYPES, type TinyOptions, tinyGguf, u32, writeTinyGguf } from '../helpers/tiny-gguf.ts';

const folder = mkdtempSync(join(tmpdir(), 'adkvc-gguf-'));
afterAll(() => rmSync(folder, { recursive: true }));
const path = join(folder, 'model.gguf');

const refusal = async (options: TinyOptions): Promise<string> => {
  writeTinyGguf(path, options);
  const error = await openLlamaGguf(path).then(
    () => undefined,
    (e: unknown) => e,
  );
  expect(error).toBeInstanceOf(UnsupportedModelError);
  return (error as Error).message;
};

describe('a GGUF file', () => {
  test('gives its tables and tensors', async () => {
    writeTinyGguf(path);
    const gguf = await openGguf(path);
    expect(gguf.metadata.string('general.architecture')).toBe('llama');
    expect(gguf.metadata.number('llama.block_count')).toBe(2);
    expect(gguf.tensors.size).toBe(2 + 2 * 9);
    const norm = gguf.tensors.get('output_norm.weight')!;
    expect(norm).toMatchObject({ type: 'F32', shape: [64], bytes: 256 });
    const values = new Float32Array((await gguf.read(norm)).buffer);
    expect(Math.abs(values.reduce((a, b) => a + b, 0) / 64 - 1)).toBeLessThan(0.1);
    await gguf.close();
  });

  test('reads every supported type, tied and untied', async () => {
    for (const matrix of Object.keys(GGML_TYPES) as (keyof typeof GGML_TYPES)[])
      for (const untied of [false, true]) {
        writeTinyGguf(path, { matrix, embedding: matrix, untied });
        const source = await openLlamaGguf(path);
        expect(source.tied).toBe(!untied);
        expect(source.config).toMatchObject({ layers: 2, hidden: 64, heads: 4, kvHeads: 2, headDim: 16 });
        for (const tensor of source.tensors) expect(await tensor.read()).toHaveLength(tensor.bytes);
        await source.close();
      }
  });
});

describe('a file that cannot be used is refused by what is wrong with it', () => {
  test('no file', async () => {
    await expect(openGguf(join(folder, 'none.gguf'))).rejects.toThrow(InvalidInputError);
    await expect(openGguf(folder)).rejects.toThrow(/no model file at/);
  });

  test.each([
    ['', /starts with ""/],
    ['GG', /starts with "GG"/],
    ['PK\u0003\u0004 something else entirely', /is not a GGUF file/],
  ])('foreign magic %j', async (content, message) => {
    writeFileSync(path, content);
    const error = await openGguf(path).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(UnsupportedModelError);
    expect((error as Error).message).toMatch(message);
  });

  test('truncated anywhere', async () => {
    const whole = tinyGguf();
    // In the magic, counts, metadata, tensor table, padding and data: every length up to 64, then a sample.
    const lengths = [
      ...Array(64).keys(),
      ...Array.from({ length: 60 }, (_, i) => Math.floor((whole.length * i) / 60)),
    ];
    for (const length of [...lengths, whole.length - 33, whole.length - 64].filter((n) => n < whole.length)) {
      writeFileSync(path, whole);
      truncateSync(path, length);
      const error = await openLlamaGguf(path).catch((e: unknown) => e);
      expect(error, `cut to ${length} bytes`).toBeInstanceOf(UnsupportedModelError);
      if (length >= 4) expect((error as Error).message).toMatch(/truncated/);
    }
  });

  test('damaged headers never hang, crash or pass a type error on', async () => {
    const whole = tinyGguf();
    for (let i = 0; i < 200; i++) {
      const bytes = whole.slice();
      // Within the counts, keys and lengths of the first kilobyte.
      const at = (i * 37) % 1024;
      bytes[at] = bytes[at]! ^ (1 << (i % 8));
      writeFileSync(path, bytes);
      const error = await openLlamaGguf(path).then(
        (source) => source.close(),
        (e: unknown) => e,
      );
      if (error !== undefined) expect(error).toBeInstanceOf(UnsupportedModelError);
    }
  });

  test.each<[string, TinyOptions, RegExp]>([
    ['architecture', { metadata: { 'general.architecture': 'qwen2' } }, /architecture is qwen2/],
    [
      'no architecture',
      { metadata: { 'general.architecture': undefined } },
      /general\.architecture is missing/,
    ],
    [
      'type',
      { editTensors: (all) => all.map((t) => (t.name === 'blk.1.ffn_up.weight' ? { ...t, type: 12 } : t)) },
      /blk\.1\.ffn_up\.weight has type Q4_K/,
    ],
    [
      'unknown type',
      { editTensors: (all) => all.map((t) => (t.name === 'blk.0.attn_q.weight' ? { ...t, type: 999 } : t)) },
      /blk\.0\.attn_q\.weight has type type 999/,
    ],
    [
      'missing tensor',
      { editTensors: (all) => all.filter((t) => t.name !== 'blk.1.attn_v.weight') },
      /tensor blk\.1\.attn_v\.weight is missing/,
    ],
    [
      'a bias',
      {
        editTensors: (all) => [
          ...all,
          { name: 'blk.0.attn_q.bias', type: 0, shape: [64], data: new Uint8Array(256) },
        ],
      },
      /tensor blk\.0\.attn_q\.bias is not part of/,
    ],
    [
      'a tensor twice',
      { editTensors: (all) => [...all, all.at(-1)!] },
      /tensor output_norm\.weight is listed twice/,
    ],
    [
      'quantised norm',
      {
        editTensors: (all) =>
          all.map((t) => (t.name === 'output_norm.weight' ? { ...t, type: 8, data: new Uint8Array(68) } : t)),
      },
      /output_norm\.weight has type Q8_0; a norm/,
    ],
    [
      'width',
      { metadata: { 'llama.feed_forward_length': u32(96) } },
      /ffn_gate\.weight is \[128, 64\].*\[96, 64\]/,
    ],
    ['layers', { metadata: { 'llama.block_count': u32(3) } }, /tensor blk\.2\.attn_norm\.weight is missing/],
    ['zero', { metadata: { 'llama.block_count': u32(0) } }, /llama\.block_count is 0/],
    ['text for a number', { metadata: { 'llama.block_count': 'two' } }, /llama\.block_count is not a number/],
    [
      'heads',
      { metadata: { 'llama.attention.head_count_kv': u32(3) } },
      /4 query heads do not divide among 3/,
    ],
    ['rope scaling', { metadata: { 'llama.rope.scaling.type': 'yarn' } }, /rope scaling yarn/],
    ['linear rope', { metadata: { 'llama.rope.scale_linear': f32(2) } }, /rope scaling by 2/],
    ['partial rope', { metadata: { 'llama.rope.dimension_count': u32(8) } }, /part of the head/],
    ['experts', { metadata: { 'llama.expert_count': u32(4) } }, /mixtures of experts/],
    ['value size', { metadata: { 'llama.attention.value_length': u32(8) } }, /different sizes/],
    ['vocabulary', { metadata: { 'llama.vocab_size': u32(7) } }, /llama\.vocab_size/],
    ['tokenizer', { metadata: { 'tokenizer.ggml.model': 'llama' } }, /tokenizer model is llama/],
    ['pre-tokenizer', { metadata: { 'tokenizer.ggml.pre': 'qwen2' } }, /pre-tokenizer is qwen2/],
    ['no tokens', { metadata: { 'tokenizer.ggml.tokens': undefined } }, /tokenizer\.ggml\.tokens is missing/],
    ['token types', { metadata: { 'tokenizer.ggml.token_type': [1, 1] } }, /2 token types/],
    [
      'merges',
      { metadata: { 'tokenizer.ggml.merges': ['a b', 'nonsense'] } },
      /merge 0 "a b" names no tokens/,
    ],
    ['no end', { metadata: { 'tokenizer.ggml.eos_token_id': undefined } }, /eos_token_id is missing/],
    ['end', { metadata: { 'tokenizer.ggml.eos_token_id': u32(9999) } }, /end token 9999/],
  ])('%s', async (_, options, message) => {
    expect(await refusal(options)).toMatch(message);
  });
});
