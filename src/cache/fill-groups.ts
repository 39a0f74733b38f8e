import { SEGMENT_TOKENS } from '../kernels/layout.ts';

/** Options of an allocation at most. */
export const MAX_OPTIONS = 8;
/** Cells go by four: a record's group with room left takes the best tokens of coarser groups, which costs no byte. */
const GROUP = 4;

/** Of the tokens whose option was `option` and that may have options from `first` on, the `count` with the highest keys get `to`. */
export interface Move {
  readonly to: number;
  readonly option: number;
  readonly first: number;
  readonly count: number;
}

/**
 * Fills each option's last group of four with tokens of coarser options, nearest first, that may still be held so finely. The last option drops:
 * it needs no filling.
 * @param classes tokens by [option][first option allowed], MAX_OPTIONS of each; changed in place
 * @param counts tokens by option: the sums of `classes`; changed likewise
 * @param moves takes what was moved, where somebody asks
 */
export function fillGroups(classes: Uint8Array, counts: Int32Array, options: number, moves?: Move[]): void {
  for (let to = 0; to < options - 1; to++) {
    let room = -counts[to]! & (GROUP - 1);
    for (let option = to + 1; room > 0 && option < options; option++) {
      if (counts[option] === 0) continue;
      for (let first = to; room > 0 && first >= 0; first--) {
        const from = option * MAX_OPTIONS + first;
        const count = Math.min(room, classes[from]!);
        if (count === 0) continue;
        classes[from]! -= count;
        classes[to * MAX_OPTIONS + first]! += count;
        counts[option]! -= count;
        counts[to]! += count;
        room -= count;
        moves?.push({ to, option, first, count });
      }
    }
  }
}

/** A record's tokens by class: by class, and by token, the token before it in its list, plus 1; 0: there is none. */
export class Lists {
  readonly last = new Uint8Array(MAX_OPTIONS * MAX_OPTIONS);
  readonly before = new Uint8Array(SEGMENT_TOKENS);
}

/**
 * Takes the token with the highest key from a class's list, the earlier of equal ones.
 * @param words the tokens' keys, times MAX_OPTIONS and with the first option allowed, from `from` on
 */
export function takeBest(own: number, { last, before }: Lists, words: Uint16Array, from: number): number {
  let best = 0;
  let most = 0;
  let after = 0;
  for (let t = last[own]!, later = 0; t > 0; later = t, t = before[t - 1]!) {
    const word = words[from + t - 1]!;
    // Lists run backwards.
    if (word < most) continue;
    best = t;
    most = word;
    after = later;
  }
  if (after > 0) before[after - 1] = before[best - 1]!;
  else last[own] = before[best - 1]!;
  return best - 1;
}
