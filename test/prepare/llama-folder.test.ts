import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeEach, describe, expect, test } from 'vitest';
import { InvalidInputError, UnsupportedModelError } from '../../src/core/errors.ts';
import { loadEngine } from '../../src/engine/load.ts';
import { createTemplate } from '../../src/engine/template.ts';
import { createTokenizer } from '../../src/engine/tokenizer.ts';
import { createReferenceKernels } from '../../src/kernels/reference.ts';
import { unpackWeight } from '../../src/kernels/weights.ts';
import { writeBundle } from '../../src/prepare/bundle.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { openModel } from '../../src/prepare/open-model.ts';
import { verifyBundle } from '../../src/prepare/verify.ts';
import { EXACT_FULL, golden, score } from '../helpers/golden.ts';
import { describeShared, sharedPath } from '../helpers/shared.ts';
import { writeTinyFolder } from '../helpers/tiny-folder.ts';

const root = mkdtempSync(join(tmpdir(), 'adkvc-folder-'));
afterAll(() => rmSync(root, { recursive: true }));
let fresh = 0;
let folder: string;
beforeEach(() => {
  folder = join(root, `model-${fresh++}`);
});

describe('a HuggingFace folder', () => {
  test.each(['F32', 'F16', 'BF16'] as const)('of %s: every value reaches the exact bundle', async (dtype) => {
    const weights = writeTinyFolder(folder, { dtype });
    const source = await openModel(folder);
    expect(source.config).toMatchObject({
      layers: 2,
      hidden: 32,
      heads: 4,
      kvHeads: 2,
      headDim: 8,
      ropeTheta: 5000,
    });
    const out = `${folder}-bundle`;
    const { manifest } = await writeBundle(source, out, { form: 'exact' });
    await source.close();
    await verifyBundle(folderSource(out));
    const shard = readFileSync(join(out, 'weights-00.bin'));
    const names: [string, string][] = [
      ['embed_tokens', 'model.embed_tokens.weight'],
      ['norm', 'model.norm.weight'],
      ['layers.1.q_proj', 'model.layers.1.self_attn.q_proj.weight'],
      ['layers.0.down_proj', 'model.layers.0.mlp.down_proj.weight'],
      ['layers.1.ffn_norm', 'model.layers.1.post_attention_layernorm.weight'],
    ];
    for (const [ours, theirs] of names) {
      const { form, shape, parts } = manifest.tensors[ours]!;
      const { offset, bytes } = parts[0]!;
      const data = new Uint8Array(shard.subarray(offset, offset + bytes));
      const values = unpackWeight(form, data, shape.length === 1 ? 1 : shape[0]!, shape.at(-1)!);
      expect(values, ours).toEqual(weights.get(theirs));
    }
  });

  test('with weights in several files', async () => {
    writeTinyFolder(folder);
    const single = await openModel(folder);
    const whole = await Promise.all(single.tensors.map((t) => t.read()));
    await single.close();
    const split = `${folder}-split`;
    writeTinyFolder(split, { files: 3 });
    const source = await openModel(split);
    expect(await Promise.all(source.tensors.map((t) => t.read()))).toEqual(whole);
    await source.close();
  });

  test('its templates, ends and sampling', async () => {
    writeTinyFolder(folder);
    const write = (file: string, value: object) => writeFileSync(join(folder, file), JSON.stringify(value));
    write('generation_config.json', { eos_token_id: [3, 4], do_sample: true, temperature: 0.6, top_p: 0.8 });
    write('tokenizer_config.json', {
      chat_template: [
        { name: 'tool_use', template: 'x' },
        { name: 'default', template: 'y' },
      ],
    });
    const source = await openModel(folder);
    expect(source).toMatchObject({
      eosIds: [3, 4],
      generation: { temperature: 0.6, topP: 0.8, maxTokens: 512 },
      chatTemplate: 'y',
      bosId: null,
    });
    await source.close();
    writeFileSync(join(folder, 'chat_template.jinja'), 'z');
    const other = await openModel(folder);
    expect(other.chatTemplate).toBe('z');
    expect(other.source.sha256).not.toBe(source.source.sha256);
    await other.close();
  });

  const edit = (file: string, change: object) => () => {
    const path = join(folder, file);
    writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, 'utf8')), ...change }));
  };
  test.each<[string, () => void, RegExp]>([
    ['architecture', edit('config.json', { model_type: 'qwen2' }), /the architecture is "qwen2"/],
    [
      'rope',
      edit('config.json', { rope_scaling: { rope_type: 'llama3', factor: 8 } }),
      /rope scaling llama3/,
    ],
    ['activation', edit('config.json', { hidden_act: 'gelu' }), /hidden_act/],
    ['bias', edit('config.json', { attention_bias: true }), /attention_bias/],
    ['width', edit('config.json', { intermediate_size: 40 }), /gate_proj\.weight is \[48, 32\].*\[40, 32\]/],
    ['layers', edit('config.json', { num_hidden_layers: 3 }), /model\.layers\.2\.\S+ is missing/],
    ['fewer layers', edit('config.json', { num_hidden_layers: 1 }), /model\.layers\.1\.\S+ is not part of/],
    ['untied', edit('config.json', { tie_word_embeddings: false }), /lm_head\.weight is missing/],
    ['heads', edit('config.json', { num_key_value_heads: 3 }), /do not divide/],
    ['no config', () => rmSync(join(folder, 'config.json')), /config\.json is missing/],
    ['no tokenizer', () => rmSync(join(folder, 'tokenizer.json')), /tokenizer\.json is missing/],
    ['bad JSON', () => writeFileSync(join(folder, 'config.json'), '{'), /config\.json is not valid JSON/],
    [
      'truncated',
      () => truncateSync(join(folder, 'model.safetensors'), 30_000),
      /truncated: tensor \S+ ends at/,
    ],
    [
      'header cut',
      () => truncateSync(join(folder, 'model.safetensors'), 300),
      /truncated: the header ends at/,
    ],
    ['empty', () => truncateSync(join(folder, 'model.safetensors'), 0), /truncated/],
    [
      'foreign',
      () => writeFileSync(join(folder, 'model.safetensors'), 'not what the name says it is'),
      /is no safetensors file/,
    ],
  ])('that cannot be used is refused: %s', async (_, damage, message) => {
    writeTinyFolder(folder);
    damage();
    const error = await openModel(folder).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(UnsupportedModelError);
    expect((error as Error).message).toMatch(message);
  });

  test('a tokenizer that cannot be used is refused before anything is written', async () => {
    writeTinyFolder(folder);
    edit('tokenizer.json', { model: { type: 'WordPiece', vocab: {} } })();
    const source = await openModel(folder);
    await expect(writeBundle(source, `${folder}-out`, { form: 'exact' })).rejects.toThrow(
      /tokenizer\.json: model/,
    );
    expect(existsSync(`${folder}-out`)).toBe(false);
    await source.close();
  });

  test('one of several weight files missing', async () => {
    writeTinyFolder(folder, { files: 2 });
    rmSync(join(folder, 'model-00002-of-00002.safetensors'));
    await expect(openModel(folder)).rejects.toThrow(/model-00002-of-00002\.safetensors is missing/);
  });

  test('a type that no kernel reads', async () => {
    writeTinyFolder(folder, { label: 'F64' });
    await expect(openModel(folder)).rejects.toThrow(/tensor \S+ has type F64/);
  });
});

describeShared('stories260K', () => {
  interface Golden {
    prompts: { text: string; ids: number[]; greedy: { text: string; generated_ids: number[] } }[];
  }

  test('gives the golden ids and texts', async () => {
    const source = await openModel(sharedPath('models', 'stories260K-hf')!);
    expect(source.config).toMatchObject({ headDim: 8, heads: 8, kvHeads: 4, vocab: 512, ffn: 172 });
    expect(source).toMatchObject({ bosId: 1, eosIds: [2], tied: true });
    const tokenizer = createTokenizer(source.tokenizer);
    const { prompts } = JSON.parse(readFileSync(sharedPath('golden', 'stories260K.json')!, 'utf8')) as Golden;
    let texts = 0;
    for (const { text, ids, greedy } of prompts) {
      // The longest prompts are given by their ids alone.
      if (typeof text === 'string') {
        texts++;
        expect([source.bosId, ...tokenizer.encode(text)]).toEqual(ids);
        expect(tokenizer.decode(ids, { skipSpecials: true })).toBe(text);
      }
      if (!greedy) continue;
      const generated = greedy.generated_ids;
      expect(tokenizer.decode([...ids, ...generated], { skipSpecials: true })).toContain(greedy.text.trim());
      const stream = tokenizer.stream();
      const streamed = generated.map((token) => stream.push(token)).join('') + stream.end();
      expect(streamed).toBe(tokenizer.decode(generated, { skipSpecials: true }));
    }
    expect(texts).toBeGreaterThan(2);
    expect(() => createTemplate(source.chatTemplate, tokenizer, source).render([])).toThrow(
      InvalidInputError,
    );
    await source.close();
  });

  test('computes the golden likelihoods from its exact bundle', async () => {
    const source = await openModel(sharedPath('models', 'stories260K-hf')!);
    await writeBundle(source, folder, { form: 'exact' });
    await source.close();
    const engine = await loadEngine({
      source: folderSource(folder),
      kernels: createReferenceKernels({ maxBytes: 64e6 }),
    });
    const { prompts } = golden('stories260K.json') as { prompts: { ids: number[]; nll: number[] }[] };
    for (const { ids, nll } of prompts) {
      const scored = await score(engine, EXACT_FULL, ids);
      expect(scored.nll).toHaveLength(nll.length);
      // The golden file's tolerance for float32 logits.
      scored.nll.forEach((value, i) => {
        expect(Math.abs(value - nll[i]!)).toBeLessThan(1e-4);
      });
    }
  });

  test('becomes a bundle in both forms', async () => {
    // Its own copy, since the bundle is named by the folder.
    cpSync(sharedPath('models', 'stories260K-hf')!, folder, { recursive: true });
    for (const form of ['exact', 'compact'] as const) {
      const source = await openModel(folder);
      const out = `${folder}-${form}`;
      const { manifest } = await writeBundle(source, out, { form });
      await source.close();
      await verifyBundle(folderSource(out));
      expect(manifest.tensors['layers.0.down_proj']!.form).toBe('f32');
      expect(manifest.tensors['layers.0.up_proj']!.form).toBe(form === 'exact' ? 'f32' : 'q6h');
    }
  });
});
