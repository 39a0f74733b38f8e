import * as v from 'valibot';
import { UnsupportedModelError } from '../core/errors.ts';

const addedToken = v.object({
  id: v.pipe(v.number(), v.integer(), v.minValue(0)),
  content: v.pipe(v.string(), v.minLength(1)),
  special: v.boolean(),
  // Tokens that swallow neighbouring spaces or want word boundaries occur in no supported model.
  single_word: v.optional(v.literal(false)),
  lstrip: v.optional(v.literal(false)),
  rstrip: v.optional(v.literal(false)),
});
const step = v.looseObject({ type: v.string() });

const tokenizerJsonSchema = v.object({
  added_tokens: v.array(addedToken),
  normalizer: v.nullable(step),
  pre_tokenizer: v.nullable(step),
  decoder: v.variant('type', [
    v.object({ type: v.literal('ByteLevel') }),
    v.object({
      type: v.literal('Sequence'),
      decoders: v.array(
        v.variant('type', [
          v.object({
            type: v.literal('Replace'),
            pattern: v.object({ String: v.string() }),
            content: v.string(),
          }),
          v.object({ type: v.literal('ByteFallback') }),
          v.object({ type: v.literal('Fuse') }),
          v.object({
            type: v.literal('Strip'),
            content: v.literal(' '),
            start: v.literal(1),
            stop: v.literal(0),
          }),
        ]),
      ),
    }),
  ]),
  model: v.object({
    type: v.literal('BPE'),
    unk_token: v.nullish(v.string()),
    // null, or '' as some exporters write it
    continuing_subword_prefix: v.nullish(v.literal('')),
    end_of_word_suffix: v.nullish(v.literal('')),
    fuse_unk: v.optional(v.boolean(), false),
    byte_fallback: v.optional(v.boolean(), false),
    ignore_merges: v.optional(v.literal(false)),
    // Checked when they are read: a schema for the elements would copy fifty thousand of them.
    vocab: v.custom<Record<string, number>>(
      (x) => typeof x === 'object' && x !== null && !Array.isArray(x),
      'expected an object',
    ),
    merges: v.custom<(string | [string, string])[]>(Array.isArray, 'expected an array'),
  }),
});
export type TokenizerJson = v.InferOutput<typeof tokenizerJsonSchema>;

/** @throws UnsupportedModelError naming the part of the tokenizer.json that is not supported */
export function parseTokenizerJson(json: unknown): TokenizerJson {
  const parsed = v.safeParse(tokenizerJsonSchema, json);
  if (parsed.success) return parsed.output;
  const issue = parsed.issues[0];
  throw new UnsupportedModelError(`tokenizer.json: ${v.getDotPath(issue) ?? 'root'}: ${issue.message}`);
}
