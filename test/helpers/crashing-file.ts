import type { SyncFile, SyncFiles } from '../../src/session/store/block-file.ts';

/** A file whose writes are durable with the next flush; until then a crash may keep any of them, whole or in part. */
export class CrashingFile implements SyncFile {
  #durable: Uint8Array;
  #now: Uint8Array;
  #lost: { at: number; bytes: Uint8Array }[] = [];
  /** Writes until one fails. */
  failAfter = Number.POSITIVE_INFINITY;

  constructor(bytes: Uint8Array = new Uint8Array()) {
    this.#durable = bytes.slice();
    this.#now = bytes.slice();
  }
  read(into: Uint8Array, { at }: { at: number }): number {
    const part = this.#now.subarray(at, at + into.byteLength);
    into.set(part);
    return part.byteLength;
  }
  write(from: Uint8Array, { at }: { at: number }): number {
    if (this.failAfter-- <= 0) throw Object.assign(new Error('full'), { name: 'QuotaExceededError' });
    this.#now = placed(this.#now, from, at);
    this.#lost.push({ at, bytes: from.slice() });
    return from.byteLength;
  }
  truncate(size: number): void {
    this.#now = this.#now.slice(0, size);
  }
  getSize(): number {
    return this.#now.byteLength;
  }
  flush(): void {
    this.#durable = this.#now.slice();
    this.#lost = [];
  }
  close(): void {}
  /** What the disk holds after the machine went down now. */
  crash(random: () => number): CrashingFile {
    let bytes = this.#durable;
    for (const { at, bytes: lost } of this.#lost)
      if (random() < 0.5) bytes = placed(bytes, lost.subarray(0, Math.ceil(lost.length * random())), at);
    return new CrashingFile(bytes);
  }
}

function placed(into: Uint8Array, bytes: Uint8Array, at: number): Uint8Array {
  const grown = new Uint8Array(Math.max(into.byteLength, at + bytes.byteLength));
  grown.set(into);
  grown.set(bytes, at);
  return grown;
}

/** Files by name, for a BlockFileStore. */
export class Files implements SyncFiles {
  readonly named = new Map<string, CrashingFile>();
  find(name: string) {
    return this.named.get(name);
  }
  take(name: string) {
    const file = this.named.get(name) ?? new CrashingFile();
    this.named.set(name, file);
    return file;
  }
  async ready() {}
  give(name: string) {
    this.named.delete(name);
  }
}
