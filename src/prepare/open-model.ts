import { readdir } from 'node:fs/promises';
import { openLlamaFolder } from './llama-folder.ts';
import { openLlamaGguf } from './llama-gguf.ts';
import { isOnnxPath, openOnnx } from './onnx-source.ts';
import type { ModelSource } from './source.ts';

/**
 * Opens a model of the llama family, whatever its form: a GGUF file, a HuggingFace folder with safetensors, or an ONNX export (its
 * folder, or one of its .onnx files). In a folder that holds both, the safetensors count: they are what the export was made from.
 * @throws InvalidInputError when there is nothing at `path`; UnsupportedModelError naming what is wrong with it
 */
export async function openModel(path: string): Promise<ModelSource> {
  const files = await readdir(path).catch(() => []);
  if (files.some((file) => /\.safetensors(\.index\.json)?$/.test(file))) return openLlamaFolder(path);
  return (await isOnnxPath(path)) ? openOnnx(path) : openLlamaGguf(path);
}
