/** LongBench's score of the next line of code: similarity of the first predicted line that is no comment and no fence, 0 to 1. */
export function codeSimilarity(prediction: string, truth: string): number {
  const line = prediction
    .replace(/^\n+/, '')
    .split('\n')
    .find((l) => !l.includes('`') && !l.includes('#') && !l.includes('//'));
  return ratioPercent(line ?? '', truth) / 100;
}

/** fuzzywuzzy's fuzz.ratio in whole percent: Python's difflib ratio, rounded half to even; 0 for an empty string. */
export function ratioPercent(a: string, b: string): number {
  if (a === b) return 100;
  if (a.length === 0 || b.length === 0) return 0;
  const x = [...a];
  const y = [...b];
  return roundHalfToEven((200 * matching(x, y)) / (x.length + y.length));
}

function roundHalfToEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}

/** Above this length difflib leaves out characters that are more frequent than 1 % ("autojunk"). */
const POPULAR_FROM = 200;

/** Characters in matching blocks: the longest block first, then left and right of it (Ratcliff and Obershelp, as difflib does it). */
function matching(a: readonly string[], b: readonly string[]): number {
  const places = new Map<string, number[]>();
  b.forEach((c, j) => {
    const at = places.get(c);
    if (at) at.push(j);
    else places.set(c, [j]);
  });
  if (b.length >= POPULAR_FROM) {
    const most = Math.floor(b.length / 100) + 1;
    for (const [c, at] of places) if (at.length > most) places.delete(c);
  }
  let sum = 0;
  const open: [number, number, number, number][] = [[0, a.length, 0, b.length]];
  for (let range = open.pop(); range; range = open.pop()) {
    const [aFrom, aTo, bFrom, bTo] = range;
    const [i, j, size] = longestMatch(a, b, places, range);
    if (size === 0) continue;
    sum += size;
    if (aFrom < i && bFrom < j) open.push([aFrom, i, bFrom, j]);
    if (i + size < aTo && j + size < bTo) open.push([i + size, aTo, j + size, bTo]);
  }
  return sum;
}

function longestMatch(
  a: readonly string[],
  b: readonly string[],
  places: ReadonlyMap<string, readonly number[]>,
  [aFrom, aTo, bFrom, bTo]: readonly [number, number, number, number],
): [i: number, j: number, size: number] {
  let best: [number, number, number] = [aFrom, bFrom, 0];
  let lengths = new Map<number, number>();
  for (let i = aFrom; i < aTo; i++) {
    const next = new Map<number, number>();
    for (const j of places.get(a[i]!) ?? []) {
      if (j < bFrom) continue;
      if (j >= bTo) break;
      const size = (lengths.get(j - 1) ?? 0) + 1;
      next.set(j, size);
      if (size > best[2]) best = [i - size + 1, j - size + 1, size];
    }
    lengths = next;
  }
  // Popular characters begin no match but may lengthen one.
  let [i, j, size] = best;
  while (i > aFrom && j > bFrom && a[i - 1] === b[j - 1]) {
    i--;
    j--;
    size++;
  }
  while (i + size < aTo && j + size < bTo && a[i + size] === b[j + size]) size++;
  return [i, j, size];
}
