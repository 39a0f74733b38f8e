import { EPOCH, type ModelConfig } from '../core/config.ts';
import { CorruptDataError } from '../core/errors.ts';
import {
  DROP,
  LAYOUT_VERSION,
  massBytes,
  recordCells,
  recordFixedBytes,
  SEGMENT_HEADER_BYTES,
  TIERS,
} from '../kernels/layout.ts';
import { type CacheContext, KvCache } from './cache.ts';
import type { CacheStateReader, PlanJournalEntry } from './persist.ts';
import { countTiers, layOut, SegmentReader } from './segments.ts';

export interface Change {
  readonly position: number;
  readonly tiers: Uint8Array;
  readonly from: number;
}

/** Changes by "layer/segment", in order. @throws CorruptDataError when an entry does not parse. */
export function parseJournal(
  journal: readonly PlanJournalEntry[],
  spans: readonly { tokens: number }[],
  kvHeads: number,
): Map<string, Change[]> {
  const changes = new Map<string, Change[]>();
  for (const { position, bytes } of journal) {
    for (let at = 0; at < bytes.length; ) {
      const layer = bytes[at]! | (bytes[at + 1]! << 8);
      const segment = bytes[at + 2]! | (bytes[at + 3]! << 8);
      const span = spans[segment];
      const count = kvHeads * (span?.tokens ?? 0);
      if (!span || at + 4 + count > bytes.length || !bytes.subarray(at + 4, at + 4 + count).every(isTier))
        throw new CorruptDataError(`the plan journal of position ${position} does not parse`);
      const key = `${layer}/${segment}`;
      const list = changes.get(key) ?? [];
      list.push({ position, tiers: bytes, from: at + 4 });
      changes.set(key, list);
      at += 4 + count;
    }
  }
  return changes;
}

/**
 * Checks that a stored block is what this model and span would have written: sizes, places, counts, tier maps. Kernels trust all of these, and
 * share their memory with other conversations.
 */
function checkBlock(
  bytes: Uint8Array,
  { kvHeads, headDim }: Pick<ModelConfig, 'kvHeads' | 'headDim'>,
  layer: number,
  segment: number,
): void {
  const bad = (what: string): never => {
    throw new CorruptDataError(`segment ${segment} of layer ${layer}: ${what}`);
  };
  if (bytes.length < SEGMENT_HEADER_BYTES + kvHeads * 4) bad('shorter than its header');
  const reader = new SegmentReader(bytes, kvHeads);
  if (reader.storedBytes !== bytes.length) bad(`says ${reader.storedBytes} bytes, has ${bytes.length}`);
  if (reader.tokens < 1 || reader.tokens > 128) bad(`says ${reader.tokens} tokens`);
  const counts: Uint8Array[] = [];
  for (let h = 0; h < kvHeads; h++) {
    if (reader.recordAt(h) + recordFixedBytes(reader.tokens, headDim) > bytes.length)
      bad(`record ${h} lies outside`);
    const said = reader.counts(h);
    let tokens = 0;
    for (const n of said.subarray(0, TIERS.length)) tokens += n;
    if (tokens > reader.tokens) bad(`record ${h} counts ${tokens} of ${reader.tokens} tokens`);
    const tiers = new Uint8Array(reader.tokens);
    reader.tiers(h, tiers, 0);
    if (!tiers.every(isTier)) bad(`record ${h} has a tier that does not exist`);
    const counted = countTiers(tiers, 0, reader.tokens);
    if (said.some((n, id) => n !== counted[id])) bad(`record ${h} counts other tiers than its map`);
    counts.push(counted);
  }
  const place = layOut({ start: reader.start, tokens: reader.tokens }, counts, headDim, false);
  if (place.storedBytes !== bytes.length || place.recordAt.some((at, h) => at !== reader.recordAt(h)))
    bad('its records lie elsewhere than their sizes say');
}

const isTier = (id: number): boolean => id < TIERS.length || id === DROP;

function checkNeverFiner(cache: KvCache, layer: number, segment: number, change: Change): void {
  const reader = cache.reader(cache.blocks[layer]![segment]!);
  const held = new Uint8Array(reader.tokens);
  for (let h = 0; h < reader.kvHeads; h++) {
    reader.tiers(h, held, 0);
    if (held.some((tier, i) => change.tiers[change.from + h * reader.tokens + i]! < tier))
      throw new CorruptDataError(`the plan of position ${change.position} promotes a token`);
  }
}

/** Checks that the segments follow one another from the sinks to the exact tokens, as epochs would have left them. */
function checkSpans({ spans, config }: KvCache, position: number): void {
  let end = config.sinks;
  for (const [segment, { start, tokens }] of spans.entries()) {
    if (start !== end) throw new CorruptDataError(`segment ${segment} starts at ${start}, expected ${end}`);
    end = start + tokens;
  }
  const limit = config.window + EPOCH;
  if (!Number.isSafeInteger(position) || position < 0 || position > end + limit)
    throw new CorruptDataError(
      `position ${position} is not within ${limit} tokens of the last segment's end ${end}`,
    );
  if (spans.length > 0 && position < end)
    throw new CorruptDataError(`position ${position} lies before the last segment's end ${end}`);
}

/**
 * Rebuilds a cache from stored bytes, bit for bit: blocks as they were stored, later plans of the journal replayed on them, then the
 * hot part of each layer. On failure nothing stays allocated.
 * @throws CorruptDataError when the state belongs to another model, numerics or layout, or does not parse
 */
export function restoreCache(context: CacheContext, reader: CacheStateReader): KvCache {
  const { header } = reader;
  const { kernels, model } = context;
  if (header.layoutVersion !== LAYOUT_VERSION)
    throw new CorruptDataError(`cache layout ${header.layoutVersion}, this version reads ${LAYOUT_VERSION}`);
  if (header.model !== context.fingerprint) throw new CorruptDataError('the cache belongs to another model');
  if (header.numerics !== kernels.numerics)
    throw new CorruptDataError(
      `the cache was computed by ${header.numerics}, this host runs ${kernels.numerics}`,
    );

  const cache = new KvCache(context, header.config);
  if (cache.policy.profile !== header.profile) {
    cache.dispose();
    throw new CorruptDataError(
      `the cache was compressed under head profile ${header.profile ?? 'none'}, this host has ${cache.policy.profile ?? 'none'}`,
    );
  }
  try {
    const { arena } = kernels;
    for (let layer = 0; layer < model.layers; layer++) {
      for (let segment = 0; segment < header.segments; segment++) {
        const { version, bytes } = reader.block(layer, segment);
        checkBlock(bytes, model, layer, segment);
        const stored = new SegmentReader(bytes, model.kvHeads);
        if (layer === 0) cache.spans.push({ start: stored.start, tokens: stored.tokens });
        const span = cache.spans[segment]!;
        if (stored.start !== span.start || stored.tokens !== span.tokens)
          throw new CorruptDataError(`segment ${segment} of layer ${layer} covers other positions`);
        let mass = 0;
        if (cache.tracksMass)
          for (let h = 0; h < model.kvHeads; h++) mass += massBytes(recordCells(stored.counts(h)));
        const id = arena.alloc(bytes.length + mass, 'a restored cache segment');
        arena.bytes(id).set(bytes);
        cache.adopt(layer, id, version);
      }
    }
    checkSpans(cache, header.position);
    const last = cache.spans.at(-1);
    cache.compressedEnd = last ? last.start + last.tokens : header.config.sinks;
    const changes = parseJournal(reader.journal, cache.spans, model.kvHeads);
    for (let layer = 0; layer < model.layers; layer++)
      for (let segment = 0; segment < header.segments; segment++)
        for (const change of changes.get(`${layer}/${segment}`) ?? [])
          if (change.position > cache.blockVersion(layer, segment)) {
            checkNeverFiner(cache, layer, segment, change);
            cache.recode(layer, segment, change.tiers, change.from, change.position);
          }

    cache.position = header.position;
    cache.restoreExact();
    for (let layer = 0; layer < model.layers; layer++) {
      const bytes = reader.hot(layer);
      const parts = cache.hotParts(layer);
      const expected = 16 + parts.reduce((sum, p) => sum + p.length, 0);
      const slots = bytes.length >= 4 ? new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true) : -1;
      if (bytes.length !== expected || slots !== cache.exactCount)
        throw new CorruptDataError(
          `the hot part of layer ${layer} has ${bytes.length} bytes and ${slots} slots, expected ${expected} and ${cache.exactCount}`,
        );
      let at = 16;
      for (const part of parts) {
        part.set(bytes.subarray(at, at + part.length));
        at += part.length;
      }
    }
    cache.peakBytes = header.peakBytes;
    cache.recodes = header.recodes;
    return cache;
  } catch (error) {
    cache.dispose();
    throw error;
  }
}
