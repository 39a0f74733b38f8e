import { stat } from 'node:fs/promises';
import { openLlamaFolder } from './llama-folder.ts';
import { openLlamaGguf } from './llama-gguf.ts';
import { isOnnxPath, openOnnx } from './onnx-source.ts';
import type { ModelSource } from './source.ts';

/**
 * Opens a model of the llama family, whatever its form: an ONNX export (its folder, or one of its .onnx files), a HuggingFace folder
 * with safetensors, or a GGUF file.
 * @throws InvalidInputError when there is nothing at `path`; UnsupportedModelError naming what is wrong with it
 */
export async function openModel(path: string): Promise<ModelSource> {
  if (await isOnnxPath(path)) return openOnnx(path);
  const info = await stat(path).catch(() => undefined);
  return info?.isDirectory() ? openLlamaFolder(path) : openLlamaGguf(path);
}
