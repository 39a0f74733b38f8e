import { createHash, type Hash } from 'node:crypto';
import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import { align } from '../core/arena.ts';
import { MAX_SHARD_BYTES, type Manifest, type TensorEntry } from '../runtime/manifest.ts';

interface OpenShard {
  readonly file: string;
  readonly handle: FileHandle;
  readonly hash: Hash;
  bytes: number;
}

/**
 * Writes tensors one after the other into shard files of at most `maxBytes`. Tensors start at multiples of 16 bytes. A tensor is whole in one shard
 * unless it is larger than a shard: then it starts a new one and goes on in the next.
 */
export class ShardWriter {
  readonly #folder: string;
  readonly #maxBytes: number;
  readonly #done: Manifest['shards'] = [];
  #open: OpenShard | undefined;

  constructor(folder: string, maxBytes = MAX_SHARD_BYTES) {
    if (maxBytes < 16 || maxBytes % 16 !== 0) throw new Error('a shard holds a multiple of 16 bytes');
    this.#folder = folder;
    this.#maxBytes = maxBytes;
  }

  /** @returns where the bytes lie, in order */
  async write(data: Uint8Array): Promise<TensorEntry['parts']> {
    const parts: TensorEntry['parts'] = [];
    if (this.#open && align(this.#open.bytes) + data.length > this.#maxBytes) await this.#close();
    for (let at = 0; at < data.length; ) {
      const shard = this.#open ?? (await this.#create());
      const padding = align(shard.bytes) - shard.bytes;
      if (padding > 0) await append(shard, new Uint8Array(padding));
      const piece = data.subarray(at, at + this.#maxBytes - shard.bytes);
      parts.push({ shard: this.#done.length, offset: shard.bytes, bytes: piece.length });
      await append(shard, piece);
      at += piece.length;
      if (at < data.length) await this.#close();
    }
    return parts;
  }

  /** Lets go of a shard that was left open by a failure. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#open?.handle.close();
    this.#open = undefined;
  }

  async finish(): Promise<Manifest['shards']> {
    await this.#close();
    return this.#done;
  }

  async #create(): Promise<OpenShard> {
    const file = `weights-${String(this.#done.length).padStart(2, '0')}.bin`;
    const handle = await open(join(this.#folder, file), 'wx');
    this.#open = { file, handle, hash: createHash('sha256'), bytes: 0 };
    return this.#open;
  }

  async #close(): Promise<void> {
    if (!this.#open) return;
    const { file, handle, hash, bytes } = this.#open;
    await handle.sync();
    await handle.close();
    this.#done.push({ file, bytes, sha256: hash.digest('hex') });
    this.#open = undefined;
  }
}

async function append(shard: OpenShard, data: Uint8Array): Promise<void> {
  await shard.handle.writeFile(data);
  shard.hash.update(data);
  shard.bytes += data.length;
}
