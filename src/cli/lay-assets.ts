import { copyFile, link, mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { headersFile, pageFiles } from '../page-files.ts';

/**
 * Lays what a Worker serves as static assets into `folder`: the chat page, its headers, and the bundle below bundle/ (linked where the
 * file system can, else copied). The folder appears whole, by renaming; one that holds the same already is left alone, so that a
 * server that runs on it is not disturbed.
 * @returns whether anything was written
 */
export async function layAssets(folder: string, bundle: string): Promise<boolean> {
  const texts = new Map<string, string | Uint8Array>([['_headers', headersFile()]]);
  for (const [name, { text }] of await pageFiles()) texts.set(name, text);
  const bundleFiles = await readdir(bundle);
  if (await isSame(folder, texts, bundle, bundleFiles)) return false;

  const temporary = `${folder}.${process.pid}`;
  await rm(temporary, { recursive: true, force: true });
  await mkdir(join(temporary, 'bundle'), { recursive: true });
  for (const [name, text] of texts) await writeFile(join(temporary, name), text);
  for (const name of bundleFiles) {
    const [from, to] = [join(bundle, name), join(temporary, 'bundle', name)];
    await link(from, to).catch(() => copyFile(from, to));
  }
  const old = `${folder}.${process.pid}.old`;
  await mkdir(dirname(folder), { recursive: true });
  await rename(folder, old).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error;
  });
  await rename(temporary, folder);
  await rm(old, { recursive: true, force: true });
  return true;
}

async function isSame(
  folder: string,
  texts: ReadonlyMap<string, string | Uint8Array>,
  bundle: string,
  bundleFiles: readonly string[],
): Promise<boolean> {
  const read = (file: string): Promise<string | undefined> => readFile(file, 'utf8').catch(() => undefined);
  for (const [name, text] of texts) {
    const there = await readFile(join(folder, name)).catch(() => undefined);
    if (!there?.equals(Buffer.from(text as string))) return false;
  }
  // The manifest holds the sum of every other file.
  const manifest = await read(join(bundle, 'manifest.json'));
  if ((await read(join(folder, 'bundle/manifest.json'))) !== manifest) return false;
  const size = async (file: string): Promise<number> => (await stat(file).catch(() => undefined))?.size ?? -1;
  for (const name of bundleFiles)
    if ((await size(join(folder, 'bundle', name))) !== (await size(join(bundle, name)))) return false;
  return true;
}
