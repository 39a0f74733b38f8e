import { createHash } from 'node:crypto';
import * as v from 'valibot';
import { CorruptDataError } from '../core/errors.ts';
import { type BundleSource, type Manifest, manifestSchema } from '../runtime/manifest.ts';
import { encodeOnnx } from './onnx.ts';

/**
 * Reads every file of a bundle and compares sizes and checksums with its manifest.
 * @throws CorruptDataError naming the file and what is wrong with it
 */
export async function verifyBundle(source: BundleSource): Promise<Manifest> {
  const parsed = v.safeParse(manifestSchema, await source.json('manifest.json'));
  if (!parsed.success)
    throw new CorruptDataError(
      `${source.describe}: manifest.json is malformed: ${v.summarize(parsed.issues)}`,
    );
  const manifest = parsed.output;
  for (const shard of [...manifest.shards, ...(manifest.stages ?? [])]) {
    const { bytes, sha256 } = await digest(source, shard.file);
    if (bytes !== shard.bytes)
      throw new CorruptDataError(
        `${source.describe}: ${shard.file} has ${bytes} bytes, the manifest says ${shard.bytes}`,
        { file: shard.file, bytes, expected: shard.bytes },
      );
    checkSha256(source, shard.file, sha256, shard.sha256);
  }
  const { tokenizer, profile } = manifest;
  for (const entry of [tokenizer, tokenizer.tables, profile].filter((file) => file !== undefined))
    checkSha256(source, entry.file, (await digest(source, entry.file)).sha256, entry.sha256);
  await checkGraph(source, manifest);
  for (const [name, tensor] of Object.entries(manifest.tensors)) {
    const inParts = tensor.parts.reduce((sum, part) => sum + part.bytes, 0);
    const fits = tensor.parts.every(
      (part) => part.offset + part.bytes <= (manifest.shards[part.shard]?.bytes ?? -1),
    );
    if (inParts !== tensor.bytes || !fits)
      throw new CorruptDataError(`${source.describe}: tensor ${name} does not lie within its shards`, {
        name,
      });
  }
  return manifest;
}

/** model.onnx repeats the manifest's graph; its bytes must be those that the manifest gives. */
async function checkGraph(source: BundleSource, manifest: Manifest): Promise<void> {
  const { file } = manifest.graph;
  const shards = manifest.shards.map((shard) => shard.file);
  const expected = encodeOnnx(manifest.graph, { tensors: manifest.tensors, shards }, manifest.model);
  const actual = await digest(source, file);
  checkSha256(source, file, actual.sha256, createHash('sha256').update(expected).digest('hex'));
}

async function digest(source: BundleSource, file: string): Promise<{ bytes: number; sha256: string }> {
  const hash = createHash('sha256');
  let bytes = 0;
  for await (const piece of source.stream(file)) {
    hash.update(piece);
    bytes += piece.length;
  }
  return { bytes, sha256: hash.digest('hex') };
}

function checkSha256(source: BundleSource, file: string, actual: string, expected: string): void {
  if (actual !== expected)
    throw new CorruptDataError(
      `${source.describe}: ${file} has sha256 ${actual}, the manifest says ${expected}; prepare the bundle anew`,
      { file, actual, expected },
    );
}
