import { readTokenizer } from '../engine/read-tokenizer.ts';
import { createTemplate } from '../engine/template.ts';
import type { ModelTokenizer } from '../engine/tokenizer.ts';
import type { ChatTemplate } from '../engine/types.ts';
import { folderSource } from '../prepare/folder-source.ts';
import { readManifest } from '../runtime/model.ts';
import { bundleFolder } from './bundle-folder.ts';

/** The bundle's tokenizer and chat template, without its weights. */
export async function loadTokenizer(): Promise<{ tokenizer: ModelTokenizer; template: ChatTemplate }> {
  const source = folderSource(await bundleFolder('compact'));
  const manifest = await readManifest(source);
  const tokenizer = await readTokenizer(source, manifest);
  return { tokenizer, template: createTemplate(manifest.chatTemplate, tokenizer, manifest) };
}
