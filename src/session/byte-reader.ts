import { AdkvcError } from '../core/errors.ts';

/** Takes a stream of bytes apart; holds what is asked for, and one chunk. */
export class ByteReader {
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>;
  #chunk = new Uint8Array(0);
  #at = 0;
  #taken = 0;

  constructor(stream: ReadableStream<Uint8Array>) {
    this.#reader = stream.getReader();
  }

  /** Exactly `count` bytes, the caller's own. @throws AdkvcError export_truncated */
  async take(count: number): Promise<Uint8Array> {
    const out = new Uint8Array(count);
    let done = 0;
    while (done < count) {
      if (this.#at === this.#chunk.length && !(await this.#pull()))
        throw new AdkvcError(
          'export_truncated',
          `the file ends after ${this.#taken} bytes: send all of it, or export the session again`,
          { param: 'file' },
        );
      const piece = this.#chunk.subarray(this.#at, this.#at + count - done);
      out.set(piece, done);
      done += piece.length;
      this.#at += piece.length;
      this.#taken += piece.length;
    }
    return out;
  }

  async atEnd(): Promise<boolean> {
    return this.#at === this.#chunk.length && !(await this.#pull());
  }

  async cancel(): Promise<void> {
    await this.#reader.cancel().catch(() => {});
  }

  /** False at the end; a sender that broke off is an end, too. */
  async #pull(): Promise<boolean> {
    for (;;) {
      const read = await this.#reader.read().catch(() => undefined);
      if (!read || read.done) return false;
      if (read.value.length === 0) continue;
      this.#chunk = read.value as Uint8Array<ArrayBuffer>;
      this.#at = 0;
      return true;
    }
  }
}
