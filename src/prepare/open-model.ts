import { openLlamaGguf } from './llama-gguf.ts';
import type { ModelSource } from './source.ts';

/**
 * Opens a model, whatever its form: a GGUF file of the llama family.
 * @throws InvalidInputError when there is nothing at `path`; UnsupportedModelError naming what is wrong with it
 */
export async function openModel(path: string): Promise<ModelSource> {
  return openLlamaGguf(path);
}
