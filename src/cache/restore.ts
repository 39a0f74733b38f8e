import { CorruptDataError } from '../core/errors.ts';
import { LAYOUT_VERSION, massBytes, recordCells, SEGMENT_HEADER_BYTES, TIERS } from '../kernels/layout.ts';
import { type CacheContext, KvCache } from './cache.ts';
import type { CacheStateReader, PlanJournalEntry } from './persist.ts';
import { SegmentReader } from './segments.ts';

interface Change {
  readonly position: number;
  readonly tiers: Uint8Array;
  readonly from: number;
}

/** Changes by "layer/segment", in order. @throws CorruptDataError when an entry does not parse. */
function parseJournal(
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
      if (!span || at + 4 + count > bytes.length)
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

/** Checks that a stored block is what this model and span would have written: sizes, places, counts. */
function checkBlock(bytes: Uint8Array, kvHeads: number, layer: number, segment: number): void {
  const bad = (what: string): never => {
    throw new CorruptDataError(`segment ${segment} of layer ${layer}: ${what}`);
  };
  if (bytes.length < SEGMENT_HEADER_BYTES + kvHeads * 4) bad('shorter than its header');
  const reader = new SegmentReader(bytes, kvHeads);
  if (reader.storedBytes !== bytes.length) bad(`says ${reader.storedBytes} bytes, has ${bytes.length}`);
  if (reader.tokens < 1 || reader.tokens > 128) bad(`says ${reader.tokens} tokens`);
  for (let h = 0; h < kvHeads; h++) {
    if (reader.recordAt(h) + 16 > bytes.length) bad(`record ${h} lies outside`);
    let tokens = 0;
    for (const n of reader.counts(h).subarray(0, TIERS.length)) tokens += n;
    if (tokens > reader.tokens) bad(`record ${h} counts ${tokens} of ${reader.tokens} tokens`);
  }
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
        checkBlock(bytes, model.kvHeads, layer, segment);
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
    const last = cache.spans.at(-1);
    cache.compressedEnd = last ? last.start + last.tokens : header.config.sinks;
    const changes = parseJournal(reader.journal, cache.spans, model.kvHeads);
    for (let layer = 0; layer < model.layers; layer++)
      for (let segment = 0; segment < header.segments; segment++)
        for (const change of changes.get(`${layer}/${segment}`) ?? [])
          if (change.position > cache.blockVersion(layer, segment))
            cache.recode(layer, segment, change.tiers, change.from, change.position);

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
