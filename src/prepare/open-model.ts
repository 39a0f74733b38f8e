import { openLlamaGguf } from './llama-gguf.ts';
import { isOnnxPath, openOnnx } from './onnx-source.ts';
import type { ModelSource } from './source.ts';

/**
 * Opens a model, whatever its form: a GGUF file of the llama family, or an ONNX export of such a model (its folder, or one of its
 * .onnx files).
 * @throws InvalidInputError when there is nothing at `path`; UnsupportedModelError naming what is wrong with it
 */
export async function openModel(path: string): Promise<ModelSource> {
  return (await isOnnxPath(path)) ? openOnnx(path) : openLlamaGguf(path);
}
