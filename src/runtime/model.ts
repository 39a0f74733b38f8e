import * as v from 'valibot';
import { tierScratchBytes } from '../cache/cache.ts';
import type { Ptr } from '../core/arena.ts';
import type { ModelConfig } from '../core/config.ts';
import { CorruptDataError, UnsupportedModelError } from '../core/errors.ts';
import type { Kernels, WeightForm } from '../kernels/kernels.ts';
import { type BundleSource, type Manifest, manifestSchema } from './manifest.ts';

/** A weight in kernel memory. */
export interface LoadedWeight {
  readonly form: WeightForm;
  readonly ptr: Ptr;
  /** [n, k], or [dim] for norms. */
  readonly shape: readonly number[];
  readonly bytes: number;
}

/** A bundle whose weights lie in kernel memory, once. */
export interface LoadedModel {
  readonly manifest: Manifest;
  readonly config: ModelConfig;
  readonly kernels: Kernels;
  readonly weights: ReadonlyMap<string, LoadedWeight>;
  readonly weightBytes: number;
  readonly tierScratch: Ptr;
}

export async function readManifest(source: BundleSource): Promise<Manifest> {
  const parsed = v.safeParse(manifestSchema, await source.json('manifest.json'));
  if (!parsed.success) {
    const issue = parsed.issues[0];
    throw new UnsupportedModelError(
      `${source.describe}: manifest.json is no bundle this version reads (${v.getDotPath(issue) ?? 'format'}: ${issue.message}); prepare the model again`,
    );
  }
  return parsed.output;
}

/** Shards that are read at once. */
const STREAMS = 2;

/** A tensor's bytes in a shard, and who takes them: `write` gets them in order, piece by piece. */
export interface ShardPiece {
  readonly shard: number;
  readonly at: number;
  readonly bytes: number;
  write(piece: Uint8Array, offset: number): void;
}

/** Streams the shards, some at a time, and hands each tensor its bytes; a part's bytes come in order. Never more than one piece of a stream is held here. */
export async function streamShards(
  source: BundleSource,
  manifest: Manifest,
  targets: readonly ShardPiece[],
  onProgress?: (done: number, total: number) => void,
): Promise<void> {
  const total = manifest.shards.reduce((sum, s) => sum + s.bytes, 0);
  let done = 0;
  const load = async (index: number): Promise<void> => {
    const shard = manifest.shards[index]!;
    const pieces = targets.filter((t) => t.shard === index).sort((a, b) => a.at - b.at);
    let at = 0;
    let next = 0;
    for await (const chunk of source.stream(shard.file)) {
      // A chunk may end one tensor and begin the next.
      for (let i = next; i < pieces.length && pieces[i]!.at < at + chunk.length; i++) {
        const piece = pieces[i]!;
        const from = Math.max(piece.at, at);
        const to = Math.min(piece.at + piece.bytes, at + chunk.length);
        if (to > from) piece.write(chunk.subarray(from - at, to - at), from - piece.at);
        if (piece.at + piece.bytes <= at + chunk.length) next = i + 1;
      }
      at += chunk.length;
      done += chunk.length;
      onProgress?.(done, total);
    }
    if (at !== shard.bytes)
      throw new CorruptDataError(
        `${source.describe}: ${shard.file} has ${at} bytes, its manifest says ${shard.bytes}; prepare the model again`,
      );
  };
  // Some shards at a time: one's bytes are fetched while another's are copied.
  const waiting = manifest.shards.keys();
  const workers = Array.from({ length: STREAMS }, async () => {
    for (const index of waiting) await load(index);
  });
  // All have ended before an error goes on: a stray one would write into a memory that is loaded anew.
  for (const result of await Promise.allSettled(workers))
    if (result.status === 'rejected') throw result.reason;
}

/**
 * Streams every shard straight into kernel memory: never a second copy, at most one piece of a stream beside it.
 * Tensors that share their bytes (a tied embedding) are held once.
 */
export async function loadModel(
  source: BundleSource,
  manifest: Manifest,
  kernels: Kernels,
  onProgress?: (done: number, total: number) => void,
): Promise<LoadedModel> {
  const weights = new Map<string, LoadedWeight>();
  const placed = new Map<string, Ptr>();
  const pieces: ShardPiece[] = [];
  let weightBytes = 0;
  // In one step: each growth is a system call, and a reason for the collector to run.
  kernels.arena.reserve(manifest.shards.reduce((sum, { bytes }) => sum + bytes, 0));
  for (const [name, tensor] of Object.entries(manifest.tensors)) {
    const key = JSON.stringify(tensor.parts);
    let ptr = placed.get(key);
    if (ptr === undefined) {
      ptr = kernels.arena.allocStatic(tensor.bytes);
      placed.set(key, ptr);
      weightBytes += tensor.bytes;
      let at = ptr;
      for (const { shard, offset, bytes } of tensor.parts) {
        const to = at;
        const write = (piece: Uint8Array, from: number): void =>
          new Uint8Array(kernels.arena.memory.buffer).set(piece, to + from);
        pieces.push({ shard, at: offset, bytes, write });
        at += bytes;
      }
    }
    weights.set(name, { form: tensor.form, ptr, shape: tensor.shape, bytes: tensor.bytes });
  }
  const tierScratch = kernels.arena.allocStatic(tierScratchBytes(manifest.model));
  await streamShards(source, manifest, pieces, onProgress);
  return { manifest, config: manifest.model, kernels, weights, weightBytes, tierScratch };
}
