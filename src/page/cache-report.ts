import type { Cache, CacheMap } from './api.ts';
import { count, h, plural, size } from './dom.ts';
import { cellAt, type Grid } from './heat-map.ts';

/** What a cache holds, in numbers and words. */

export const SPEAKER = { user: 'You', assistant: 'Model', system: 'System' };
/** Fewer bits a number than this on average are shown as faint text. */
const FAINT_BITS = 4;
/** Steps of colour in cache-view.css: from exact to the coarsest tier. */
const STEPS = 8;
const stepOf = (name: string, place: number): string =>
  name === 'drop' || name === 'overhead' ? name : String(Math.min(place, STEPS - 1));

export const percent = (share: number): string => `${count(Math.round(share * 1000) / 10)} %`;

/** Totals, and a row for each tier with its share of the bytes as a bar. */
export function showReport(into: HTMLElement, cache: Cache, map: CacheMap): void {
  const numbers: [string, string][] = [
    ['smaller than fp16', `${count(cache.ratio)}×`],
    ['held now', size(cache.bytes)],
    ['as fp16', size(cache.fp16_bytes)],
    ['peak', size(cache.peak_bytes)],
    ['tokens', count(cache.tokens)],
    ['policy', cache.policy],
  ];
  const dl = h('dl', { class: 'numbers' });
  dl.append(...numbers.map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value))));
  const cells = Object.values(cache.token_heads).reduce((sum, n) => sum + n, 0);
  const order = ['exact', ...map.tiers.map(({ name }) => name)];
  const names = [...order, ...Object.keys(cache.bytes_by_tier).filter((name) => !order.includes(name))];
  const rows = names
    .map((name) => ({ name, cells: cache.token_heads[name] ?? 0, bytes: cache.bytes_by_tier[name] ?? 0 }))
    .filter((row) => row.cells > 0 || row.bytes > 0);
  const share = (bytes: number): number => bytes / Math.max(1, cache.bytes);
  const bar = h('div', { class: 'bar', 'aria-hidden': 'true' });
  bar.append(
    ...rows.map(({ name, bytes }, i) => {
      const part = h('i', { 'data-step': stepOf(name, i) });
      part.style.flexGrow = String(share(bytes));
      return part;
    }),
  );
  const body = h('tbody');
  body.append(
    ...rows.map((row, i) =>
      h(
        'tr',
        {},
        h(
          'th',
          { scope: 'row' },
          h('i', { 'data-step': stepOf(row.name, i), 'aria-hidden': 'true' }),
          tierName(row.name, map),
        ),
        h('td', {}, row.cells > 0 ? percent(row.cells / cells) : ''),
        h('td', {}, row.bytes > 0 ? size(row.bytes) : '0'),
      ),
    ),
  );
  const head = ['Tier', 'Share of cells', 'Bytes'].map((name) => h('th', { scope: 'col' }, name));
  const caption = h('caption', { class: 'hidden' }, 'Bytes and tokens by tier');
  into.replaceChildren(
    dl,
    bar,
    h('table', { class: 'tiers' }, caption, h('thead', {}, h('tr', {}, ...head)), body),
  );
}

/** How much no head holds any more, and the longest stretches of it. */
export function showEvicted(into: HTMLElement, { evicted, closed, tokens, cache, text }: CacheMap): void {
  const gaps = closed.reduce((sum, [, n]) => sum + n, 0);
  const gone = evicted.reduce((sum, [, n]) => sum + n, 0);
  const dropped = cache?.token_heads.drop ?? 0;
  const cells = Object.values(cache?.token_heads ?? {}).reduce((sum, n) => sum + n, 0);
  const longest = evicted.toSorted((a, b) => b[1] - a[1]).slice(0, 3);
  into.replaceChildren(
    dropped === 0
      ? 'Nothing was evicted: every head still holds every token.'
      : `${percent(dropped / Math.max(1, cells))} of all cells were evicted by some head; ${plural(gone, 'position')} of ${count(tokens)} by all of them.`,
    gaps > 0
      ? ` ${plural(gaps, 'position')} of these ${gaps === 1 ? 'is' : 'are'} closed: the conversation is longer than the model can look back, which reads what follows them as if they had never been.`
      : '',
    ...(longest.length > 0
      ? [
          h(
            'span',
            { class: 'faint' },
            ` Longest: ${longest
              .map(
                ([from, n]) =>
                  `${count(from)}–${count(from + n - 1)} “${text
                    .slice(from, from + Math.min(n, 8))
                    .join('')
                    .trim()}…”`,
              )
              .join(', ')}`,
          ),
        ]
      : []),
  );
}

/** Words as their cells are held: struck out where all heads evicted them, faint where little is left. */
export function showText(into: HTMLElement, map: CacheMap, grid: Grid): void {
  const parts: Node[] = [];
  let position = 0;
  for (const { role, end } of map.messages) {
    const paragraph = h('p', {}, h('strong', {}, SPEAKER[role]), ' ');
    let run = '';
    let kind = '';
    const flush = (): void => {
      if (run !== '') paragraph.append(kind === 'gone' ? h('del', {}, run) : h('span', { class: kind }, run));
      run = '';
    };
    for (; position < Math.min(end, grid.positions); position++) {
      const { dropped, rows, bits } = cellAt(grid, position);
      const now = dropped === rows ? 'gone' : bits < FAINT_BITS ? 'little' : 'held';
      if (now !== kind) flush();
      kind = now;
      run += map.text[position] ?? '';
    }
    flush();
    parts.push(paragraph);
  }
  into.replaceChildren(
    h(
      'p',
      { class: 'faint' },
      'Struck out: evicted by every head. Faint: fewer than 4 bits a number on average.',
    ),
    ...parts,
  );
}

function tierName(name: string, { tiers }: CacheMap): string {
  if (name === 'exact') return 'Exact (newest and first tokens)';
  if (name === 'drop') return 'Evicted';
  if (name === 'overhead') return 'Tier maps and history';
  const tier = tiers.find((one) => one.name === name);
  return tier ? `Keys ${tier.key_bits} bit, values ${tier.value_bits} bit` : name;
}
