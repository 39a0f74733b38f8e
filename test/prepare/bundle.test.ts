import { spawn } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as v from 'valibot';
import { afterAll, beforeEach, describe, expect, test } from 'vitest';
import { CorruptDataError, UnsupportedModelError } from '../../src/core/errors.ts';
import { unpackWeight } from '../../src/kernels/weights.ts';
import { PREPARER_VERSION, readBundleManifest, writeBundle } from '../../src/prepare/bundle.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { type BundleForm, chooseForm } from '../../src/prepare/forms.ts';
import { llamaGraph, llamaWeights } from '../../src/prepare/llama-graph.ts';
import { decodeOnnx } from '../../src/prepare/onnx.ts';
import { openModel } from '../../src/prepare/open-model.ts';
import { ShardWriter } from '../../src/prepare/shards.ts';
import { verifyBundle } from '../../src/prepare/verify.ts';
import { type Manifest, manifestSchema } from '../../src/runtime/manifest.ts';
import { type TinyOptions, writeTinyGguf } from '../helpers/tiny-gguf.ts';

const folder = mkdtempSync(join(tmpdir(), 'adkvc-bundle-'));
afterAll(() => rmSync(folder, { recursive: true }));
let fresh = 0;
let out: string;
beforeEach(() => {
  out = join(folder, `bundle-${fresh++}`);
});

const model = join(folder, 'tiny.gguf');
async function prepare(options: TinyOptions = {}, form: BundleForm = 'compact', to = out, file = model) {
  writeTinyGguf(file, options);
  const source = await openModel(file);
  try {
    return await writeBundle(source, to, { form });
  } finally {
    await source.close();
  }
}

const files = (at: string): Record<string, string> =>
  Object.fromEntries(
    readdirSync(at)
      .sort()
      .map((file) => [file, readFileSync(join(at, file)).toString('base64')]),
  );

function weight(at: string, manifest: Manifest, name: string): Float32Array {
  const { form, shape, parts } = manifest.tensors[name]!;
  const bytes = Buffer.concat(
    parts.map((p) =>
      readFileSync(join(at, manifest.shards[p.shard]!.file)).subarray(p.offset, p.offset + p.bytes),
    ),
  );
  const [n, k] = shape.length === 1 ? [1, shape[0]!] : [shape[0]!, shape[1]!];
  return unpackWeight(form, new Uint8Array(bytes), n, k);
}

describe('a bundle', () => {
  test.each(['compact', 'exact'] as const)('%s: whole, valid, deterministic', async (form) => {
    const { manifest, written } = await prepare({}, form);
    expect(written).toBe(true);
    expect(v.parse(manifestSchema, JSON.parse(readFileSync(join(out, 'manifest.json'), 'utf8')))).toEqual(
      manifest,
    );
    await verifyBundle(folderSource(out));
    const forms = new Set(Object.values(manifest.tensors).map((t) => t.form));
    expect([...forms].sort()).toEqual(form === 'exact' ? ['f32', 'q4_1', 'q8_0'] : ['f32', 'q4r', 'q6h']);

    const again = `${out}-again`;
    await prepare({}, form, again);
    expect(files(again)).toEqual(files(out));
  });

  test('holds the stored values exactly, q and k rows in rotate-half order', async () => {
    writeTinyGguf(model, { matrix: 'F32', embedding: 'F32' });
    const source = await openModel(model);
    const { manifest } = await writeBundle(source, out, { form: 'exact' });
    for (const tensor of source.tensors) {
      const stored = new Float32Array((await tensor.read()).slice().buffer);
      expect(weight(out, manifest, tensor.name)).toEqual(stored);
    }
    await source.close();
    // Row 2j + h of the file is row j + h * 8 of the bundle (head size 16).
    const { openGguf } = await import('../../src/prepare/gguf.ts');
    const gguf = await openGguf(model);
    for (const [name, ours, heads] of [
      ['blk.1.attn_q.weight', 'layers.1.q_proj', 4],
      ['blk.1.attn_k.weight', 'layers.1.k_proj', 2],
    ] as const) {
      const stored = new Float32Array((await gguf.read(gguf.tensors.get(name)!)).slice().buffer);
      const bundled = weight(out, manifest, ours);
      for (let row = 0; row < heads * 16; row++) {
        const inHead = row % 16;
        const from = row - inHead + (inHead < 8 ? 2 * inHead : 2 * (inHead - 8) + 1);
        expect(bundled.subarray(row * 64, row * 64 + 64)).toEqual(stored.subarray(from * 64, from * 64 + 64));
      }
    }
    await gguf.close();
  });

  test('of quantised sources, the exact form equals the dequantised source and the compact form is near it', async () => {
    const exact = await prepare({}, 'exact');
    const compactOut = `${out}-compact`;
    const compact = await prepare({}, 'compact', compactOut);
    for (const { name, role } of llamaWeights(exact.manifest.model, true)) {
      const a = weight(out, exact.manifest, name);
      const b = weight(compactOut, compact.manifest, name);
      let error = 0;
      let power = 0;
      a.forEach((x, i) => {
        error += (x - b[i]!) ** 2;
        power += x ** 2;
      });
      // 8-bit scales of 4-bit blocks, and 6 bits after a rotation: noise of about 0.5 % and 3 % of a deviation.
      expect(Math.sqrt(error / power), name).toBeLessThan(
        role === 'norm' ? 1e-9 : role === 'matrix' ? 0.02 : 0.05,
      );
    }
  });

  test('is left alone when it is whole, and made anew when anything differs', async () => {
    await prepare();
    const before = statSync(join(out, 'manifest.json')).mtimeMs;
    expect((await prepare()).written).toBe(false);
    expect(statSync(join(out, 'manifest.json')).mtimeMs).toBe(before);
    expect((await prepare({ seed: 2 })).written).toBe(true);
    expect((await prepare({ seed: 2 }, 'exact')).written).toBe(true);
    // A file that is missing or short.
    truncateSync(join(out, 'weights-00.bin'), 100);
    expect((await prepare({ seed: 2 }, 'exact')).written).toBe(true);
    rmSync(join(out, 'tokenizer.json'));
    expect((await prepare({ seed: 2 }, 'exact')).written).toBe(true);
    // Another preparer.
    const manifest = JSON.parse(readFileSync(join(out, 'manifest.json'), 'utf8'));
    writeFileSync(
      join(out, 'manifest.json'),
      JSON.stringify({ ...manifest, preparerVersion: PREPARER_VERSION + 1 }),
    );
    expect((await prepare({ seed: 2 }, 'exact')).written).toBe(true);
    expect((await prepare({ seed: 2 }, 'exact')).written).toBe(false);
    await verifyBundle(folderSource(out));
  });

  test('has a fingerprint of what decides results, not of names', async () => {
    const { manifest } = await prepare();
    const renamed = await prepare(
      { metadata: { 'general.name': 'other' } },
      'compact',
      `${out}-a`,
      `${model}.b.gguf`,
    );
    expect(renamed.manifest.fingerprint).toBe(manifest.fingerprint);
    expect(renamed.manifest.source.file).not.toBe(manifest.source.file);
    const changes: [string, TinyOptions][] = [
      ['weights', { seed: 3 }],
      ['rope', { ropeTheta: 500 }],
      ['template', { metadata: { 'tokenizer.chat_template': '{{ messages }}' } }],
    ];
    for (const [what, options] of changes)
      expect((await prepare(options, 'compact', `${out}-${what}`)).manifest.fingerprint, what).not.toBe(
        manifest.fingerprint,
      );
    expect((await prepare({}, 'exact', `${out}-exact`)).manifest.fingerprint).not.toBe(manifest.fingerprint);
  });

  test('refuses a source with another checksum than expected', async () => {
    writeTinyGguf(model);
    const source = await openModel(model);
    const attempt = writeBundle(source, out, { form: 'compact', expectSha256: '0'.repeat(64) });
    await expect(attempt).rejects.toThrow(UnsupportedModelError);
    await expect(attempt).rejects.toThrow(
      new RegExp(`tiny.gguf has sha256 ${source.source.sha256}, expected 0000`),
    );
    expect(existsSync(out)).toBe(false);
    await source.close();
  });

  test('tells progress in source bytes', async () => {
    writeTinyGguf(model);
    const source = await openModel(model);
    const seen: [number, number][] = [];
    await writeBundle(source, out, {
      form: 'compact',
      onProgress: (done, total) => seen.push([done, total]),
    });
    const total = source.tensors.reduce((sum, t) => sum + t.bytes, 0);
    expect(seen[0]).toEqual([0, total]);
    expect(seen.at(-1)).toEqual([total, total]);
    expect(seen).toHaveLength(source.tensors.length + 1);
    await source.close();
  });
});

describe('an interrupted preparation', () => {
  const script = (kill: boolean) => `
    import { openModel } from ${JSON.stringify(join(import.meta.dirname, '../../src/prepare/open-model.ts'))};
    import { writeBundle } from ${JSON.stringify(join(import.meta.dirname, '../../src/prepare/bundle.ts'))};
    const [model, out] = process.argv.slice(-2);
    const source = await openModel(model);
    await writeBundle(source, out, { form: 'compact', onProgress: (done, total) => {
      if (${kill} && done > total / 2) process.kill(process.pid, 'SIGKILL');
    } });
    await source.close();`;
  const run = (kill: boolean) =>
    new Promise<number | string | null>((resolve) => {
      spawn(process.execPath, ['--input-type=module-typescript', '-e', script(kill), '--', model, out], {
        stdio: ['ignore', 'inherit', 'inherit'],
      }).on('exit', (code, signal) => resolve(signal ?? code));
    });
  const beside = () => readdirSync(folder).filter((name) => name.startsWith(`${out.split('/').at(-1)}.tmp-`));

  test('killed in the middle leaves no bundle, and the next one sweeps up', async () => {
    writeTinyGguf(model);
    expect(await run(true)).toBe('SIGKILL');
    expect(existsSync(out)).toBe(false);
    expect(beside()).toHaveLength(1);
    expect(await run(false)).toBe(0);
    expect(beside()).toHaveLength(0);
    await verifyBundle(folderSource(out));
  });

  test('killed in the middle leaves an older bundle as it was', async () => {
    await prepare({ seed: 8 });
    const before = files(out);
    writeTinyGguf(model);
    expect(await run(true)).toBe('SIGKILL');
    expect(files(out)).toEqual(before);
  });

  test('two at once give one whole bundle', async () => {
    writeTinyGguf(model);
    expect(await Promise.all([run(false), run(false), run(false)])).toEqual([0, 0, 0]);
    await verifyBundle(folderSource(out));
    expect(beside()).toHaveLength(0);
  });

  test('a failing read leaves nothing behind', async () => {
    writeTinyGguf(model);
    const source = await openModel(model);
    const tensors = source.tensors.map((t, i) =>
      i < 5
        ? t
        : {
            ...t,
            read: async () => {
              throw new Error('disk');
            },
          },
    );
    await expect(writeBundle({ ...source, tensors }, out, { form: 'compact' })).rejects.toThrow('disk');
    expect(existsSync(out)).toBe(false);
    expect(beside()).toHaveLength(0);
    await source.close();
  });

  test('a folder without a valid manifest is no bundle', async () => {
    await prepare();
    const manifest = readFileSync(join(out, 'manifest.json'), 'utf8');
    for (const damage of [manifest.slice(0, 500), '{}', manifest.replace('"version": 1', '"version": 99')]) {
      writeFileSync(join(out, 'manifest.json'), damage);
      expect(await readBundleManifest(out)).toBeUndefined();
    }
    writeFileSync(join(out, 'manifest.json'), manifest);
    expect(await readBundleManifest(out)).toBeDefined();
    renameSync(join(out, 'model.onnx'), join(out, 'elsewhere.onnx'));
    expect(await readBundleManifest(out)).toBeUndefined();
  });
});

describe('verifying', () => {
  test('names the damaged file', async () => {
    await prepare();
    for (const file of ['weights-00.bin', 'tokenizer.json', 'tokenizer.bin', 'model.onnx']) {
      const whole = readFileSync(join(out, file));
      const damaged = Buffer.from(whole);
      damaged[damaged.length >> 1]! ^= 1;
      writeFileSync(join(out, file), damaged);
      const error = await verifyBundle(folderSource(out)).catch((e: unknown) => e);
      expect(error).toBeInstanceOf(CorruptDataError);
      expect((error as Error).message).toContain(file);
      writeFileSync(join(out, file), whole.subarray(0, -1));
      await expect(verifyBundle(folderSource(out))).rejects.toThrow(CorruptDataError);
      rmSync(join(out, file));
      await expect(verifyBundle(folderSource(out))).rejects.toThrow(new RegExp(`${file} cannot be read`));
      writeFileSync(join(out, file), whole);
    }
    await verifyBundle(folderSource(out));
  });
});

describe('shards', () => {
  test('a tensor is whole in one shard, or fills shards of its own', async () => {
    mkdirSync(out);
    const shards = new ShardWriter(out, 64);
    const fill = (n: number, byte: number) => new Uint8Array(n).fill(byte);
    expect(await shards.write(fill(20, 1))).toEqual([{ shard: 0, offset: 0, bytes: 20 }]);
    expect(await shards.write(fill(32, 2))).toEqual([{ shard: 0, offset: 32, bytes: 32 }]);
    expect(await shards.write(fill(1, 3))).toEqual([{ shard: 1, offset: 0, bytes: 1 }]);
    expect(await shards.write(fill(150, 4))).toEqual([
      { shard: 2, offset: 0, bytes: 64 },
      { shard: 3, offset: 0, bytes: 64 },
      { shard: 4, offset: 0, bytes: 22 },
    ]);
    expect(await shards.write(fill(32, 5))).toEqual([{ shard: 4, offset: 32, bytes: 32 }]);
    const written = await shards.finish();
    expect(written.map((s) => s.bytes)).toEqual([64, 1, 64, 64, 64]);
    expect([...readFileSync(join(out, written[4]!.file))]).toEqual([
      ...fill(22, 4),
      ...fill(10, 0),
      ...fill(32, 5),
    ]);
  });
});

describe('the graph', () => {
  test.each([{ untied: false }, { untied: true }])('is what model.onnx says: %j', async (options) => {
    const { manifest } = await prepare(options);
    const { graph, weights } = decodeOnnx(readFileSync(join(out, 'model.onnx')));
    expect(graph.inputs).toEqual(manifest.graph.inputs);
    expect(graph.outputs).toEqual(['logits']);
    const rounded = manifest.graph.nodes.map((node) => ({
      ...node,
      attributes: Object.fromEntries(
        Object.entries(node.attributes).map(([k, a]) => [k, typeof a === 'number' ? Math.fround(a) : a]),
      ),
    }));
    expect(graph.nodes).toEqual(rounded);
    expect(Object.keys(weights)).toEqual(Object.keys(manifest.tensors));
    for (const [name, { form, shape, external }] of Object.entries(weights)) {
      const tensor = manifest.tensors[name]!;
      expect({ form, shape }).toEqual({ form: tensor.form, shape: tensor.shape });
      const [part] = tensor.parts;
      expect(external).toEqual({
        location: manifest.shards[part!.shard]!.file,
        offset: String(part!.offset),
        length: String(part!.bytes),
      });
    }
    expect('lm_head' in weights).toBe(options.untied);
    expect(manifest.graph.nodes.at(-1)!.inputs[1]).toBe(options.untied ? 'lm_head' : 'embed_tokens');
  });

  test('every value is made before it is read, every weight is read', () => {
    const config = {
      name: 'x',
      architecture: 'llama' as const,
      layers: 3,
      hidden: 64,
      heads: 4,
      kvHeads: 2,
      headDim: 16,
      ffn: 96,
      vocab: 300,
      contextLength: 64,
      ropeTheta: 1e4,
      rmsEps: 1e-5,
      attentionScale: 0.25,
    };
    const graph = llamaGraph(config, true, (name) => (name.endsWith('down_proj') ? 'f32' : 'q4r'));
    const weights = new Set(llamaWeights(config, true).map((w) => w.name));
    const known = new Set([...graph.inputs, ...weights]);
    const read = new Set<string>();
    for (const node of graph.nodes) {
      for (const input of node.inputs) {
        expect(known.has(input), `${node.name} reads ${input}`).toBe(true);
        read.add(input);
      }
      for (const output of node.outputs) known.add(output);
    }
    for (const name of weights) expect(read.has(name), name).toBe(true);
    expect(graph.nodes).toHaveLength(1 + 3 * 15 + 2);
    expect(new Set(graph.nodes.map((n) => n.op))).toEqual(
      new Set([
        'Gather',
        'SimplifiedLayerNormalization',
        'MatMulNBits',
        'MatMul',
        'GroupQueryAttention',
        'Add',
        'Sigmoid',
        'Mul',
      ]),
    );
  });
});

test.each([
  ['exact', 'matrix', 'Q4_1', 576, 'q4_1'],
  ['exact', 'matrix', 'Q4_0', 576, 'q4_1'],
  ['exact', 'embedding', 'Q8_0', 576, 'q8_0'],
  ['exact', 'matrix', 'F16', 576, 'f32'],
  ['compact', 'matrix', 'Q4_1', 576, 'q4r'],
  ['compact', 'matrix', 'Q4_0', 96, 'q4r'],
  ['compact', 'matrix', 'Q8_0', 576, 'q6h'],
  ['compact', 'matrix', 'Q8_0', 96, 'q8_0'],
  ['compact', 'embedding', 'Q8_0', 576, 'q6h'],
  ['compact', 'embedding', 'Q4_1', 96, 'q4_1'],
  ['compact', 'matrix', 'F32', 172, 'f32'],
  ['compact', 'norm', 'F32', 576, 'f32'],
] as const)('%s: a %s of %s with k = %i is kept as %s', (bundle, role, type, k, form) => {
  expect(chooseForm(bundle, role, type, k)).toBe(form);
});
