import { CorruptDataError, UnsupportedModelError } from '../core/errors.ts';
import { parseTokenizerJson, type TokenizerJson } from './tokenizer-json.ts';

/**
 * What a tokenizer works on, made of its tokenizer.json once: parsing that file and looking up its merges takes a cold start half a second
 * and 20 MB of garbage, reading these tables a few milliseconds and none.
 */
export interface TokenizerTables {
  /** Everything but vocabulary and merges, which are empty here. */
  readonly json: TokenizerJson;
  readonly vocab: number;
  /** Ids of the tokens of one character: where merging starts. */
  readonly characters: readonly (readonly [character: string, id: number])[];
  readonly unknown: number | null;
  /** By byte, -1 for none; null where the model has no byte tokens. */
  readonly byteFallback: readonly number[] | null;
  /** Ids of the two halves of each merge and of what they become, in order of rank. */
  readonly left: Int32Array;
  readonly right: Int32Array;
  readonly result: Int32Array;
  /** Token `id` stands for bytes starts[id] .. starts[id + 1] of `text`. [vocab + 1] */
  readonly starts: Uint32Array;
  readonly text: Uint8Array;
}

/** Far above any vocabulary; keeps a damaged file from asking for all memory. */
const MAX_ID = 2 ** 24;

/** @throws UnsupportedModelError for a model other than BPE or a decoder that is not known */
export function tokenizerTables(tokenizerJson: unknown): TokenizerTables {
  const json = parseTokenizerJson(tokenizerJson);
  const { model, decoder, added_tokens: added } = json;
  const ids = new Map(Object.entries(model.vocab));
  for (const token of added) ids.set(token.content, token.id);
  let vocab = 0;
  for (const [token, id] of ids) {
    if (!Number.isInteger(id) || id < 0 || id > MAX_ID)
      throw new UnsupportedModelError(`tokenizer.json: token ${JSON.stringify(token)} has the id ${id}`);
    vocab = Math.max(vocab, id + 1);
  }
  return {
    json: { ...json, model: { ...model, vocab: {}, merges: [] } },
    vocab,
    characters: [...ids].filter(([token]) => isOneCharacter(token)),
    unknown: model.unk_token == null ? null : (ids.get(model.unk_token) ?? null),
    byteFallback: model.byte_fallback ? byteTokens(ids) : null,
    ...mergeTables(model.merges, ids),
    ...tokenBytes(ids, vocab, tokenDecoder(decoder, new Set(added.map(({ id }) => id)))),
  };
}

const VERSION = 1;
const ARRAYS = ['left', 'right', 'result', 'starts'] as const;

/**
 * As a file, little-endian: u32 bytes of the header; the header, JSON, padded with spaces to a multiple of 4; i32 left, right, result [merges];
 * u32 starts [vocab + 1]; the tokens' bytes.
 */
export function encodeTokenizerTables(tables: TokenizerTables): Uint8Array {
  const { left, right, result, starts, text, ...rest } = tables;
  const head = JSON.stringify({ version: VERSION, merges: left.length, textBytes: text.length, ...rest });
  const utf8 = new TextEncoder().encode(head);
  const header = new Uint8Array((utf8.length + 3) & ~3).fill(0x20);
  header.set(utf8);
  const parts = [Uint32Array.of(header.length), header, left, right, result, starts, text];
  const out = new Uint8Array(parts.reduce((sum, { byteLength }) => sum + byteLength, 0));
  let at = 0;
  for (const { buffer, byteOffset, byteLength } of parts) {
    out.set(new Uint8Array(buffer, byteOffset, byteLength), at);
    at += byteLength;
  }
  return out;
}

/**
 * The tables as views of `file`, which must start at a multiple of 4 of its buffer.
 * @throws CorruptDataError when the file is not whole or of another version
 */
export function decodeTokenizerTables(file: Uint8Array): TokenizerTables {
  const { buffer, byteOffset, byteLength } = file;
  const bad = (why: string): never => {
    throw new CorruptDataError(`the tokenizer's tables ${why}; prepare the model again`);
  };
  const headerBytes = byteLength < 4 ? 0 : new Uint32Array(buffer, byteOffset, 1)[0]!;
  if (headerBytes % 4 !== 0 || 4 + headerBytes > byteLength) bad('have no header');
  const header = JSON.parse(new TextDecoder().decode(file.subarray(4, 4 + headerBytes))) as Omit<
    TokenizerTables,
    (typeof ARRAYS)[number] | 'text'
  > & { version: number; merges: number; textBytes: number };
  const { version, merges, textBytes, ...rest } = header;
  if (version !== VERSION) bad(`have version ${version}, this version reads ${VERSION}`);
  let at = byteOffset + 4 + headerBytes;
  if (4 + headerBytes + (3 * merges + rest.vocab + 1) * 4 + textBytes !== byteLength)
    bad(`have ${byteLength} bytes, which is not what their header says`);
  const ints = (): Int32Array => {
    const array = new Int32Array(buffer, at, merges);
    at += array.byteLength;
    return array;
  };
  const [left, right, result] = [ints(), ints(), ints()];
  const starts = new Uint32Array(buffer, at, rest.vocab + 1);
  return {
    ...rest,
    ...{ left, right, result, starts },
    text: new Uint8Array(buffer, at + starts.byteLength, textBytes),
  };
}

const isOneCharacter = (token: string): boolean =>
  token.length === 1 || (token.length === 2 && token.codePointAt(0)! > 0xffff);

function mergeTables(
  merges: TokenizerJson['model']['merges'],
  ids: ReadonlyMap<string, number>,
): Pick<TokenizerTables, 'left' | 'right' | 'result'> {
  const tables = [0, 1, 2].map(() => new Int32Array(merges.length)) as [Int32Array, Int32Array, Int32Array];
  merges.forEach((merge, rank) => {
    const [left, right] = typeof merge === 'string' ? merge.split(' ') : merge;
    const found = [left, right, `${left}${right}`].map((token) => ids.get(token ?? ''));
    found.forEach((id, i) => {
      if (id === undefined)
        throw new UnsupportedModelError(
          `tokenizer.json: merge ${rank} names a token that the vocabulary lacks`,
          { merge },
        );
      tables[i]![rank] = id;
    });
  });
  const [left, right, result] = tables;
  return { left, right, result };
}

const byteTokens = (ids: ReadonlyMap<string, number>): number[] =>
  Array.from(
    { length: 256 },
    (_, byte) => ids.get(`<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`) ?? -1,
  );

/** GPT-2's alphabet: the byte of each printable character that stands for one, else -1. Source: openai/gpt-2, src/encoder.py (bytes_to_unicode). */
function byteAlphabet(): Int16Array {
  const alphabet = new Int16Array(512).fill(-1);
  let shifted = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    alphabet[printable ? byte : shifted++] = byte;
  }
  return alphabet;
}

/** How a token's text in the vocabulary becomes the bytes that it stands for. */
function tokenDecoder(
  decoder: TokenizerJson['decoder'],
  added: ReadonlySet<number>,
): (token: string, id: number) => Uint8Array {
  const encoder = new TextEncoder();
  if (decoder.type === 'ByteLevel') {
    const alphabet = byteAlphabet();
    return (token, id) => {
      if (added.has(id)) return encoder.encode(token);
      const bytes = new Uint8Array(token.length);
      for (let i = 0; i < token.length; i++) {
        const byte = alphabet[token.charCodeAt(i)] ?? -1;
        if (byte < 0) return encoder.encode(token);
        bytes[i] = byte;
      }
      return bytes;
    };
  }
  const replaces = decoder.decoders.filter((d) => d.type === 'Replace');
  const fallback = decoder.decoders.some((d) => d.type === 'ByteFallback');
  return (token, id) => {
    if (added.has(id)) return encoder.encode(token);
    const byte = fallback ? /^<0x([0-9A-F]{2})>$/.exec(token) : null;
    if (byte) return Uint8Array.of(Number.parseInt(byte[1]!, 16));
    let text = token;
    for (const { pattern, content } of replaces) text = text.replaceAll(pattern.String, content);
    return encoder.encode(text);
  };
}

/** The bytes of every token, one after the other. */
function tokenBytes(
  ids: ReadonlyMap<string, number>,
  vocab: number,
  decode: (token: string, id: number) => Uint8Array,
): Pick<TokenizerTables, 'starts' | 'text'> {
  const tokens: (Uint8Array | undefined)[] = new Array(vocab);
  for (const [token, id] of ids) tokens[id] = decode(token, id);
  const starts = new Uint32Array(vocab + 1);
  for (let id = 0; id < vocab; id++) starts[id + 1] = starts[id]! + (tokens[id]?.length ?? 0);
  const text = new Uint8Array(starts[vocab]!);
  tokens.forEach((bytes, id) => {
    if (bytes) text.set(bytes, starts[id]);
  });
  return { starts, text };
}
