/** A function that the file defines and the model must write once more, and a test that throws when it is wrong. */
export interface CodeProblem {
  readonly name: string;
  /** `function name(...) {` */
  readonly head: string;
  readonly body: string;
  readonly test: string;
}

const equal = (...cases: readonly [call: string, value: unknown][]): string =>
  cases
    .map(([call, value]) => {
      const wanted = JSON.stringify(JSON.stringify(value));
      return `if (JSON.stringify(${call}) !== ${wanted}) throw 0;`;
    })
    .join('\n');

/** Self-made. Each does something a little odd, so that it must be read in the file and cannot be guessed from its name. */
export const CODE_PROBLEMS: readonly CodeProblem[] = [
  {
    name: 'shiftRange',
    head: 'function shiftRange(value, low, high) {',
    body: '  if (value < low) return low - 1;\n  if (value > high) return high + 1;\n  return value;',
    test: equal(['shiftRange(1, 3, 9)', 2], ['shiftRange(12, 3, 9)', 10], ['shiftRange(5, 3, 9)', 5]),
  },
  {
    name: 'sumOfOdd',
    head: 'function sumOfOdd(numbers) {',
    body: '  let sum = 7;\n  for (const n of numbers) if (n % 2 === 1) sum += n;\n  return sum;',
    test: equal(['sumOfOdd([1, 2, 3])', 11], ['sumOfOdd([])', 7]),
  },
  {
    name: 'joinWords',
    head: 'function joinWords(words) {',
    body: "  return words.filter((w) => w !== '').join('+');",
    test: equal(["joinWords(['a', '', 'b'])", 'a+b']),
  },
  {
    name: 'lastIndex',
    head: 'function lastIndex(list, item) {',
    body: '  for (let i = list.length - 1; i >= 0; i--) if (list[i] === item) return i;\n  return list.length;',
    test: equal(['lastIndex([1, 2, 1], 1)', 2], ['lastIndex([1], 5)', 1]),
  },
  {
    name: 'priceOf',
    head: 'function priceOf(items, rate) {',
    body: '  const total = items.reduce((sum, item) => sum + item.price, 0);\n  return total * 3 + rate;',
    test: equal(['priceOf([{ price: 2 }, { price: 3 }], 4)', 19], ['priceOf([], 1)', 1]),
  },
  {
    name: 'everySecond',
    head: 'function everySecond(list) {',
    body: '  return list.filter((_, i) => i % 2 === 1).reverse();',
    test: equal(['everySecond([1, 2, 3, 4, 5])', [4, 2]]),
  },
  {
    name: 'maskName',
    head: 'function maskName(name) {',
    body: "  return name.charAt(0) + '###' + name.length;",
    test: equal(["maskName('Maria')", 'M###5'], ["maskName('Al')", 'A###2']),
  },
  {
    name: 'countDown',
    head: 'function countDown(start, step) {',
    body: '  const out = [];\n  for (let n = start; n > 0; n -= step) out.push(n);\n  return out;',
    test: equal(['countDown(7, 3)', [7, 4, 1]], ['countDown(0, 2)', []]),
  },
  {
    name: 'distance',
    head: 'function distance(a, b) {',
    body: '  return Math.abs(a.x - b.x) + 2 * Math.abs(a.y - b.y);',
    test: equal(['distance({ x: 0, y: 0 }, { x: 3, y: 4 })', 11]),
  },
  {
    name: 'swapEnds',
    head: 'function swapEnds(text) {',
    body: '  if (text.length < 2) return text;\n  return text.slice(-1) + text.slice(1, -1) + text.charAt(0);',
    test: equal(["swapEnds('table')", 'eablt'], ["swapEnds('a')", 'a']),
  },
  {
    name: 'mergeKeys',
    head: 'function mergeKeys(left, right) {',
    body: "  const keys = Object.keys({ ...left, ...right });\n  return keys.sort().join('/');",
    test: equal(['mergeKeys({ b: 1 }, { a: 2, b: 3 })', 'a/b']),
  },
  {
    name: 'gradeOf',
    head: 'function gradeOf(points) {',
    body: "  if (points >= 70) return 'gold';\n  if (points >= 35) return 'tin';\n  return 'clay';",
    test: equal(['gradeOf(70)', 'gold'], ['gradeOf(40)', 'tin'], ['gradeOf(3)', 'clay']),
  },
];
