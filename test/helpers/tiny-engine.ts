import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { loadEngine } from '../../src/engine/load.ts';
import { writeBundle } from '../../src/prepare/bundle.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { openModel } from '../../src/prepare/open-model.ts';
import { referenceKernels, wasmKernels } from './kernels.ts';
import { type TinyOptions, writeTinyGguf } from './tiny-gguf.ts';

/** An engine over the seeded tiny model in its default form. */
export async function tinyEngine(
  backend: 'wasm' | 'wasm-plain' | 'reference',
  options: TinyOptions = {},
  maxBytes?: number,
): Promise<ModelEngine> {
  const folder = mkdtempSync(join(tmpdir(), 'adkvc-tiny-'));
  try {
    const source = await openModel(writeTinyGguf(join(folder, 'tiny.gguf'), options));
    await writeBundle(source, join(folder, 'bundle'), { form: 'compact' });
    await source.close();
    return await loadEngine({
      source: folderSource(join(folder, 'bundle')),
      kernels:
        backend === 'reference'
          ? referenceKernels(maxBytes)
          : wasmKernels(backend === 'wasm' ? 'relaxed' : 'plain', maxBytes),
    });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
