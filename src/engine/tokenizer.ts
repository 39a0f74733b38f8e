import { Tokenizer as Pieces } from '@huggingface/tokenizers';
import { InvalidInputError } from '../core/errors.ts';
import { type Bpe, createBpe } from './bpe.ts';
import { TokenOrder } from './token-order.ts';
import { decodeTokenizerTables, type TokenizerTables, tokenizerTables } from './tokenizer-tables.ts';
import type { Tokenizer } from './types.ts';

/** A part of a text: one special token, or text between special tokens. */
export interface TextPiece {
  readonly text: string;
  /** In UTF-16 units. */
  readonly start: number;
  readonly special: number | undefined;
}

export interface ModelTokenizer extends Tokenizer {
  /** Splits a text at its special tokens, longest first. Those that touch one of the `plain` ranges are ordinary text. */
  split(text: string, plain?: readonly { start: number; end: number }[]): TextPiece[];
  /** Bytes of the tables that the tokenizer keeps. */
  readonly bytes: number;
}

/**
 * A tokenizer from a HuggingFace tokenizer.json with a BPE model. Normalising and splitting into words is the library's; merging and
 * decoding work on typed arrays, since the library's tables of strings take ten times the memory.
 *
 * @example
 * const tokenizer = createTokenizer(JSON.parse(text));
 * tokenizer.decode(tokenizer.encode('Hello, world!')); // 'Hello, world!'
 * @throws UnsupportedModelError for a model other than BPE or a decoder that is not known
 */
export const createTokenizer = (json: unknown): ModelTokenizer => new BpeTokenizer(tokenizerTables(json));

/**
 * The same, of the tables that `encodeTokenizerTables` made of the file.
 * @throws CorruptDataError when they are not whole
 */
export const openTokenizer = (tables: Uint8Array): ModelTokenizer =>
  new BpeTokenizer(decodeTokenizerTables(tables));

class BpeTokenizer implements ModelTokenizer {
  readonly vocab: number;
  readonly bytes: number;
  readonly #normalize: (text: string) => string;
  readonly #words: (text: string) => string[];
  readonly #bpe: Bpe;
  readonly #characters: Map<string, number>;
  readonly #byteFallback: readonly number[] | undefined;
  readonly #unknown: number | undefined;
  readonly #fuseUnknown: boolean;
  readonly #table: TokenBytes;
  readonly #specials: Splitter;
  /** Tokens that are cut out of every text, special or not. */
  readonly #userDefined: Splitter;
  readonly #isSpecial: Set<number>;
  readonly #stripStart: boolean;
  #order: TokenOrder | undefined;

  constructor(tables: TokenizerTables) {
    const { json } = tables;
    // The library only normalises and splits here, so it needs no vocabulary.
    const pieces = new Pieces(
      {
        version: '1.0',
        added_tokens: [],
        normalizer: json.normalizer,
        pre_tokenizer: json.pre_tokenizer,
        post_processor: null,
        decoder: null,
        model: { type: 'BPE', vocab: {}, merges: [] },
      },
      {},
    );
    const { normalizer, pre_tokenizer: preTokenizer } = pieces;
    this.#normalize = normalizer ? (text) => normalizer(text) : (text) => text;
    this.#words = preTokenizer ? (text) => preTokenizer(text, { section_index: 0 }) : (text) => [text];

    this.vocab = tables.vocab;
    this.#bpe = createBpe(tables.left, tables.right, tables.result);
    this.#characters = new Map(tables.characters);
    this.#unknown = tables.unknown ?? undefined;
    this.#fuseUnknown = json.model.fuse_unk;
    this.#byteFallback = tables.byteFallback ?? undefined;
    this.#table = new TokenBytes(tables);
    const { decoder, added_tokens: added } = json;
    this.#stripStart = decoder.type === 'Sequence' && decoder.decoders.some((d) => d.type === 'Strip');
    this.#specials = new Splitter(new Map(added.map((token) => [token.content, token.id])));
    this.#userDefined = new Splitter(
      new Map(added.filter((token) => !token.special).map((token) => [token.content, token.id])),
    );
    this.#isSpecial = new Set(added.filter((token) => token.special).map((token) => token.id));
    this.bytes = this.#bpe.bytes + this.#table.bytes;
  }

  encode(text: string, { specials = false }: { specials?: boolean } = {}): number[] {
    const ids: number[] = [];
    for (const piece of (specials ? this.#specials : this.#userDefined).split(text, [])) {
      if (piece.special !== undefined) ids.push(piece.special);
      else this.#encodePlain(piece.text, ids);
    }
    return ids;
  }

  split(text: string, plain: readonly { start: number; end: number }[] = []): TextPiece[] {
    return this.#specials.split(text, plain);
  }

  decode(ids: readonly number[], { skipSpecials = false }: { skipSpecials?: boolean } = {}): string {
    const parts = ids.filter((id) => !(skipSpecials && this.#isSpecial.has(this.#checked(id))));
    const text = newDecoder().decode(this.#table.join(parts.map((id) => this.#checked(id))));
    return this.#stripStart && text.startsWith(' ') ? text.slice(1) : text;
  }

  stream(): { push(id: number): string; end(): string } {
    const decoder = newDecoder();
    let atStart = this.#stripStart;
    const emit = (text: string): string => {
      if (!atStart || text === '') return text;
      atStart = false;
      return text.startsWith(' ') ? text.slice(1) : text;
    };
    return {
      push: (id) =>
        this.#isSpecial.has(this.#checked(id))
          ? ''
          : emit(decoder.decode(this.#table.get(id), { stream: true })),
      end: () => emit(decoder.decode()),
    };
  }

  bytesOf(id: number): Uint8Array {
    return this.#table.get(this.#checked(id));
  }

  order(): TokenOrder {
    return (this.#order ??= new TokenOrder(this.vocab, (id) =>
      this.#isSpecial.has(id) ? NO_BYTES : this.#table.get(id),
    ));
  }

  #checked(id: number): number {
    if (!Number.isInteger(id) || id < 0 || id >= this.vocab)
      throw new InvalidInputError(`${id} is no token id: the vocabulary has ${this.vocab} tokens`, 'ids');
    return id;
  }

  #encodePlain(text: string, into: number[]): void {
    const normalized = this.#normalize(text);
    if (normalized === '') return;
    for (const word of this.#words(normalized)) {
      const symbols: number[] = [];
      for (const character of word) this.#symbol(character, symbols);
      if (symbols.length === 1) into.push(symbols[0]!);
      else for (const id of this.#bpe.merge(Int32Array.from(symbols))) into.push(id);
    }
  }

  /** Characters that the vocabulary lacks become their bytes, the unknown token, or nothing, as the model says. */
  #symbol(character: string, into: number[]): void {
    const id = this.#characters.get(character);
    if (id !== undefined) {
      into.push(id);
      return;
    }
    if (this.#byteFallback) {
      const bytes = Array.from(new TextEncoder().encode(character), (byte) => this.#byteFallback![byte]!);
      if (bytes.every((byte) => byte >= 0)) {
        into.push(...bytes);
        return;
      }
    }
    if (this.#unknown === undefined) return;
    if (!(this.#fuseUnknown && into.at(-1) === this.#unknown)) into.push(this.#unknown);
  }
}

const NO_BYTES = new Uint8Array(0);

/** ignoreBOM: U+FEFF is a character like any other. */
const newDecoder = (): TextDecoder => new TextDecoder('utf-8', { fatal: false, ignoreBOM: true });

/** Finds the tokens of `tokens` in a text, at each place the longest. */
class Splitter {
  readonly #tokens: ReadonlyMap<string, number>;
  readonly #source: string;

  constructor(tokens: ReadonlyMap<string, number>) {
    this.#tokens = tokens;
    const longestFirst = [...tokens.keys()].sort((a, b) => b.length - a.length);
    this.#source = longestFirst.map((t) => t.replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&')).join('|');
  }

  /** Matches that touch a range of `plain` do not count. */
  split(text: string, plain: readonly { start: number; end: number }[]): TextPiece[] {
    const pieces: TextPiece[] = [];
    let from = 0;
    const flush = (end: number): void => {
      if (end > from) pieces.push({ text: text.slice(from, end), start: from, special: undefined });
    };
    const pattern = this.#source === '' ? undefined : new RegExp(this.#source, 'g');
    for (let match = pattern?.exec(text); pattern && match; match = pattern.exec(text)) {
      const start = match.index;
      const end = start + match[0].length;
      if (plain.some((range) => range.start < end && start < range.end)) {
        pattern.lastIndex = start + 1;
        continue;
      }
      flush(start);
      pieces.push({ text: match[0], start, special: this.#tokens.get(match[0])! });
      from = end;
    }
    flush(text.length);
    return pieces;
  }
}

/** The bytes of every token, one after the other. */
class TokenBytes {
  readonly #data: Uint8Array;
  readonly #starts: Uint32Array;

  constructor({ text, starts }: TokenizerTables) {
    this.#data = text;
    this.#starts = starts;
  }

  get bytes(): number {
    return this.#data.byteLength + this.#starts.byteLength;
  }

  get(id: number): Uint8Array {
    return this.#data.subarray(this.#starts[id], this.#starts[id + 1]);
  }

  join(ids: readonly number[]): Uint8Array {
    const parts = ids.map((id) => this.get(id));
    const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      out.set(part, at);
      at += part.length;
    }
    return out;
  }
}
