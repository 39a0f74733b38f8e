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
  if (parsed.success)
    return { ...parsed.output, pre_tokenizer: spellOutPreTokenizer(parsed.output.pre_tokenizer) };
  const issue = parsed.issues[0];
  throw new UnsupportedModelError(`tokenizer.json: ${v.getDotPath(issue) ?? 'root'}: ${issue.message}`);
}

/** GPT-2's pattern; `\s` is Unicode White_Space here, which JavaScript's own is not (U+FEFF, U+0085). */
const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const isolated = (pattern: string) => ({
  type: 'Split',
  pattern: { Regex: pattern },
  behavior: 'Isolated',
  invert: false,
});

interface PreTokenizerJson {
  readonly type: string;
  readonly [option: string]: unknown;
}

/**
 * A pre-tokenizer with Digits and ByteLevel's own pattern written out as Split, since readers disagree on what a digit or a
 * space is: U+0664 and U+00B2 are digits, U+0085 is a space and U+FEFF is none.
 */
function spellOutPreTokenizer(json: PreTokenizerJson | null): PreTokenizerJson | null {
  if (json === null) return null;
  const steps = (json.type === 'Sequence' ? (json.pretokenizers as PreTokenizerJson[]) : [json]).flatMap(
    (step): PreTokenizerJson[] => {
      if (step.type === 'Digits') return [isolated(step.individual_digits ? '\\p{N}' : '\\p{N}+')];
      if (step.type !== 'ByteLevel' || step.use_regex === false || step.add_prefix_space) return [step];
      return [isolated(GPT2), { ...step, use_regex: false }];
    },
  );
  return { type: 'Sequence', pretokenizers: steps };
}
