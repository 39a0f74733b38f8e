import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { layAssets } from '../../src/cli/lay-assets.ts';
import { writeBundle } from '../../src/prepare/bundle.ts';
import { openModel } from '../../src/prepare/open-model.ts';
import { type TinyOptions, writeTinyGguf } from './tiny-gguf.ts';

export interface TinyServed {
  /** A folder of its own, removed by `remove`. */
  readonly folder: string;
  readonly bundleDir: string;
  /** The chat page and the bundle, as a Worker serves them. */
  readonly assetsDir: string;
  /** For what a server keeps. */
  readonly dataDir: string;
  readonly modelId: string;
  remove(): Promise<void>;
}

/** Everything a server needs, around a model of random weights: it answers nonsense, through all of the code. */
export async function tinyServed(options: TinyOptions = {}): Promise<TinyServed> {
  const folder = await mkdtemp(join(tmpdir(), 'adkvc-test-'));
  const bundleDir = join(folder, 'bundle');
  const assetsDir = join(folder, 'assets');
  const source = await openModel(writeTinyGguf(join(folder, 'tiny.gguf'), options));
  const { manifest } = await writeBundle(source, bundleDir, { form: 'compact' });
  await source.close();
  await layAssets(assetsDir, bundleDir);
  return {
    folder,
    bundleDir,
    assetsDir,
    dataDir: join(folder, 'data'),
    modelId: manifest.model.name,
    remove: () => rm(folder, { recursive: true, force: true }),
  };
}
