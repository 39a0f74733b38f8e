import { align } from '../core/arena.ts';
import type { ModelConfig } from '../core/config.ts';
import { CorruptDataError } from '../core/errors.ts';
import { countTiers, DROP, massBytes, recordCells } from '../kernels/layout.ts';
import { Replay } from './journal.ts';
import type { CacheStateReader } from './persist.ts';
import { segmentsHeld, spansAt } from './schedule.ts';
import { cellIndex, SegmentReader, type SegmentSpan } from './segments.ts';

/** Which tier holds each compressed token, and how much it was attended to; for a person to look at. */
export interface LayerMap {
  readonly layer: number;
  readonly segments: readonly SegmentMap[];
}
export interface SegmentMap extends SegmentSpan {
  /** [kvHeads][tokens] tier ids; DROP where the token's bytes are gone. */
  readonly tiers: Uint8Array;
  /**
   * [kvHeads][tokens] square root of the decayed attention mass relative to the head's largest in this layer, 0..255; undefined where the policy
   * keeps no mass. Dropped tokens have 0.
   */
  readonly relevance: Uint8Array | undefined;
}

type Shape = Pick<ModelConfig, 'layers' | 'kvHeads' | 'headDim'>;

/**
 * Reads layers of a stored state: nothing is restored, and no kernel memory is taken.
 * @throws CorruptDataError
 */
export function readLayerMaps(reader: CacheStateReader, shape: Shape, wanted: readonly number[]): LayerMap[] {
  const { layers, kvHeads, headDim } = shape;
  const { header } = reader;
  const spans = spansAt(header.position, header.config);
  // Plans that the stored blocks do not know yet.
  const replay = new Replay(reader.journal, spans, shape, header.position);
  const maps = wanted.map((layer) => ({
    layer,
    held: segmentsHeld(header.position, header.config, layer, layers),
    segments: [] as (SegmentSpan & { tiers: Uint8Array })[],
  }));
  // Segment by segment, as blocks are stored.
  for (let segment = 0; segment < spans.length; segment++)
    for (const { layer, held, segments } of maps) {
      if (segment >= held) continue;
      const { version, bytes } = reader.block(layer, segment);
      const block = new SegmentReader(bytes, kvHeads, headDim);
      const stored = new Uint8Array(kvHeads * block.tokens);
      for (let h = 0; h < kvHeads; h++) block.tiers(h, stored, h * block.tokens);
      const tiers = replay.stepsOf(layer, segment, version, stored).steps.at(-1) ?? stored;
      segments.push({ start: block.start, tokens: block.tokens, tiers });
    }
  return maps.map(({ layer, segments }) => withRelevance(reader, shape, layer, segments));
}

function withRelevance(
  reader: CacheStateReader,
  { kvHeads, headDim }: Shape,
  layer: number,
  segments: readonly (SegmentSpan & { tiers: Uint8Array })[],
): LayerMap {
  const masses = readMasses(reader.hot(layer), segments, kvHeads, headDim, reader.header.config.exactBits);
  const largest = new Array<number>(kvHeads).fill(1);
  for (const [s, mass] of (masses ?? []).entries())
    for (const [i, m] of mass.entries()) {
      const h = Math.floor(i / segments[s]!.tokens);
      largest[h] = Math.max(largest[h]!, m);
    }
  return {
    layer,
    segments: segments.map((segment, s) => ({
      ...segment,
      relevance: masses && scaled(masses[s]!, segment.tokens, largest),
    })),
  };
}

const scaled = (mass: Uint32Array, tokens: number, largest: readonly number[]): Uint8Array =>
  Uint8Array.from(mass, (m, i) => Math.round(255 * Math.sqrt(m / largest[Math.floor(i / tokens)]!)));

/** [segment][kvHeads][tokens]; undefined where none is stored. `hot` is laid out as KvCache.hot says. */
function readMasses(
  hot: Uint8Array,
  segments: readonly (SegmentSpan & { tiers: Uint8Array })[],
  kvHeads: number,
  headDim: number,
  exactBits: number,
): Uint32Array[] | undefined {
  const view = new DataView(hot.buffer, hot.byteOffset, hot.byteLength);
  const slots = view.getUint32(0, true);
  let at = 16 + kvHeads * 2 * ((slots * headDim * exactBits) / 8);
  if (at === hot.byteLength) return undefined;
  at += kvHeads * slots * 2;
  const masses = segments.map(({ tokens, tiers }) => {
    const mass = new Uint32Array(tiers.length);
    const cells = new Int32Array(tokens);
    const begin = at;
    for (let h = 0; h < kvHeads; h++) {
      cellIndex(tiers, h * tokens, tokens, cells);
      for (let i = 0; i < tokens; i++)
        if (cells[i]! >= 0) mass[h * tokens + i] = view.getUint16(at + cells[i]! * 2, true);
      at += massBytes(recordCells(countTiers(tiers, h * tokens, tokens)));
    }
    // A block's masses end where the arena's step does.
    at = begin + align(at - begin);
    return mass;
  });
  if (at !== hot.byteLength)
    throw new CorruptDataError(`the hot part has ${hot.byteLength} bytes, its segments say ${at}`);
  return masses;
}

/** Tokens of the segments that no head of these layers holds any more, first to last. */
export function evictedPositions(layers: readonly LayerMap[]): number[] {
  const held = new Map<number, boolean>();
  for (const { segments } of layers)
    for (const { start, tokens, tiers } of segments)
      for (const [i, tier] of tiers.entries()) {
        const position = start + (i % tokens);
        held.set(position, (held.get(position) ?? false) || tier !== DROP);
      }
  return [...held].filter(([, kept]) => !kept).map(([position]) => position);
}
