import { evictedPositions, type LayerMap, readLayerMaps } from '../cache/map.ts';
import type { CacheHeader } from '../cache/persist.ts';
import { spansAt } from '../cache/schedule.ts';
import type { ModelConfig } from '../core/config.ts';
import type { Tokenizer } from '../engine/types.ts';
import { DROP } from '../kernels/layout.ts';
import type { SessionCacheMap } from './api.ts';
import type { Head } from './head.ts';
import { isDamage, StoredState } from './recover.ts';
import { readState, type StateRecord } from './state.ts';
import type { SessionStore } from './store/session-store.ts';

/** The cache as of the newest state that can be read; one without segments where none can. */
export function cacheMap(
  store: SessionStore,
  head: Head,
  model: ModelConfig,
  tokenizer: Pick<Tokenizer, 'stream'>,
  layer: number | undefined,
): SessionCacheMap {
  const wanted = layer === undefined ? Array.from({ length: model.layers }, (_, i) => i) : [layer];
  const { sinks } = head.cacheConfig;
  const found = readNewest(store, head, model, wanted);
  const position = found?.record.header.position ?? 0;
  const stream = tokenizer.stream();
  const closed = found ? closedSpans(found.record.header) : [];
  const isGone = (start: number, tiers: Uint8Array): boolean =>
    closed.some(([first]) => first === start) && tiers.every((tier) => tier === DROP);
  // The newest segment may not have reached every layer yet.
  const ends = (found?.maps ?? []).map(({ segments }) => {
    const last = segments.at(-1);
    return last ? last.start + last.tokens : sinks;
  });
  return {
    id: head.id,
    layers: model.layers,
    kvHeads: model.kvHeads,
    position,
    sinks,
    exactFrom: Math.min(position, Math.max(sinks, ...ends)),
    report: head.report,
    text: head.log.ids.slice(0, position).map((id) => stream.push(id)),
    messages: head.log.messages.map(({ role, end }) => ({ role, end })),
    evicted: ranges(evictedPositions(found?.maps ?? [])),
    closed: merged(closed),
    shown: (found?.maps ?? []).map((map) => ({
      layer: map.layer,
      segments: map.segments
        .filter(({ start, tiers }) => !isGone(start, tiers))
        .map(({ start, tokens, tiers, relevance }) => ({
          start,
          tokens,
          tiers: base64(tiers),
          relevance: relevance ? base64(relevance) : null,
        })),
    })),
  };
}

function readNewest(
  store: SessionStore,
  head: Head,
  model: ModelConfig,
  layers: readonly number[],
): { record: StateRecord; maps: LayerMap[] } | undefined {
  for (const entry of head.states.toReversed())
    try {
      const record = readState(store, entry);
      const reader = new StoredState(store, record);
      const maps = readLayerMaps(reader, model, layers);
      reader.release();
      return { record, maps };
    } catch (error) {
      if (!isDamage(error)) throw error;
    }
  return undefined;
}

/** [first, count] of each closed segment, in the order of the text. */
function closedSpans({ closed = [], position, config }: CacheHeader): [number, number][] {
  const spans = spansAt(position, config);
  return closed.toSorted((a, b) => a - b).map((segment) => [spans[segment]!.start, spans[segment]!.tokens]);
}

const merged = (spans: readonly (readonly [number, number])[]): [number, number][] =>
  ranges(spans.flatMap(([first, count]) => Array.from({ length: count }, (_, i) => first + i)));

function ranges(positions: readonly number[]): [number, number][] {
  const found: [number, number][] = [];
  for (const position of positions) {
    const last = found.at(-1);
    if (last && last[0] + last[1] === position) last[1]++;
    else found.push([position, 1]);
  }
  return found;
}

const base64 = (bytes: Uint8Array): string =>
  btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(''));
