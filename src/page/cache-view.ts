import { type Cache, type CacheMap, loadCacheMap } from './api.ts';
import { percent, SPEAKER, showEvicted, showReport, showText } from './cache-report.ts';
import { byId, count, h, plural, size } from './dom.ts';
import { describe } from './errors.ts';
import {
  type Color,
  cellAt,
  drawHeatMap,
  type Grid,
  gridOf,
  type Palette,
  type Quantity,
} from './heat-map.ts';

/** From here on the view stands beside the conversation; below, over it. As in cache-view.css. */
const BESIDE = matchMedia('(min-width: 75rem)');

/** What the cache of a conversation holds: how much, in which tiers, where, and what is gone. */
export class CacheView {
  readonly #dialog = byId<HTMLDialogElement>('cache-view');
  readonly #button = byId<HTMLButtonElement>('cache-button');
  readonly #report = h('div');
  readonly #note = h('p', { class: 'faint', role: 'status' });
  readonly #canvas = h('canvas', { role: 'img' });
  readonly #layer = h('select', { 'aria-label': 'Layer' });
  readonly #position = h('input', { type: 'range', min: 0, value: 0, 'aria-label': 'Position' });
  readonly #readout = h('p', { class: 'readout' });
  readonly #rows = h('span');
  readonly #last = h('span');
  readonly #legend = h('div', { class: 'legend', 'aria-hidden': 'true' });
  readonly #evicted = h('p');
  readonly #text = h('div', { class: 'kept-text' });
  readonly #details = h('details', {}, h('summary', {}, 'The text as the cache holds it'), this.#text);
  readonly #body: HTMLDivElement;
  #quantity: Quantity = 'tier';
  #id = '';
  #cache: Cache | null = null;
  #shown: { map: CacheMap; grid: Grid } | undefined;
  #asked = 0;

  constructor() {
    this.#body = h(
      'div',
      { class: 'cache-body', hidden: true },
      h('h3', {}, 'Layers and positions'),
      h(
        'div',
        { class: 'controls' },
        h(
          'div',
          { class: 'segmented', role: 'group', 'aria-label': 'What the map shows' },
          this.#choice('tier', 'Tier'),
          this.#choice('relevance', 'Relevance'),
        ),
        this.#layer,
      ),
      h('div', { class: 'map' }, this.#rows, this.#canvas),
      h(
        'div',
        { class: 'axis', 'aria-hidden': 'true' },
        h('span', {}, '0'),
        h('span', {}, 'position'),
        this.#last,
      ),
      this.#position,
      this.#readout,
      this.#legend,
      h('h3', {}, 'Evicted'),
      this.#evicted,
      this.#details,
    );
    this.#dialog.append(
      h(
        'div',
        { class: 'cache-head' },
        h('h2', { id: 'cache-title' }, 'Cache'),
        h(
          'button',
          {
            type: 'button',
            class: 'quiet icon',
            'aria-label': 'Close the cache view',
            click: () => this.#dialog.close(),
          },
          '✕',
        ),
      ),
      this.#note,
      this.#report,
      this.#body,
    );
    this.#layer.addEventListener('change', () => this.#draw());
    this.#position.addEventListener('input', () => this.#read());
    this.#details.addEventListener('toggle', () => this.#showText());
    this.#canvas.addEventListener('pointermove', (event) => {
      if (!this.#shown) return;
      this.#position.value = String(
        Math.floor((event.offsetX / this.#canvas.clientWidth) * this.#shown.grid.positions),
      );
      this.#read();
    });
    new ResizeObserver(() => this.#draw()).observe(this.#canvas);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.#draw());
    this.#dialog.addEventListener('keydown', (event) => {
      if (event.key !== 'Escape') return;
      // Beside the conversation the dialog is no modal one, which the browser would close itself.
      event.preventDefault();
      event.stopPropagation();
      this.#dialog.close();
    });
    this.#dialog.addEventListener('close', () => {
      // It comes late: the view may be open again, in its other place.
      if (this.open) return;
      document.body.classList.remove('with-cache');
      this.#button.setAttribute('aria-expanded', 'false');
      this.#button.focus();
    });
    this.#button.addEventListener('click', () => this.toggle());
    BESIDE.addEventListener('change', () => {
      if (!this.open) return;
      this.#dialog.close();
      this.toggle();
    });
  }

  get open(): boolean {
    return this.#dialog.open;
  }

  toggle(): void {
    if (this.open) this.#dialog.close();
    else this.#show();
  }

  #show(): void {
    if (this.#button.hidden) return;
    document.body.classList.toggle('with-cache', BESIDE.matches);
    if (BESIDE.matches) this.#dialog.show();
    else this.#dialog.showModal();
    this.#button.setAttribute('aria-expanded', 'true');
    void this.#load();
  }

  /** The conversation that is looked at, after each turn; null: nothing is cached yet. */
  show(id: string, cache: Cache | null): void {
    const changed = id !== this.#id;
    if (!changed && cache === this.#cache) return;
    this.#id = id;
    this.#cache = cache;
    this.#button.hidden = cache === null;
    if (cache === null) {
      this.#shown = undefined;
      if (this.open) this.#dialog.close();
      return;
    }
    this.#button.replaceChildren(
      h('strong', {}, `${count(cache.ratio)}×`),
      h('span', {}, ` ${size(cache.bytes)}`),
      h('span', { class: 'wide' }, ` · ${plural(cache.tokens, 'token')}`),
    );
    this.#button.setAttribute(
      'aria-label',
      `Cache view: ${plural(cache.tokens, 'token')} in ${size(cache.bytes)}, ${count(cache.ratio)} times smaller than fp16`,
    );
    if (changed) this.#shown = undefined;
    if (this.open) void this.#load();
  }

  /** After a change of theme. */
  redraw(): void {
    this.#draw();
  }

  #choice(quantity: Quantity, name: string): HTMLButtonElement {
    const button = h(
      'button',
      {
        type: 'button',
        'aria-pressed': String(quantity === this.#quantity),
        click: () => {
          this.#quantity = quantity;
          for (const other of button.parentElement!.children)
            other.setAttribute('aria-pressed', String(other === button));
          this.#draw();
        },
      },
      name,
    );
    return button;
  }

  async #load(): Promise<void> {
    const asked = ++this.#asked;
    if (!this.#shown) this.#note.textContent = 'Reading the cache …';
    try {
      const map = await loadCacheMap(this.#id);
      if (asked !== this.#asked) return;
      const atEnd = !this.#shown;
      this.#shown = { map, grid: gridOf(map) };
      this.#note.textContent = '';
      this.#position.max = String(Math.max(0, map.tokens - 1));
      if (atEnd) this.#position.value = '0';
      if (this.#layer.options.length !== map.layers + 1)
        this.#layer.replaceChildren(
          h('option', { value: '' }, 'All layers'),
          ...Array.from({ length: map.layers }, (_, layer) =>
            h('option', { value: layer }, `Layer ${layer + 1}`),
          ),
        );
      this.#body.hidden = map.tokens === 0;
      if (map.cache) showReport(this.#report, map.cache, map);
      showEvicted(this.#evicted, map);
      this.#draw();
      this.#showText();
    } catch (error) {
      if (asked === this.#asked) this.#note.textContent = describe(error);
    }
  }

  #draw(): void {
    if (!this.#shown || !this.open || this.#canvas.clientWidth === 0) return;
    const { grid, map } = this.#shown;
    const layer = this.#chosenLayer();
    const style = getComputedStyle(this.#dialog);
    const color = (name: string): Color => rgb(style.getPropertyValue(name));
    const scale = (kind: string) =>
      [color(`--${kind}-low`), color(`--${kind}-mid`), color(`--${kind}-high`)] as const;
    const palette: Palette = {
      scale: scale(this.#quantity),
      dropped: color('--dropped'),
      exact: color('--exact'),
    };
    drawHeatMap(this.#canvas, grid, this.#quantity, layer, palette);
    this.#rows.textContent = layer === undefined ? 'layer' : 'head';
    this.#last.textContent = count(grid.positions - 1);
    this.#canvas.setAttribute(
      'aria-label',
      `Heat map of ${this.#quantity === 'tier' ? 'bits a number' : 'relevance'}: ${layer === undefined ? `${grid.layers} layers` : `${grid.heads} heads of layer ${layer + 1}`} by ${plural(grid.positions, 'position')}. The slider below reads it position by position.`,
    );
    const ends = this.#quantity === 'tier' ? ['1 bit', '32 bits, exact'] : ['least', 'most attended'];
    this.#legend.replaceChildren(
      h('span', { class: 'ramp', 'data-kind': this.#quantity }),
      h('span', {}, `${ends[0]} to ${ends[1]}`),
      h('span', { class: 'swatch', 'data-kind': 'dropped' }),
      h('span', {}, 'evicted'),
      ...(this.#quantity === 'relevance'
        ? [h('span', { class: 'swatch', 'data-kind': 'exact' }), h('span', {}, 'held exactly')]
        : []),
      ...(this.#quantity === 'relevance' && !grid.relevance
        ? [h('span', {}, `The policy ${map.cache?.policy ?? ''} keeps no history of attention.`)]
        : []),
    );
    this.#read();
  }

  #showText(): void {
    if (this.#shown && this.#details.open) showText(this.#text, this.#shown.map, this.#shown.grid);
  }

  #chosenLayer(): number | undefined {
    return this.#layer.value === '' ? undefined : Number(this.#layer.value);
  }

  /** The cell under the slider, in words. */
  #read(): void {
    if (!this.#shown) return;
    const { grid, map } = this.#shown;
    const position = Math.min(Number(this.#position.value), grid.positions - 1);
    const cell = cellAt(grid, position, this.#chosenLayer());
    const speaker = map.messages.find(({ end }) => position < end)?.role;
    const piece = (map.text[position] ?? '').replaceAll('\n', '⏎');
    const held =
      cell.dropped === cell.rows
        ? 'evicted'
        : cell.exact === cell.rows
          ? 'held exactly'
          : `${count(cell.bits)} bits a number`;
    const facts = [
      `Position ${count(position)}${piece.trim() ? ` “${piece}”` : ''}${speaker ? ` (${SPEAKER[speaker]})` : ''}: ${held}`,
    ];
    if (cell.dropped > 0 && cell.dropped < cell.rows)
      facts.push(`evicted by ${cell.dropped} of ${plural(cell.rows, 'head')}`);
    if (grid.relevance && cell.exact < cell.rows && cell.dropped < cell.rows)
      facts.push(`relevance up to ${percent(cell.relevance / 255)}`);
    this.#readout.textContent = facts.join('; ');
    this.#position.setAttribute('aria-valuetext', this.#readout.textContent);
    this.#canvas.parentElement!.style.setProperty('--at', String((position + 0.5) / grid.positions));
  }
}

/** A custom property of type <color>, as it is computed. */
const rgb = (text: string): Color => {
  const [r = 0, g = 0, b = 0] = (text.match(/[\d.]+/g) ?? []).map(Number);
  return [r, g, b];
};
