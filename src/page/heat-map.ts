import type { CacheMap } from './api.ts';

/** A cache's map as cells, and their picture. */

/** Stands for cells that are held exactly; tier ids are below. */
export const EXACT = 255;
/** Bits of a number that is held exactly, for the scale. */
const EXACT_BITS = 32;

export interface Grid {
  readonly layers: number;
  readonly heads: number;
  readonly positions: number;
  /** [layers][heads][positions]: tier ids, or EXACT. */
  readonly tiers: Uint8Array;
  /** Likewise: 0..255 relative to the head's most attended token; undefined where the policy keeps no history. */
  readonly relevance: Uint8Array | undefined;
  /** Mean bits of a key's or value's number, by tier id. */
  readonly bits: readonly number[];
}

const bytes = (base64: string): Uint8Array => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));

export function gridOf(map: CacheMap): Grid {
  const { layers, kv_heads: heads, tokens: positions } = map;
  const tiers = new Uint8Array(layers * heads * positions).fill(EXACT);
  const relevance = new Uint8Array(tiers.length);
  const dropped = map.tiers.find(({ name }) => name === 'drop')!.id;
  for (let row = 0; row < layers * heads; row++)
    for (const [first, count] of map.closed) {
      const from = row * positions + first;
      tiers.fill(dropped, from, from + count);
    }
  let tracked = false;
  for (const { layer, segments } of map.data)
    for (const segment of segments) {
      const ids = bytes(segment.tiers);
      const mass = segment.relevance === null ? undefined : bytes(segment.relevance);
      tracked ||= mass !== undefined;
      for (let head = 0; head < heads; head++) {
        const to = (layer * heads + head) * positions + segment.start;
        const [from, end] = [head * segment.tokens, (head + 1) * segment.tokens];
        tiers.set(ids.subarray(from, end), to);
        if (mass) relevance.set(mass.subarray(from, end), to);
      }
    }
  const bits: number[] = [];
  for (const { id, key_bits, value_bits } of map.tiers) bits[id] = (key_bits + value_bits) / 2;
  bits[EXACT] = EXACT_BITS;
  return { layers, heads, positions, tiers, relevance: tracked ? relevance : undefined, bits };
}

export type Quantity = 'tier' | 'relevance';

/** Where a quantity stands on its colour scale, 0..1. Both have long tails: bits by their logarithm, relevance by its root. */
export const onScale: Record<Quantity, (value: number) => number> = {
  tier: (bits) => Math.log2(1 + bits) / Math.log2(1 + EXACT_BITS),
  relevance: (value) => Math.sqrt(value / 255),
};

/** A layer's mean over its heads at a position, and how many of them hold it no more; `layer` undefined: over all layers. */
export function cellAt(grid: Grid, position: number, layer?: number) {
  const { heads, positions, bits } = grid;
  const [first, rows] = layer === undefined ? [0, grid.layers * heads] : [layer * heads, heads];
  const cell = { rows, bits: 0, dropped: 0, exact: 0, relevance: 0 };
  for (let row = first; row < first + rows; row++) {
    const at = row * positions + position;
    const tier = grid.tiers[at]!;
    const held = bits[tier] ?? 0;
    cell.bits += held / rows;
    if (held === 0) cell.dropped++;
    if (tier === EXACT) cell.exact++;
    cell.relevance = Math.max(cell.relevance, grid.relevance?.[at] ?? 0);
  }
  return cell;
}

export type Color = readonly [number, number, number];
export interface Palette {
  /** From the lowest value to the highest. */
  readonly scale: readonly [Color, Color, Color];
  readonly dropped: Color;
  /** Relevance of what is held exactly is not compared. */
  readonly exact: Color;
}

function mix([low, middle, high]: Palette['scale'], at: number): Color {
  const [a, b, t] = at < 0.5 ? [low, middle, at * 2] : [middle, high, at * 2 - 1];
  return [a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t];
}

/**
 * Draws rows (layers, or the heads of one layer) over positions. Positions that share a column are averaged, relevance by its maximum:
 * a needle must not vanish.
 */
export function drawHeatMap(
  canvas: HTMLCanvasElement,
  grid: Grid,
  quantity: Quantity,
  layer: number | undefined,
  palette: Palette,
): void {
  const { heads, positions } = grid;
  const rows = layer === undefined ? grid.layers : heads;
  const columns = Math.max(1, Math.min(positions, Math.round(canvas.clientWidth * devicePixelRatio)));
  const image = new ImageData(columns, rows);
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++) {
      const from = Math.floor((column * positions) / columns);
      const to = Math.max(from + 1, Math.floor(((column + 1) * positions) / columns));
      const color = cellColor(grid, quantity, layer, row, from, Math.min(to, positions), palette);
      image.data.set([...color, 255], (row * columns + column) * 4);
    }
  canvas.width = columns;
  canvas.height = rows;
  canvas.getContext('2d')!.putImageData(image, 0, 0);
}

function cellColor(
  grid: Grid,
  quantity: Quantity,
  layer: number | undefined,
  row: number,
  from: number,
  to: number,
  palette: Palette,
): Color {
  const { heads, positions } = grid;
  const [first, count] = layer === undefined ? [row * heads, heads] : [layer * heads + row, 1];
  let bits = 0;
  let held = 0;
  let exact = 0;
  let relevance = 0;
  for (let h = first; h < first + count; h++)
    for (let p = from; p < to; p++) {
      const at = h * positions + p;
      const tier = grid.tiers[at]!;
      bits += grid.bits[tier] ?? 0;
      if (grid.bits[tier]) held++;
      if (tier === EXACT) exact++;
      relevance = Math.max(relevance, grid.relevance?.[at] ?? 0);
    }
  const cells = count * (to - from);
  if (held === 0) return palette.dropped;
  if (quantity === 'tier') return mix(palette.scale, onScale.tier(bits / cells));
  return exact === cells ? palette.exact : mix(palette.scale, onScale.relevance(relevance));
}
