/**
 * The tokens of a vocabulary sorted by their bytes, with the number of leading bytes that each shares with the one before: a trie, laid
 * flat. Whoever walks it tries every prefix once. 10 bytes a token.
 */
export class TokenOrder {
  /** Every token with bytes, special ones left out. */
  readonly all: Sorted;
  /** Tokens of whole characters that need no escape in a JSON string, with how many they are, and the other tokens. */
  readonly plain: { readonly ids: Uint32Array; readonly characters: Uint16Array };
  readonly other: Sorted;
  readonly #bytes: (id: number) => Uint8Array;

  /** @param bytes of a token; empty for those that are never written */
  constructor(vocab: number, bytes: (id: number) => Uint8Array) {
    this.#bytes = bytes;
    const tokens = Array.from({ length: vocab }, (_, id) => ({ id, bytes: bytes(id) }))
      .filter((token) => token.bytes.length > 0)
      .sort((a, b) => compare(a.bytes, b.bytes));
    this.all = sorted(tokens);
    const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
    const counted = tokens.map((token) => ({ ...token, characters: plainCharacters(token.bytes, decoder) }));
    const plain = counted.filter((token) => token.characters > 0);
    this.plain = {
      ids: Uint32Array.from(plain, ({ id }) => id),
      characters: Uint16Array.from(plain, ({ characters }) => characters),
    };
    this.other = sorted(counted.filter((token) => token.characters === 0));
  }

  bytes(id: number): Uint8Array {
    return this.#bytes(id);
  }
}

export interface Sorted {
  readonly ids: Uint32Array;
  /** Leading bytes in common with the token before, at most 255. */
  readonly shared: Uint8Array;
}

const sorted = (tokens: readonly { readonly id: number; readonly bytes: Uint8Array }[]): Sorted => ({
  ids: Uint32Array.from(tokens, ({ id }) => id),
  shared: Uint8Array.from(tokens, ({ bytes }, i) =>
    i === 0 ? 0 : Math.min(255, common(tokens[i - 1]!.bytes, bytes)),
  ),
});

function common(a: Uint8Array, b: Uint8Array): number {
  let n = 0;
  while (n < a.length && n < b.length && a[n] === b[n]) n++;
  return n;
}

function compare(a: Uint8Array, b: Uint8Array): number {
  const n = common(a, b);
  return (a[n] ?? -1) - (b[n] ?? -1);
}

/** 0: it needs an escape, or holds a part of a character. */
function plainCharacters(bytes: Uint8Array, decoder: TextDecoder): number {
  let ascii = true;
  for (const b of bytes) {
    if (b < 0x20 || b === 0x22 || b === 0x5c) return 0;
    if (b >= 0x80) ascii = false;
  }
  if (ascii) return bytes.length;
  try {
    return [...decoder.decode(bytes)].length;
  } catch {
    return 0;
  }
}
