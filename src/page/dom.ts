/** Elements without markup in strings: text stays text, whatever it holds. */

type Child = Node | string | null | undefined | false;
type Attributes = Readonly<Record<string, string | number | boolean | undefined | ((event: Event) => void)>>;

/**
 * An element. Attributes that are functions are listeners; true is an attribute without a value; false and undefined are none.
 * @example h('button', { type: 'button', click: () => stop() }, 'Stop')
 */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (typeof value === 'function') element.addEventListener(name, value);
    else if (value !== undefined && value !== false)
      element.setAttribute(name, value === true ? '' : String(value));
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** @throws Error where index.html has no such element */
export function byId<T extends HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no #${id}`);
  return found as T;
}

const number = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });
export const count = (value: number): string => number.format(value);
export const plural = (value: number, one: string): string =>
  `${count(value)} ${one}${value === 1 ? '' : 's'}`;
/** 1 MB = 1e6 bytes. */
export const size = (bytes: number): string =>
  bytes < 1e5 ? `${number.format(bytes / 1e3)} kB` : `${number.format(bytes / 1e6)} MB`;

const relative = new Intl.RelativeTimeFormat('en', { numeric: 'auto', style: 'short' });
const UNITS: readonly [Intl.RelativeTimeFormatUnit, number][] = [
  ['day', 86_400],
  ['hour', 3_600],
  ['minute', 60],
];
/** @param at seconds since 1970 */
export function ago(at: number, now = Date.now() / 1000): string {
  const passed = now - at;
  for (const [unit, seconds] of UNITS)
    if (passed >= seconds) return relative.format(-Math.floor(passed / seconds), unit);
  return 'just now';
}
