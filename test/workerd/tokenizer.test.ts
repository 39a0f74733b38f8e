import { describe, expect, test } from 'vitest';
import { createTemplate } from '../../src/engine/template.ts';
import { createTokenizer } from '../../src/engine/tokenizer.ts';

/** GPT-2's alphabet of single bytes, one special token and one merge. */
const tokenizer = createTokenizer({
  added_tokens: [
    { id: 256, content: '<|a|>', special: true },
    { id: 257, content: '<|b|>', special: true },
  ],
  normalizer: null,
  pre_tokenizer: {
    type: 'Sequence',
    pretokenizers: [
      { type: 'Split', pattern: { Regex: '\\p{N}' }, behavior: 'Isolated', invert: false },
      { type: 'ByteLevel', add_prefix_space: false, use_regex: true },
    ],
  },
  decoder: { type: 'ByteLevel' },
  model: {
    type: 'BPE',
    vocab: (() => {
      let shifted = 256;
      const entries = Array.from({ length: 256 }, (_, byte): [string, number] => {
        const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        return [String.fromCharCode(printable ? byte : shifted++), byte];
      });
      return Object.fromEntries([...entries, ['hi', 258]]);
    })(),
    merges: ['h i'],
  },
});

describe('tokenizer and template in workerd', () => {
  test('text to ids and back', () => {
    expect(tokenizer.encode('hi 12<|a|>')).toEqual([258, 32, 49, 50, ...new TextEncoder().encode('<|a|>')]);
    expect(tokenizer.encode('hi<|a|>', { specials: true })).toEqual([258, 256]);
    for (const text of ['naïve \u{1f600}\ufeff 图书馆', '\ufeff', 'e\u0301'])
      expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
  });

  test('a stream never cuts a character', () => {
    const text = '\ufeffa\u{1f600}图é';
    const ids = tokenizer.encode(text);
    const stream = tokenizer.stream();
    const pieces = [...ids.map((id) => stream.push(id)), stream.end()];
    expect(pieces.join('')).toBe(text);
    expect(pieces.filter((piece) => piece !== '')).toEqual([...text]);
    const broken = tokenizer.stream();
    expect([0xe5, 0x9b, 0x41, 0xf0].map((id) => broken.push(id)).join('') + broken.end()).toBe(
      '\ufffdA\ufffd',
    );
  });

  test('the template renders without code generation', () => {
    const template = createTemplate(
      "{% for m in messages %}<|a|>{{ m['role'] }}:{{ m['content'] }}<|b|>{% endfor %}",
      tokenizer,
      { bosId: null, eosIds: [257] },
    );
    const { ids, spans } = template.encode([{ role: 'user', content: '<|b|>' }]);
    expect(tokenizer.decode(ids)).toBe('<|a|>user:<|b|><|b|>');
    expect(ids.filter((id) => id === 257)).toHaveLength(1);
    expect(spans).toEqual([{ start: 0, end: ids.length }]);
  });
});
