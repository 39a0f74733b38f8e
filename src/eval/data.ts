import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { AdkvcError } from '../core/errors.ts';

/** A file of the evaluation's data is not there or does not hold what it should. */
export class MissingDataError extends AdkvcError {
  constructor(file: string, folder: string, why: string) {
    super(
      'missing_data',
      `${join(folder, file)} ${why}: give the folder of the evaluation data with --data`,
      {
        param: '--data',
        data: { file, folder },
      },
    );
  }
}

/** The evaluation's texts and questions, read when they are needed; each file is parsed once. */
export class DataFolder {
  readonly folder: string;
  readonly #files = new Map<string, Promise<unknown>>();

  constructor(folder: string) {
    this.folder = folder;
  }

  /** @throws MissingDataError for the first file that is not there */
  require(files: readonly string[]): void {
    for (const file of files)
      if (!existsSync(join(this.folder, file))) throw new MissingDataError(file, this.folder, 'is missing');
  }

  /** Lines of JSON; a name in .gz is unpacked. */
  jsonLines<T>(file: string): Promise<readonly T[]> {
    return this.#once(file, (text) =>
      text
        .split('\n')
        .filter((line) => line !== '')
        .map((line) => JSON.parse(line) as T),
    );
  }
  json<T>(file: string): Promise<T> {
    return this.#once(file, (text) => JSON.parse(text) as T);
  }
  text(file: string): Promise<string> {
    return this.#once(file, (text) => text);
  }

  /** sha256 of the file as it lies, in hex. */
  async sha256(file: string): Promise<string> {
    return createHash('sha256')
      .update(await this.#read(file))
      .digest('hex');
  }

  #once<T>(file: string, parse: (text: string) => T): Promise<T> {
    const known = this.#files.get(file);
    if (known) return known as Promise<T>;
    const parsed = this.#read(file).then((bytes) => {
      try {
        return parse((file.endsWith('.gz') ? gunzipSync(bytes) : bytes).toString('utf8'));
      } catch (error) {
        throw new MissingDataError(file, this.folder, `cannot be read (${(error as Error).message})`);
      }
    });
    this.#files.set(file, parsed);
    return parsed;
  }

  async #read(file: string): Promise<Buffer> {
    try {
      return await readFile(join(this.folder, file));
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      throw new MissingDataError(file, this.folder, code === 'ENOENT' ? 'is missing' : `fails (${code})`);
    }
  }
}
