import { CorruptDataError } from '../core/errors.ts';
import type { BundleSource, Manifest } from '../runtime/manifest.ts';
import { createTokenizer, type ModelTokenizer, openTokenizer } from './tokenizer.ts';

/** A bundle's tokenizer: from its tables where the bundle has them, else from its tokenizer.json. */
export async function readTokenizer(
  source: BundleSource,
  { tokenizer }: Pick<Manifest, 'tokenizer'>,
): Promise<ModelTokenizer> {
  const { tables } = tokenizer;
  if (!tables) return createTokenizer(await source.json(tokenizer.file));
  const file = new Uint8Array(tables.bytes);
  let at = 0;
  for await (const piece of source.stream(tables.file)) {
    if (at + piece.length <= file.length) file.set(piece, at);
    at += piece.length;
  }
  if (at !== file.length)
    throw new CorruptDataError(
      `${source.describe}: ${tables.file} has not the ${tables.bytes} bytes that its manifest says; prepare the model again`,
    );
  return openTokenizer(file);
}
