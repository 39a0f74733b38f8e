import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as fc from 'fast-check';
import { beforeAll, describe, expect, test } from 'vitest';
import { CorruptDataError, InvalidInputError, UnsupportedModelError } from '../../src/core/errors.ts';
import { createTemplate } from '../../src/engine/template.ts';
import { createTokenizer, type ModelTokenizer, openTokenizer } from '../../src/engine/tokenizer.ts';
import {
  decodeTokenizerTables,
  encodeTokenizerTables,
  tokenizerTables,
} from '../../src/engine/tokenizer-tables.ts';
import type { ChatMessage, ChatTemplate } from '../../src/engine/types.ts';
import { EMBEDDED_MODEL } from '../../src/prepare/embedded-model.ts';
import { openGguf } from '../../src/prepare/gguf.ts';
import { tokenizerJsonFromGguf } from '../../src/prepare/tokenizer-json.ts';
import { describeShared, sharedPath } from '../helpers/shared.ts';

const ROOT = join(import.meta.dirname, '../..');

let tokenizer: ModelTokenizer;
let template: ChatTemplate;

beforeAll(async () => {
  const gguf = await openGguf(join(ROOT, EMBEDDED_MODEL.file));
  const json = tokenizerJsonFromGguf(gguf.metadata, gguf.file, 49152);
  // As hosts open it: from the file that prepare makes of it.
  tokenizer = openTokenizer(encodeTokenizerTables(tokenizerTables(JSON.parse(JSON.stringify(json)))));
  template = createTemplate(gguf.metadata.string('tokenizer.chat_template'), tokenizer, {
    bosId: null,
    eosIds: [2],
  });
  await gguf.close();
});

const golden = (file: string) => JSON.parse(readFileSync(sharedPath('golden', file)!, 'utf8'));

describeShared('the embedded tokenizer against HuggingFace tokenizers', () => {
  interface Case {
    id: number;
    text: string;
    ids: number[];
    decoded: string;
    decoded_skip_special?: string;
  }

  test('every golden string gives the golden ids and text', () => {
    const { strings } = golden('tokenizer-strings.json') as { strings: Case[] };
    expect(strings.length).toBeGreaterThan(300);
    for (const { id, text, ids, decoded, decoded_skip_special } of strings) {
      expect({ id, ids: tokenizer.encode(text, { specials: true }) }).toEqual({ id, ids });
      expect({ id, text: tokenizer.decode(ids) }).toEqual({ id, text: decoded });
      const skipped = decoded_skip_special ?? decoded;
      expect({ id, text: tokenizer.decode(ids, { skipSpecials: true }) }).toEqual({ id, text: skipped });
      const stream = tokenizer.stream();
      const pieces = ids.map((token) => stream.push(token));
      expect({ id, text: pieces.join('') + stream.end() }).toEqual({ id, text: skipped });
    }
  });
});

describeShared('the chat template against transformers', () => {
  interface Case {
    id: number;
    messages: ChatMessage[];
    add_generation_prompt: boolean;
    text: string;
    ids: number[];
  }
  const SPECIAL_IN_CONTENT =
    /<\|im_(start|end)\|>|<\|endoftext\|>|<repo_name>|<reponame>|<file_sep>|<jupyter/;

  test('every golden conversation', () => {
    const { conversations } = golden('chat-template.json') as { conversations: Case[] };
    let apart = 0;
    for (const { id, messages, add_generation_prompt: addGenerationPrompt, text, ids } of conversations) {
      expect({ id, text: template.render(messages, { addGenerationPrompt }) }).toEqual({ id, text });
      expect({ id, ids: tokenizer.encode(text, { specials: true }) }).toEqual({ id, ids });
      const encoded = template.encode(messages, { addGenerationPrompt });
      if (messages.some((m) => SPECIAL_IN_CONTENT.test(m.content))) {
        apart++;
        expect({ id, ids: encoded.ids }).not.toEqual({ id, ids });
        expect(tokenizer.decode(encoded.ids)).toBe(text);
      } else expect({ id, ids: encoded.ids }).toEqual({ id, ids });
    }
    expect(apart).toBe(6);
  });

  test('a reply that was generated is an exact prefix of the next turn wherever the golden says so', () => {
    interface Turn {
      user: string;
      prompt_ids: number[];
      generated_ids: number[];
      text: string;
      previous_prompt_plus_generated_is_prefix: boolean | null;
    }
    const { conversations } = golden('multiturn.json') as {
      conversations: { system: string | null; turns: Turn[] }[];
    };
    let checked = 0;
    for (const { system, turns } of conversations) {
      const messages: ChatMessage[] = system === null ? [] : [{ role: 'system', content: system }];
      let before: number[] = [];
      for (const turn of turns) {
        messages.push({ role: 'user', content: turn.user });
        const { ids, spans } = template.encode(messages, { addGenerationPrompt: true });
        expect(ids).toEqual(turn.prompt_ids);
        expect(spans).toHaveLength(messages.length);
        if (turn.previous_prompt_plus_generated_is_prefix) {
          expect(ids.slice(0, before.length)).toEqual(before);
          checked++;
        }
        messages.push({ role: 'assistant', content: turn.text });
        before = [...turn.prompt_ids, ...turn.generated_ids];
      }
    }
    expect(checked).toBeGreaterThanOrEqual(9);
  });
});

describe('the tokenizer', () => {
  test('takes special text apart only when asked', () => {
    const text = 'a<|im_end|>b';
    expect(tokenizer.encode(text, { specials: true })).toContain(2);
    expect(tokenizer.encode(text)).not.toContain(2);
    expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
    expect(tokenizer.decode(tokenizer.encode(text, { specials: true }), { skipSpecials: true })).toBe('ab');
  });

  test('streams what decode gives, and never half a character', () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: tokenizer.vocab - 1 }), { maxLength: 40 }), (ids) => {
        const stream = tokenizer.stream();
        const pieces = [...ids.map((id) => stream.push(id)), stream.end()];
        expect(pieces.join('')).toBe(tokenizer.decode(ids, { skipSpecials: true }));
        for (const piece of pieces) expect(piece.isWellFormed()).toBe(true);
      }),
      { seed: 1, numRuns: 300 },
    );
  });

  test('gives back every well-formed text whose bytes the vocabulary has', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme', maxLength: 60 }), (text) => {
        expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
      }),
      { seed: 2, numRuns: 500 },
    );
  });

  test('a word of 200,000 letters is no attack', () => {
    const started = performance.now();
    expect(tokenizer.decode(tokenizer.encode('ab'.repeat(100_000)))).toHaveLength(200_000);
    expect(performance.now() - started).toBeLessThan(20_000);
  });

  test('refuses ids outside of the vocabulary', () => {
    for (const id of [-1, 49152, 1.5, Number.NaN]) {
      expect(() => tokenizer.decode([id])).toThrow(InvalidInputError);
      expect(() => tokenizer.stream().push(id)).toThrow(/no token id/);
    }
  });

  test('keeps its tables within 2 MB', () => {
    expect(tokenizer.bytes).toBeLessThan(2e6);
  });
});

test('tables come back from their file as they were; a damaged file is refused', () => {
  const json = {
    added_tokens: [{ id: 5, content: '<end>', special: true }],
    normalizer: null,
    pre_tokenizer: null,
    decoder: { type: 'Sequence', decoders: [{ type: 'ByteFallback' }, { type: 'Fuse' }] },
    model: {
      type: 'BPE',
      unk_token: '?',
      byte_fallback: true,
      vocab: { '?': 0, a: 1, '\u{1f600}': 2, 'a\u{1f600}': 3, '<0xC3>': 4 },
      merges: ['a \u{1f600}'],
    },
  };
  const tables = tokenizerTables(json);
  const file = encodeTokenizerTables(tables);
  expect(decodeTokenizerTables(file)).toEqual(tables);
  expect(openTokenizer(file).encode('xa\u{1f600}<end>', { specials: true })).toEqual(
    createTokenizer(json).encode('xa\u{1f600}<end>', { specials: true }),
  );
  for (const damaged of [file.slice(0, -1), file.slice(0, 2), new Uint8Array([...file, 0])])
    expect(() => openTokenizer(damaged)).toThrow(CorruptDataError);
  const header = new TextDecoder('latin1').decode(file).indexOf('"version":1');
  const other = file.slice();
  other['"version":'.length + header] = 0x32;
  expect(() => openTokenizer(other)).toThrow(/have version 2/);
});

test('a tokenizer.json that is not supported is refused by its part', () => {
  const json = {
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: null,
    decoder: { type: 'ByteLevel' },
    model: { type: 'BPE', vocab: { a: 0, b: 1, ab: 2 }, merges: ['a b'] },
  };
  expect(createTokenizer(json).encode('abab')).toEqual([2, 2]);
  const refuse = (change: object, message: RegExp) => {
    expect(() => createTokenizer({ ...json, ...change })).toThrow(UnsupportedModelError);
    expect(() => createTokenizer({ ...json, ...change })).toThrow(message);
  };
  refuse({ model: { ...json.model, type: 'Unigram' } }, /model\.type/);
  refuse({ model: { ...json.model, merges: ['a c'] } }, /merge 0 names a token/);
  refuse({ model: { ...json.model, vocab: { a: -1 } } }, /"a" has the id -1/);
  refuse({ decoder: { type: 'WordPiece' } }, /decoder/);
});
