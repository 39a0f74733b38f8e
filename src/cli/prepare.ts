import { resolve } from 'node:path';
import type { Command } from 'commander';
import { defaultBundleFolder, prepareBundle } from './bundle-folder.ts';

interface PrepareCliOptions {
  model?: string;
  out?: string;
  exact?: boolean;
}

/** `adkvc prepare`: a model file becomes a bundle; one JSON line tells where it lies. */
export function prepareCommand(program: Command): void {
  program
    .command('prepare')
    .description('turns a model into the bundle that the other commands run')
    .option(
      '--model <path>',
      'GGUF file, or folder with safetensors or ONNX, of the llama family (default: the embedded model)',
    )
    .option('--out <dir>', 'folder of the bundle (default: where the other commands look for it)')
    .option('--exact', 'keep every weight as stored instead of the compact form')
    .action(async (options: PrepareCliOptions) => {
      const form = options.exact ? 'exact' : 'compact';
      const { manifest, written, folder } = await prepareBundle({
        form,
        out: resolve(options.out ?? defaultBundleFolder(form)),
        ...(options.model === undefined ? {} : { model: resolve(options.model) }),
      });
      const answer = {
        folder,
        model: manifest.model.name,
        weightForm: form,
        weightBytes: manifest.shards.reduce((sum, shard) => sum + shard.bytes, 0),
        fingerprint: manifest.fingerprint,
        written,
      };
      process.stdout.write(`${JSON.stringify(answer)}\n`);
    });
}
