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

/**
 * Makes a move: the earlier of two equal keys goes first.
 * @param chosen the classes of a record's tokens
 * @param words their keys, times MAX_OPTIONS and with the first option allowed, from `from` on
 */
export function makeMove(
  { to, option, first, count }: Move,
  chosen: Uint8Array,
  words: Uint32Array,
  from: number,
  tokens: number,
): void {
  const own = option * MAX_OPTIONS + first;
  for (let n = 0; n < count; n++) {
    let best = -1;
    let most = -1;
    for (let t = 0; t < tokens; t++)
      if (chosen[t] === own && words[from + t]! > most) {
        best = t;
        most = words[from + t]!;
      }
    chosen[best] = to * MAX_OPTIONS + first;
  }
}
