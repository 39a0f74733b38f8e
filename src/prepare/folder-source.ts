import { createReadStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { CorruptDataError } from '../core/errors.ts';
import type { BundleSource } from '../runtime/manifest.ts';

/** Reads a bundle from a folder of this machine. */
export function folderSource(folder: string): BundleSource {
  const text = async (file: string): Promise<string> => {
    try {
      return await readFile(join(folder, file), 'utf8');
    } catch (error) {
      throw new CorruptDataError(`${folder}: ${file} cannot be read (${(error as Error).message})`, { file });
    }
  };
  return {
    describe: folder,
    text,
    async json(file) {
      const content = await text(file);
      try {
        return JSON.parse(content);
      } catch {
        throw new CorruptDataError(`${folder}: ${file} is not valid JSON`, { file });
      }
    },
    async *stream(file) {
      try {
        for await (const piece of createReadStream(join(folder, file), { highWaterMark: 1 << 20 }))
          yield piece as Uint8Array;
      } catch (error) {
        throw new CorruptDataError(`${folder}: ${file} cannot be read (${(error as Error).message})`, {
          file,
        });
      }
    },
  };
}
