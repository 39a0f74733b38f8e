import type { Property, Shape } from './schema.ts';

/**
 * Reads a JSON text byte by byte and knows at each place which bytes may follow. A state is an immutable list of what is still expected, so that
 * many continuations can be tried from one state. Between tokens of JSON at most one space may stand, after a comma or a colon; numbers are
 * bounded in digits, so that each is finite as a double.
 */

/** What is expected, and what after it; null: nothing more. */
export type Expected = { readonly item: Item; readonly next: Expected } | null;
/** All ways in which the text so far can be read. Empty: there is none. */
export type State = readonly Expected[];

type Item =
  | { readonly kind: 'value'; readonly shape: Shape }
  | { readonly kind: 'text'; readonly bytes: Uint8Array; readonly at: number }
  | { readonly kind: 'space' }
  | StringItem
  | NumberItem
  | {
      readonly kind: 'object';
      readonly properties: readonly Property[];
      readonly at: number;
      readonly first: boolean;
    }
  | { readonly kind: 'map'; readonly values: Shape; readonly first: boolean }
  | { readonly kind: 'array'; readonly shape: Extract<Shape, { type: 'array' }>; readonly count: number };

/** After the opening quote. */
interface StringItem {
  readonly kind: 'string';
  readonly min: number;
  readonly max: number;
  readonly count: number;
  readonly mode: StringMode;
}
/** Between characters; after a backslash; digits of \u with the value so far; continuation bytes of UTF-8 that must lie in a range first. */
type StringMode =
  | typeof PLAIN
  | { readonly type: 'escape' }
  | { readonly type: 'hex'; readonly left: number; readonly value: number }
  | { readonly type: 'utf8'; readonly left: number; readonly low: number; readonly high: number };
const PLAIN = { type: 'plain' } as const;

interface NumberItem {
  readonly kind: 'number';
  readonly integer: boolean;
  readonly part: 'start' | 'sign' | 'zero' | 'whole' | 'point' | 'fraction' | 'e' | 'esign' | 'exponent';
  readonly digits: number;
}

export const MAX_WHOLE_DIGITS = 15;
export const MAX_FRACTION_DIGITS = 15;
export const MAX_EXPONENT_DIGITS = 2;
/** Ways of reading that are followed at once. Leaving some out narrows what is written, and never makes it wrong. */
const MAX_WAYS = 64;

const ascii = (text: string): Uint8Array => new TextEncoder().encode(text);
const [QUOTE, OPEN, CLOSE, OPEN_LIST, CLOSE_LIST, COMMA, COLON, SPACE] = [...'"{}[],: '].map(ascii) as [
  Uint8Array,
  Uint8Array,
  Uint8Array,
  Uint8Array,
  Uint8Array,
  Uint8Array,
  Uint8Array,
  Uint8Array,
];
const CONSTANTS = ['true', 'false', 'null'].map(ascii);
const byte = (character: string): number => character.charCodeAt(0);

const text = (bytes: Uint8Array, next: Expected): Expected => ({
  item: { kind: 'text', bytes, at: 0 },
  next,
});
const value = (shape: Shape, next: Expected): Expected => ({ item: { kind: 'value', shape }, next });
const space = (next: Expected): Expected => ({ item: { kind: 'space' }, next });
const separated = (first: boolean, next: Expected): Expected => (first ? next : text(COMMA, space(next)));
const string = (min: number, max: number, next: Expected): Expected =>
  text(QUOTE, { item: { kind: 'string', min, max, count: 0, mode: PLAIN }, next });
const number = (integer: boolean, next: Expected): Expected => ({
  item: { kind: 'number', integer, part: 'start', digits: 0 },
  next,
});

export const begin = (shape: Shape): State => [value(shape, null)];

/** The state after one more byte; empty when the byte cannot stand there. */
export function step(state: State, next: number): State {
  if (state.length === 1) {
    // By far the most bytes stand inside a string: nothing changes.
    const { item } = state[0] ?? {};
    if (
      item?.kind === 'string' &&
      item.mode === PLAIN &&
      next > 0x22 &&
      next < 0x80 &&
      next !== 0x5c &&
      !counts(item)
    )
      return state;
  }
  const ways: Expected[] = [];
  for (const expected of state) if (expected) advance(expected, next, ways);
  return ways.length > MAX_WAYS ? ways.slice(0, MAX_WAYS) : ways;
}

/** The text may end here. */
export const canEnd = (state: State): boolean => state.some(ends);

const ends = (expected: Expected): boolean =>
  expected === null || (expected.item.kind === 'number' && isWhole(expected.item) && ends(expected.next));

/** Inside a string, between two characters: how many more may follow. Undefined anywhere else. */
export function roomForText(state: State): number | undefined {
  const item = state.length === 1 ? state[0]?.item : undefined;
  return item?.kind === 'string' && item.mode === PLAIN ? item.max - item.count : undefined;
}

const counts = (item: StringItem): boolean => item.count < item.min || item.max !== Number.POSITIVE_INFINITY;

function advance(expected: NonNullable<Expected>, next: number, ways: Expected[]): void {
  const { item } = expected;
  switch (item.kind) {
    case 'text':
      if (item.bytes[item.at] !== next) return;
      ways.push(
        item.at + 1 === item.bytes.length
          ? expected.next
          : { item: { ...item, at: item.at + 1 }, next: expected.next },
      );
      return;
    case 'string':
      advanceString(item, expected, next, ways);
      return;
    case 'number':
      advanceNumber(item, expected, next, ways);
      return;
    default:
      for (const way of expand(item, expected.next)) if (way) advance(way, next, ways);
  }
}

/** The ways of something that is made of others; none of them is empty. */
function expand(item: Exclude<Item, { kind: 'text' | 'string' | 'number' }>, next: Expected): Expected[] {
  switch (item.kind) {
    case 'space':
      return [next, text(SPACE, next)];
    case 'value':
      return expandValue(item.shape, next);
    case 'object': {
      const { properties, at, first } = item;
      const ways: Expected[] = [];
      for (let i = at; i < properties.length; i++) {
        const { key, value: shape, required } = properties[i]!;
        const rest: Expected = { item: { kind: 'object', properties, at: i + 1, first: false }, next };
        ways.push(separated(first, text(key, space(value(shape, rest)))));
        if (required) return ways;
      }
      return [...ways, text(CLOSE, next)];
    }
    case 'map': {
      const rest: Expected = { item: { ...item, first: false }, next };
      const entry = string(0, Number.POSITIVE_INFINITY, text(COLON, space(value(item.values, rest))));
      return [separated(item.first, entry), text(CLOSE, next)];
    }
    case 'array': {
      const { shape, count } = item;
      const ways: Expected[] = [];
      const rest: Expected = { item: { kind: 'array', shape, count: count + 1 }, next };
      if (count < shape.max) ways.push(separated(count === 0, value(shape.items, rest)));
      if (count >= shape.min) ways.push(text(CLOSE_LIST, next));
      return ways;
    }
  }
}

function expandValue(shape: Shape, next: Expected): Expected[] {
  switch (shape.type) {
    case 'string':
      return [string(shape.min, shape.max, next)];
    case 'number':
      return [number(shape.integer, next)];
    case 'literal':
      return shape.texts.map((one) => text(one, next));
    case 'object':
      return [
        text(OPEN, { item: { kind: 'object', properties: shape.properties, at: 0, first: true }, next }),
      ];
    case 'map':
      return [text(OPEN, { item: { kind: 'map', values: shape.values, first: true }, next })];
    case 'array':
      return [text(OPEN_LIST, { item: { kind: 'array', shape, count: 0 }, next })];
    case 'union':
      return shape.of.map((one) => value(one, next));
    case 'reference':
      return [value(shape.to.shape!, next)];
    case 'any':
      return [
        string(0, Number.POSITIVE_INFINITY, next),
        number(false, next),
        ...CONSTANTS.map((one) => text(one, next)),
        ...expandValue({ type: 'map', values: shape }, next),
        ...expandValue({ type: 'array', items: shape, min: 0, max: Number.POSITIVE_INFINITY }, next),
      ];
  }
}

function advanceString(item: StringItem, expected: NonNullable<Expected>, b: number, ways: Expected[]): void {
  const to = (mode: StringMode, count = item.count): void => {
    ways.push({ item: { ...item, mode, count }, next: expected.next });
  };
  const { mode } = item;
  /** A character is complete. Beyond `min` nobody counts unless there is a `max`. */
  const character = (): void => to(PLAIN, counts(item) ? item.count + 1 : item.count);
  switch (mode.type) {
    case 'plain':
      if (b === byte('"')) {
        if (item.count >= item.min) ways.push(expected.next);
      } else if (item.count >= item.max || b < 0x20) return;
      else if (b === byte('\\')) to({ type: 'escape' });
      else if (b < 0x80) character();
      else lead(b, to);
      return;
    case 'escape':
      if (b === byte('u')) to({ type: 'hex', left: 4, value: 0 });
      else if ('"\\/bfnrt'.includes(String.fromCharCode(b))) character();
      return;
    case 'hex': {
      const digit = '0123456789abcdef'.indexOf(String.fromCharCode(b).toLowerCase());
      if (digit < 0) return;
      const sum = mode.value * 16 + digit;
      // Halves of surrogate pairs are no characters.
      if (mode.left === 3 && sum >= 0xd8 && sum <= 0xdf) return;
      if (mode.left === 1) character();
      else to({ type: 'hex', left: mode.left - 1, value: sum });
      return;
    }
    case 'utf8':
      if (b < mode.low || b > mode.high) return;
      if (mode.left === 1) character();
      else to({ type: 'utf8', left: mode.left - 1, low: 0x80, high: 0xbf });
  }
}

/** The first byte of a character of two to four. Well-formed sequences: https://www.unicode.org/versions/Unicode16.0.0/core-spec/chapter-3/#G27506 */
function lead(b: number, to: (mode: StringMode) => void): void {
  const left = b >= 0xc2 && b <= 0xdf ? 1 : b >= 0xe0 && b <= 0xef ? 2 : b >= 0xf0 && b <= 0xf4 ? 3 : 0;
  if (left === 0) return;
  const low = b === 0xe0 ? 0xa0 : b === 0xf0 ? 0x90 : 0x80;
  const high = b === 0xed ? 0x9f : b === 0xf4 ? 0x8f : 0xbf;
  to({ type: 'utf8', left, low, high });
}

const isWhole = ({ part }: NumberItem): boolean =>
  part === 'zero' || part === 'whole' || part === 'fraction' || part === 'exponent';

function advanceNumber(item: NumberItem, expected: NonNullable<Expected>, b: number, ways: Expected[]): void {
  const part = numberPart(item, b);
  if (part) {
    const digits = part === item.part ? item.digits + 1 : 1;
    ways.push({ item: { ...item, part, digits }, next: expected.next });
  } else if (isWhole(item) && expected.next) advance(expected.next, b, ways);
}

/** The part that a byte belongs to; undefined when the number cannot go on with it. */
function numberPart({ part, integer, digits }: NumberItem, b: number): NumberItem['part'] | undefined {
  const digit = b >= 0x30 && b <= 0x39;
  const exponent = !integer && (b === byte('e') || b === byte('E')) ? 'e' : undefined;
  const point = !integer && b === byte('.') ? 'point' : undefined;
  switch (part) {
    case 'start':
    case 'sign':
      if (part === 'start' && b === byte('-')) return 'sign';
      return digit ? (b === 0x30 ? 'zero' : 'whole') : undefined;
    case 'zero':
      return point ?? exponent;
    case 'whole':
      return digit ? (digits < MAX_WHOLE_DIGITS ? 'whole' : undefined) : (point ?? exponent);
    case 'point':
      return digit ? 'fraction' : undefined;
    case 'fraction':
      return digit ? (digits < MAX_FRACTION_DIGITS ? 'fraction' : undefined) : exponent;
    case 'e':
      return digit ? 'exponent' : b === byte('+') || b === byte('-') ? 'esign' : undefined;
    case 'esign':
      return digit ? 'exponent' : undefined;
    case 'exponent':
      return digit && digits < MAX_EXPONENT_DIGITS ? 'exponent' : undefined;
  }
}
