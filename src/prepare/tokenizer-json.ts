import { UnsupportedModelError } from '../core/errors.ts';
import type { GgufMetadata } from './gguf.ts';

/** GGUF's token types. Source: llama.cpp, include/llama.h (LLAMA_TOKEN_TYPE_*). */
const NORMAL = 1;
const UNKNOWN = 2;
const CONTROL = 3;
const USER_DEFINED = 4;

/** Pre-tokenizers by GGUF's name, as the models' own tokenizer.json files say them. */
const PRE_TOKENIZERS: Readonly<Record<string, object>> = {
  smollm: {
    type: 'Sequence',
    pretokenizers: [
      { type: 'Digits', individual_digits: true },
      { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
    ],
  },
};

/**
 * A HuggingFace tokenizer.json from the tables of a GGUF file.
 * @throws UnsupportedModelError for a tokenizer model or pre-tokenizer that is not known, or tables that disagree
 */
export function tokenizerJsonFromGguf(
  metadata: GgufMetadata,
  file: string,
  vocabSize: number,
): Record<string, unknown> {
  const model = metadata.string('tokenizer.ggml.model');
  if (model !== 'gpt2')
    throw new UnsupportedModelError(
      `${file}: the tokenizer model is ${model}; only gpt2 (byte-level BPE) is supported`,
      { model },
    );
  const pre = metadata.string('tokenizer.ggml.pre');
  const preTokenizer = PRE_TOKENIZERS[pre];
  if (!preTokenizer)
    throw new UnsupportedModelError(
      `${file}: the pre-tokenizer is ${pre}; supported: ${Object.keys(PRE_TOKENIZERS).join(', ')}`,
      { pre },
    );
  const tokens = metadata.strings('tokenizer.ggml.tokens');
  const types = metadata.numbers('tokenizer.ggml.token_type');
  const merges = metadata.strings('tokenizer.ggml.merges');
  if (types.length !== tokens.length || tokens.length !== vocabSize)
    throw new UnsupportedModelError(
      `${file}: ${tokens.length} tokens, ${types.length} token types and a vocabulary of ${vocabSize} disagree`,
    );
  const vocab: Record<string, number> = Object.create(null);
  const added: object[] = [];
  tokens.forEach((content, id) => {
    if (vocab[content] !== undefined)
      throw new UnsupportedModelError(`${file}: tokens ${vocab[content]} and ${id} are the same`, {
        content,
      });
    vocab[content] = id;
    const type = types[id]!;
    if (type === CONTROL || type === UNKNOWN || type === USER_DEFINED)
      added.push({
        id,
        content,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: type !== USER_DEFINED,
      });
    else if (type !== NORMAL)
      throw new UnsupportedModelError(`${file}: token ${id} has type ${type}, which byte-level BPE has not`, {
        id,
        type,
      });
  });
  merges.forEach((merge, rank) => {
    const parts = merge.split(' ');
    if (parts.length !== 2 || !parts.every((part) => part in vocab) || !(parts.join('') in vocab))
      throw new UnsupportedModelError(`${file}: merge ${rank} ${JSON.stringify(merge)} names no tokens`, {
        rank,
      });
  });
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: null,
    pre_tokenizer: preTokenizer,
    post_processor: null,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      // Bytes that the vocabulary lacks are dropped, as HuggingFace's tokenizers and llama.cpp do.
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab,
      // As strings: byte-level tokens hold no spaces, and pairs would cost a reader twice the memory.
      merges,
    },
  };
}
