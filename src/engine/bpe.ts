/** Merges of byte-pair encoding over token ids, in typed arrays: about 1 MB for 49,000 merges, where objects and strings take ten. */
export interface Bpe {
  /** Merges neighbours until none has a rank: always the lowest rank, of equal ones the leftmost. `symbols` is consumed. */
  merge(symbols: Int32Array): number[];
  readonly bytes: number;
}

/** Larger than any word: heap keys are rank * POSITIONS + position, exact below 2^53. */
const POSITIONS = 2 ** 32;
const NONE = -1;

/**
 * @param left, right ids of the two halves of each merge, in order of rank
 * @param result id of the merged token
 */
export function createBpe(left: Int32Array, right: Int32Array, result: Int32Array): Bpe {
  const slots = 2 ** Math.ceil(Math.log2(Math.max(left.length, 1) * 2));
  const table = new Int32Array(slots).fill(NONE);
  const hash = (a: number, b: number): number =>
    (Math.imul(Math.imul(a, 0x9e3779b1) ^ b, 0x85ebca6b) >>> 7) & (slots - 1);
  for (let rank = 0; rank < left.length; rank++) {
    let slot = hash(left[rank]!, right[rank]!);
    while (table[slot] !== NONE) slot = (slot + 1) & (slots - 1);
    table[slot] = rank;
  }
  const rankOf = (a: number, b: number): number => {
    for (let slot = hash(a, b); ; slot = (slot + 1) & (slots - 1)) {
      const rank = table[slot]!;
      if (rank === NONE || (left[rank] === a && right[rank] === b)) return rank;
    }
  };

  return {
    bytes: table.byteLength + left.byteLength + right.byteLength + result.byteLength,
    merge(symbols) {
      const n = symbols.length;
      const next = new Int32Array(n + 1);
      const previous = new Int32Array(n + 1);
      const heap = new MinHeap();
      const consider = (at: number): void => {
        const after = next[at]!;
        if (after >= n) return;
        const rank = rankOf(symbols[at]!, symbols[after]!);
        if (rank !== NONE) heap.push(rank * POSITIONS + at);
      };
      for (let i = 0; i < n; i++) {
        next[i] = i + 1;
        previous[i] = i - 1;
      }
      for (let i = 0; i + 1 < n; i++) consider(i);
      for (let key = heap.pop(); key !== undefined; key = heap.pop()) {
        const rank = Math.floor(key / POSITIONS);
        const at = key - rank * POSITIONS;
        const after = next[at]!;
        // Entries are not withdrawn: one whose pair has changed since is recognised here.
        if (after >= n || symbols[at] !== left[rank] || symbols[after] !== right[rank]) continue;
        symbols[at] = result[rank]!;
        symbols[after] = NONE;
        next[at] = next[after]!;
        next[after] = n;
        if (next[at]! < n) previous[next[at]!] = at;
        consider(at);
        if (previous[at]! >= 0) consider(previous[at]!);
      }
      const out: number[] = [];
      for (let i = 0; i < n; i = next[i]!) out.push(symbols[i]!);
      return out;
    },
  };
}

class MinHeap {
  #keys: number[] = [];

  push(key: number): void {
    const keys = this.#keys;
    let i = keys.push(key) - 1;
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (keys[parent]! <= key) break;
      keys[i] = keys[parent]!;
      i = parent;
    }
    keys[i] = key;
  }

  pop(): number | undefined {
    const keys = this.#keys;
    const top = keys[0];
    const last = keys.pop();
    if (last === undefined || keys.length === 0) return top;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= keys.length) break;
      if (child + 1 < keys.length && keys[child + 1]! < keys[child]!) child++;
      if (keys[child]! >= last) break;
      keys[i] = keys[child]!;
      i = child;
    }
    keys[i] = last;
    return top;
  }
}
