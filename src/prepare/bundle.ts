import { createHash, randomBytes } from 'node:crypto';
import { mkdir, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import * as v from 'valibot';
import { parseProfile } from '../cache/profile.ts';
import { UnsupportedModelError } from '../core/errors.ts';
import { createTokenizer } from '../engine/tokenizer.ts';
import { encodeTokenizerTables, tokenizerTables } from '../engine/tokenizer-tables.ts';
import type { WeightForm } from '../kernels/kernels.ts';
import { packWeight } from '../kernels/weights.ts';
import { MANIFEST_FORMAT, MANIFEST_VERSION, type Manifest, manifestSchema } from '../runtime/manifest.ts';
import { claimDecoder, partition } from '../runtime/partition.ts';
import { stageModel } from '../runtime/stage-model.ts';
import { type BundleForm, chooseForm } from './forms.ts';
import { llamaGraph, llamaWeights } from './llama-graph.ts';
import { encodeOnnx } from './onnx.ts';
import { ShardWriter } from './shards.ts';
import type { ModelSource } from './source.ts';

/** Raised whenever preparing the same source would give other bytes: bundles of an older preparer are made anew. */
export const PREPARER_VERSION = 3;

const TABLES_FILE = 'tokenizer.bin';

export interface PrepareOptions {
  readonly form: BundleForm;
  /** Refuse a source whose file has another sha256. */
  readonly expectSha256?: string;
  /** Bytes of source weights done, of all. */
  readonly onProgress?: (done: number, total: number) => void;
}

/**
 * Writes the bundle of a model to the folder `out`; a complete one of the same source, form and preparer version is left alone.
 * The bundle appears under its name only when it is whole: it is written to a folder beside, and renamed.
 * Preparing is deterministic: the same source gives the same bytes.
 * @returns the manifest, and whether anything was written
 */
export async function writeBundle(
  source: ModelSource,
  out: string,
  options: PrepareOptions,
): Promise<{ manifest: Manifest; written: boolean }> {
  const { expectSha256: expected } = options;
  if (expected !== undefined && source.source.sha256 !== expected)
    throw new UnsupportedModelError(
      `${source.source.file} has sha256 ${source.source.sha256}, expected ${expected}: the file was changed or damaged`,
      { file: source.source.file, sha256: source.source.sha256, expected },
    );
  const wanted = { sha256: source.source.sha256, form: options.form };
  // Refused now rather than when a host loads it.
  createTokenizer(source.tokenizer);
  const existing = await completeBundle(out, wanted);
  if (existing) return { manifest: existing, written: false };

  const target = resolve(out);
  await mkdir(dirname(target), { recursive: true });
  await sweep(target);
  const temporary = `${target}.tmp-${process.pid}-${randomBytes(4).toString('hex')}`;
  await mkdir(temporary);
  try {
    const manifest = await writeFiles(source, temporary, options);
    await replaceFolder(temporary, target);
    return { manifest, written: true };
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    // Another process may have put the same bundle there first.
    const other = await completeBundle(out, wanted);
    if (other) return { manifest: other, written: false };
    throw error;
  }
}

/** The manifest of a whole bundle, if it is the one wanted. */
async function completeBundle(
  folder: string,
  wanted: { sha256: string; form: BundleForm },
): Promise<Manifest | undefined> {
  const manifest = await readBundleManifest(folder);
  const same =
    manifest?.source.sha256 === wanted.sha256 &&
    manifest.weightForm === wanted.form &&
    manifest.preparerVersion === PREPARER_VERSION;
  return same ? manifest : undefined;
}

/** The manifest of a bundle whose files are all there, the shards in full size; undefined where there is none. */
export async function readBundleManifest(folder: string): Promise<Manifest | undefined> {
  const manifest = await parseManifest(folder);
  if (!manifest) return undefined;
  const files: { file: string; bytes?: number }[] = [
    ...manifest.shards,
    ...(manifest.stages ?? []),
    { file: manifest.graph.file },
    { file: manifest.tokenizer.file },
    ...(manifest.tokenizer.tables ? [manifest.tokenizer.tables] : []),
    ...(manifest.profile ? [{ file: manifest.profile.file }] : []),
  ];
  for (const { file, bytes } of files) {
    const info = await stat(join(folder, file)).catch(() => undefined);
    if (!info || (bytes !== undefined && info.size !== bytes)) return undefined;
  }
  return manifest;
}

async function parseManifest(folder: string): Promise<Manifest | undefined> {
  const text = await readFile(join(folder, 'manifest.json'), 'utf8').catch(() => undefined);
  if (text === undefined) return undefined;
  try {
    const parsed = v.safeParse(manifestSchema, JSON.parse(text));
    return parsed.success ? parsed.output : undefined;
  } catch {
    return undefined;
  }
}

async function writeFiles(source: ModelSource, folder: string, options: PrepareOptions): Promise<Manifest> {
  const { config, tied } = source;
  const forms = new Map<string, WeightForm>();
  const roles = new Map(llamaWeights(config, tied).map((w) => [w.name, w.role]));
  for (const tensor of source.tensors) {
    const k = tensor.shape.at(-1)!;
    forms.set(tensor.name, chooseForm(options.form, roles.get(tensor.name)!, tensor.type, k));
  }
  const formOf = (name: string): WeightForm => {
    const form = forms.get(name);
    if (!form) throw new UnsupportedModelError(`${source.source.file}: weight ${name} is missing`);
    return form;
  };
  const graph = llamaGraph(config, tied, formOf, source.activation);
  // Refuses here what nobody could run later.
  const stages = partition(graph, claimDecoder);

  const total = source.tensors.reduce((sum, t) => sum + t.bytes, 0);
  let done = 0;
  options.onProgress?.(0, total);
  const tensors: Manifest['tensors'] = {};
  await using shards = new ShardWriter(folder);
  for (const tensor of source.tensors) {
    const [n, k] = tensor.shape.length === 1 ? [1, tensor.shape[0]!] : [tensor.shape[0]!, tensor.shape[1]!];
    const form = formOf(tensor.name);
    const packed = packWeight(form, { type: tensor.type, data: await tensor.read(), n, k });
    tensors[tensor.name] = {
      form,
      shape: [...tensor.shape],
      bytes: packed.length,
      parts: await shards.write(packed),
    };
    done += tensor.bytes;
    options.onProgress?.(done, total);
  }
  const written = await shards.finish();

  const tokenizer = JSON.stringify(source.tokenizer);
  await writeFile(folder, 'tokenizer.json', tokenizer);
  const tables = encodeTokenizerTables(tokenizerTables(source.tokenizer));
  await writeFile(folder, TABLES_FILE, tables);
  const onnx = encodeOnnx(graph, { tensors, shards: written.map((s) => s.file) }, config);
  await writeFile(folder, 'model.onnx', onnx);

  const stageFiles: NonNullable<Manifest['stages']> = [];
  for (const stage of stages.filter(({ kind }) => kind === 'ort')) {
    const file = `stage-${stageFiles.length}.onnx`;
    const data = stageModel(stage, (name) => tensors[name]!.shape);
    await writeFile(folder, file, data);
    stageFiles.push({ file, bytes: data.length, sha256: sha256(data) });
  }

  const decides = {
    graph: {
      inputs: [...graph.inputs],
      outputs: [...graph.outputs],
      nodes: graph.nodes.map((n) => ({
        name: n.name,
        op: n.op,
        domain: n.domain,
        inputs: [...n.inputs],
        outputs: [...n.outputs],
        attributes: Object.fromEntries(
          Object.entries(n.attributes).map(([name, a]) => [
            name,
            typeof a === 'object' ? [...a] : (a as number | string),
          ]),
        ),
      })),
    },
    tensors,
    chatTemplate: source.chatTemplate,
    eosIds: [...source.eosIds],
    bosId: source.bosId,
  };
  const tokenizerSha256 = sha256(tokenizer);
  const { name: _, ...shape } = config;
  const manifest: Manifest = {
    format: MANIFEST_FORMAT,
    version: MANIFEST_VERSION,
    preparerVersion: PREPARER_VERSION,
    model: { ...config },
    weightForm: options.form,
    source: { ...source.source },
    fingerprint: sha256(
      JSON.stringify({ ...decides, shape, shards: written.map((s) => s.sha256), tokenizerSha256 }),
    ),
    graph: { file: 'model.onnx', ...decides.graph },
    ...(stageFiles.length > 0 ? { stages: stageFiles } : {}),
    tensors,
    shards: written,
    tokenizer: {
      file: 'tokenizer.json',
      sha256: tokenizerSha256,
      tables: { file: TABLES_FILE, bytes: tables.length, sha256: sha256(tables) },
    },
    chatTemplate: decides.chatTemplate,
    eosIds: decides.eosIds,
    bosId: decides.bosId,
    generation: { ...source.generation },
  };
  await writeFile(folder, 'manifest.json', manifestText(manifest));
  return manifest;
}

export const sha256 = (data: string | Uint8Array): string => createHash('sha256').update(data).digest('hex');

/** Written and flushed, so that the rename never outruns the bytes. */
async function writeFile(folder: string, file: string, data: string | Uint8Array): Promise<void> {
  const handle = await open(join(folder, file), 'wx');
  try {
    await handle.writeFile(data);
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/**
 * Puts a head profile (the text of its file) into a bundle, or takes it out. Nothing is written when it is there already; the manifest, which
 * names it with its checksum, is replaced last and in one step.
 */
export async function attachProfile(folder: string, profile: string | undefined): Promise<void> {
  const manifest = await readBundleManifest(folder);
  if (!manifest) throw new UnsupportedModelError(`${folder} is no complete bundle`, { folder });
  const hash = profile === undefined ? undefined : sha256(profile);
  if (manifest.profile?.sha256 === hash) return;
  const { profile: old, ...rest } = manifest;
  let next: Manifest = rest;
  if (profile !== undefined) {
    parseProfile(JSON.parse(profile), manifest.model, hash!);
    // Named by its contents: a reader with the old manifest still finds the old file.
    const file = `profile-${hash!.slice(0, 8)}.json`;
    await replaceFile(folder, file, profile);
    next = { ...rest, profile: { file, sha256: hash! } };
  }
  await replaceFile(folder, 'manifest.json', manifestText(next));
  if (old) await rm(join(folder, old.file), { force: true });
}

const manifestText = (manifest: Manifest): string =>
  `${JSON.stringify(v.parse(manifestSchema, manifest), null, 1)}\n`;

async function replaceFile(folder: string, file: string, data: string): Promise<void> {
  const temporary = `${file}.tmp-${process.pid}-${randomBytes(4).toString('hex')}`;
  await writeFile(folder, temporary, data);
  await rename(join(folder, temporary), join(folder, file));
}

/** Puts `from` in the place of `to`. A reader sees the old folder, none for a moment, or the new one; never a mixture. */
async function replaceFolder(from: string, to: string): Promise<void> {
  const old = `${to}.tmp-${process.pid}-${randomBytes(4).toString('hex')}`;
  const had = await rename(to, old).then(
    () => true,
    () => false,
  );
  await rename(from, to);
  if (had) await rm(old, { recursive: true, force: true });
}

/** Removes what processes that no longer live have left beside the bundle. */
async function sweep(target: string): Promise<void> {
  const prefix = `${basename(target)}.tmp-`;
  for (const entry of await readdir(dirname(target))) {
    if (!entry.startsWith(prefix)) continue;
    const pid = Number(entry.slice(prefix.length).split('-')[0]);
    if (pid !== process.pid && !isAlive(pid))
      await rm(join(dirname(target), entry), { recursive: true, force: true });
  }
}

/** Whether a process of this id runs on this machine. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}
