import { cpSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import onnxProto from 'onnx-proto';
import { afterEach, expect, it } from 'vitest';
import { decodeSource } from '../../src/kernels/weights.ts';
import { llamaGraph } from '../../src/prepare/llama-graph.ts';
import { openOnnx } from '../../src/prepare/onnx-source.ts';
import type { ModelSource } from '../../src/prepare/source.ts';
import { interpret, type Value } from '../helpers/graph-interpreter.ts';
import { largestDifference } from '../helpers/run-stages.ts';
import { describeShared, sharedPath } from '../helpers/shared.ts';

const { onnx } = onnxProto;
type Model = onnxProto.onnx.IModelProto;

interface Golden {
  graphs: { graph: string; expected: { prompt: string; last_logits_f32_base64: string }[] }[];
}
interface Prompts {
  prompts: { name: string; ids: number[]; logits_file: string }[];
}
const json = <T>(...parts: string[]): T => JSON.parse(readFileSync(sharedPath(...parts)!, 'utf8')) as T;
const exported = (graph: string): string => sharedPath('models', 'stories260K-onnx', graph)!;

/** Logits of the last position, in float64 from the definitions of the operators: no kernel takes part. */
async function lastLogits(source: ModelSource, ids: readonly number[]): Promise<Float64Array> {
  const weights: Record<string, Value> = {};
  for (const tensor of source.tensors) {
    const [n, k] = tensor.shape.length === 1 ? [1, tensor.shape[0]!] : [tensor.shape[0]!, tensor.shape[1]!];
    const decoded = new Float32Array(n * k);
    decodeSource({ type: tensor.type, data: await tensor.read(), n, k }, decoded);
    weights[tensor.name] = { dims: tensor.shape, data: Float64Array.from(decoded) };
  }
  const graph = llamaGraph(source.config, source.tied, () => 'f32');
  const values = new Map<string, Value>([
    ['input_ids', { dims: [ids.length], data: Float64Array.from(ids) }],
  ]);
  interpret(graph.nodes, values, { weights, ropeTheta: source.config.ropeTheta });
  return values.get('logits')!.data.slice(-source.config.vocab);
}

/** [graph, largest difference of a logit, the reason when it is not rounding alone, tied, source type of q] */
const GRAPHS = [
  ['fp32/model.onnx', 1e-4, '', true],
  ['int4-asym-f32embed/model.onnx', 1e-4, '', false],
  ['int8-qkv-unfused/model.onnx', 1e-4, '', false],
  ['transformersjs/onnx/model.onnx', 1e-4, '', true],
  ['transformersjs/onnx/model_q4.onnx', 1e-4, '', false],
  ['int4/model.onnx', 0.4, 'onnxruntime rounds activations to 8 bits there (accuracy_level 4)', true],
  ['fp16-webgpu/model.onnx', 0.1, 'onnxruntime computes in float16', true],
  ['transformersjs/onnx/model_fp16.onnx', 0.1, 'onnxruntime computes in float16', true],
  [
    'transformersjs/onnx/model_quantized.onnx',
    1.6,
    'onnxruntime rounds activations to 8 bits per tensor',
    true,
  ],
] as const;

describeShared('ONNX exports of stories260K', () => {
  it.each(GRAPHS)('%s: every logit within %d of onnxruntime %s', async (graph, tolerance, _reason, tied) => {
    const source = await openOnnx(exported(graph));
    expect(source.tied).toBe(tied);
    const { prompts } = json<Prompts>('golden', 'stories260K.json');
    const golden = json<Golden>('golden', 'stories260K-onnx.json').graphs.find((g) => g.graph === graph)!;
    expect(golden.expected.length).toBeGreaterThan(3);
    for (const { prompt, last_logits_f32_base64 } of golden.expected) {
      const bytes = Uint8Array.from(Buffer.from(last_logits_f32_base64, 'base64'));
      const logits = await lastLogits(source, prompts.find((p) => p.name === prompt)!.ids);
      expect(largestDifference(logits, new Float32Array(bytes.buffer)), prompt).toBeLessThan(tolerance);
    }
  });

  it('fp32-head8, which onnxruntime refuses to run: every logit within 1e-4 of the float golden', async () => {
    const source = await openOnnx(exported('fp32-head8'));
    expect(source.config).toMatchObject({ headDim: 8, heads: 8, kvHeads: 4, ropeTheta: 10000, rmsEps: 1e-5 });
    for (const { ids, logits_file } of json<Prompts>('golden', 'stories260K.json').prompts) {
      const bytes = Uint8Array.from(readFileSync(sharedPath('golden', logits_file)!));
      const golden = new Float32Array(bytes.buffer, 128).slice(-512);
      expect(largestDifference(await lastLogits(source, ids), golden), logits_file).toBeLessThan(1e-4);
    }
  });

  it('reads shapes, tokenizer and ends: a head size that is not hidden / heads, symbolic dimensions', async () => {
    const source = await openOnnx(exported('fp32'));
    expect(source.config).toEqual({
      ...{ name: 'fp32', architecture: 'llama', layers: 5, hidden: 64, heads: 8, kvHeads: 4, headDim: 16 },
      ...{ ffn: 172, vocab: 512, contextLength: 512, ropeTheta: 10000, rmsEps: 1e-5, attentionScale: 0.25 },
    });
    expect(source).toMatchObject({ eosIds: [2], bosId: 1, chatTemplate: null });
    expect(source.source).toMatchObject({
      file: 'model.onnx',
      sha256: expect.stringMatching(/^[0-9a-f]{64}$/),
    });
    expect((source.tokenizer.model as { type: string }).type).toBe('BPE');
  });

  it('takes a folder of the transformers.js layout, and a file in it', async () => {
    const folder = await openOnnx(exported('transformersjs'));
    const file = await openOnnx(exported('transformersjs/onnx/model.onnx'));
    expect(folder.source).toEqual(file.source);
    expect(folder.source.file).toBe('onnx/model.onnx');
    expect(folder.config).toMatchObject({ headDim: 8, name: 'transformersjs' });
  });

  it('reads another activation of the gate, for onnxruntime to run', async () => {
    const source = await openOnnx(
      altered('fp32', (model) => {
        // Mul(g, Sigmoid(g)) becomes LeakyRelu(g).
        for (const sigmoid of model.graph!.node!.filter((n) => n.opType === 'Sigmoid')) {
          const product = model.graph!.node!.find((n) => n.input!.includes(sigmoid.output![0]!))!;
          const alpha = { name: 'alpha', type: onnx.AttributeProto.AttributeType.FLOAT, f: 0.25 };
          Object.assign(product, { opType: 'LeakyRelu', input: [...sigmoid.input!], attribute: [alpha] });
        }
      }),
    );
    expect(source.activation).toEqual({ op: 'LeakyRelu', domain: '', attributes: { alpha: 0.25 } });
    expect((await openOnnx(exported('fp32'))).activation).toBeUndefined();
  });

  it('reads rotary embeddings that stand before the attention instead of in it', async () => {
    const name = 'int8-qkv-unfused';
    const source = await openOnnx(altered(name, spellRotation));
    const { prompts } = json<Prompts>('golden', 'stories260K.json');
    const { ids } = prompts.find((p) => p.name === 'p1')!;
    expect(await lastLogits(source, ids)).toEqual(await lastLogits(await openOnnx(exported(name)), ids));
  });

  it('keeps 4- and 8-bit weights as they are where binary16 holds their scales', async () => {
    const source = await openOnnx(
      altered('int4-asym-f32embed', (model) => {
        // The exporter's scales are float32: round each to binary16's precision, so that no value needs more.
        for (const t of model.graph!.initializer!)
          if (t.name!.endsWith('_scales'))
            inline(t, 'int4-asym-f32embed', (x) => 2 ** Math.round(Math.log2(x)));
      }),
    );
    const types = new Map(source.tensors.map((t) => [t.name, t.type]));
    expect(types.get('layers.0.q_proj')).toBe('Q4_1');
    // 172 columns are no whole blocks of 32.
    expect(types.get('layers.0.down_proj')).toBe('F32');
    expect(types.get('embed_tokens')).toBe('F32');
  });

  const cases: [string, string, (model: Model) => void, RegExp][] = [
    [
      'a sliding window',
      'fp32',
      set('GroupQueryAttention', 'local_window_size', { i: 128 }),
      /attn.GroupQueryAttention.* sliding window/,
    ],
    ['capped scores', 'fp32', set('GroupQueryAttention', 'softcap', { f: 30 }), /softcap/],
    [
      'another activation',
      'fp32',
      (m) => (node(m, 'Sigmoid').opType = 'Tanh'),
      /stands where a llama decoder has a feed-forward part/,
    ],
    [
      'a gate that scales another value',
      'fp32',
      (m) => {
        const [, a, b] = m.graph!.node!.filter((n) => n.opType === 'Sigmoid');
        a!.input = b!.input;
      },
      /stands where/,
    ],
    [
      'computed weights',
      'fp32',
      (m) => (m.graph!.initializer = m.graph!.initializer!.filter((t) => !t.name!.includes('o_proj'))),
      /stands where a llama decoder has/,
    ],
    [
      'a rotary table of another base at far positions',
      'fp32',
      (m) => {
        const t = m.graph!.initializer!.find((i) => i.name === 'cos_cache')!;
        inline(t, 'fp32', (x, i) => (i > 3000 ? 1 : x));
      },
      /rotary table/,
    ],
    [
      'a group index',
      'int4',
      (m) => node(m, 'MatMulNBits').input!.push('', 'lm_head.MatMul.weight_Q4'),
      /g_idx/,
    ],
    ['6-bit codes', 'int4', set('MatMulNBits', 'bits', { i: 6 }), /6-bit codes/],
    [
      'another epsilon in one norm',
      'fp32',
      set('SimplifiedLayerNormalization', 'epsilon', { f: 1e-3 }),
      /differs from the other layers/,
    ],
    [
      'no mask',
      'transformersjs/onnx/model.onnx',
      (m) => {
        const s = m.graph!.node!.find((n) => n.opType === 'Softmax')!;
        const add = m.graph!.node!.find((n) => n.output![0] === s.input![0])!;
        s.input![0] = add.input![0]!;
      },
      /no mask/,
    ],
    [
      'a product that adds nothing known',
      'transformersjs/onnx/model.onnx',
      (m) => {
        const add = m.graph!.node!.find((n) => n.name === '/model/layers.2/Add')!;
        add.opType = 'Sub';
      },
      /\/model\/layers.2\/Add \(Sub\) stands where/,
    ],
    [
      'external data outside of the folder',
      'fp32',
      (m) => {
        for (const t of m.graph!.initializer!)
          t.externalData!.find((e) => e.key === 'location')!.value = '../model.onnx.data';
      },
      /which is not beside the model/,
    ],
  ];
  it.each(cases)('refuses %s by name (%s)', async (_, from, change, message) => {
    const open = async () => {
      const source = await openOnnx(altered(from, change));
      for (const tensor of source.tensors) await tensor.read();
    };
    await expect(open()).rejects.toMatchObject({
      code: 'unsupported_model',
      message: expect.stringMatching(message),
    });
  });

  it('refuses a graph without its embedding by the input that stands in its place', async () => {
    await expect(openOnnx(exported('fp32-embeds-excluded'))).rejects.toMatchObject({
      code: 'unsupported_model',
      message: expect.stringMatching(/inputs_embeds in place of input_ids.*exclude_embeds/),
    });
  });

  it('refuses cut-off files and folders without a model', async () => {
    const folder = altered('fp32', () => {});
    truncateSync(join(folder, 'model.onnx.data'), 100_000);
    await expect(
      openOnnx(folder).then(async (source) => {
        for (const t of source.tensors) await t.read();
      }),
    ).rejects.toMatchObject({ code: 'corrupt_data', message: expect.stringMatching(/model\.onnx\.data/) });
    truncateSync(join(folder, 'model.onnx'), 20_000);
    await expect(openOnnx(folder)).rejects.toMatchObject({ code: 'corrupt_data' });
    rmSync(join(folder, 'model.onnx'));
    await expect(openOnnx(folder)).rejects.toMatchObject({ code: 'invalid_input' });
    await expect(openOnnx(join(folder, 'nowhere'))).rejects.toMatchObject({ code: 'invalid_input' });
  });
});

const folders: string[] = [];
afterEach(() => {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true, force: true });
});

/** A copy of an export with its graph changed. */
function altered(graph: string, change: (model: Model) => unknown): string {
  const [name, ...rest] = graph.split('/');
  const folder = mkdtempSync(join(tmpdir(), 'adkvc-onnx-'));
  folders.push(folder);
  cpSync(exported(name!), folder, { recursive: true, filter: (path) => !/model_\w+\.onnx$/.test(path) });
  const path = join(folder, ...(rest.length ? rest : ['model.onnx']));
  const model = onnx.ModelProto.decode(readFileSync(path));
  change(model);
  rmSync(path);
  writeFileSync(path, onnx.ModelProto.encode(model).finish());
  return folder;
}
const node = (model: Model, op: string) => model.graph!.node!.find((n) => n.opType === op)!;
function set(op: string, attribute: string, value: { i?: number; f?: number }) {
  return (model: Model): void => {
    Object.assign(node(model, op).attribute!.find((a) => a.name === attribute)!, value);
  };
}
/** GroupQueryAttention with do_rotary becomes RotaryEmbedding, RotaryEmbedding and GroupQueryAttention without it. */
function spellRotation(model: Model): void {
  const nodes = model.graph!.node!;
  for (const attention of nodes.filter((n) => n.opType === 'GroupQueryAttention')) {
    attention.attribute!.find((a) => a.name === 'do_rotary')!.i = 0;
    const input = attention.input!;
    for (const i of [0, 1]) {
      const output = `${input[i]}/rotated`;
      nodes.push({
        name: output,
        opType: 'RotaryEmbedding',
        domain: 'com.microsoft',
        input: [input[i]!, 'position_ids', input[7]!, input[8]!],
        output: [output],
      });
      input[i] = output;
    }
    input[7] = input[8] = '';
  }
}
/** Moves an external float32 tensor into the model, its values changed. */
function inline(
  tensor: onnxProto.onnx.ITensorProto,
  graph: string,
  change: (x: number, i: number) => number,
): void {
  const where = Object.fromEntries(tensor.externalData!.map((e) => [e.key!, e.value!]));
  const data = Uint8Array.from(readFileSync(join(exported(graph), where.location!)));
  const values = new Float32Array(
    data.slice(Number(where.offset), Number(where.offset) + Number(where.length)).buffer,
  );
  tensor.rawData = new Uint8Array(values.map(change).buffer);
  tensor.dataLocation = onnx.TensorProto.DataLocation.DEFAULT;
  tensor.externalData = [];
}
