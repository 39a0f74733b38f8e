import { EPOCH, type ModelConfig } from '../core/config.ts';
import { CorruptDataError } from '../core/errors.ts';
import {
  DROP,
  LAYOUT_VERSION,
  massBytes,
  RECORD_HEADER_BYTES,
  readTiers,
  recordParts,
  segmentHeaderBytes,
  TIER_IDS,
  TIERS,
} from '../kernels/layout.ts';
import { type CacheContext, KvCache } from './cache.ts';
import { isTier, Replay } from './journal.ts';
import { PendingPlan } from './pending-plan.ts';
import { type CacheStateReader, changingParts, HOT_HEADER_BYTES, type PlanJournalEntry } from './persist.ts';
import { epochOf, isWaiting, segmentsHeld, spansAt } from './schedule.ts';
import { SegmentReader, type SegmentSpan } from './segments.ts';

/**
 * Checks that a stored block is what this model and span would have written: sizes, places, counts, tier maps. Kernels trust all of these, and
 * share their memory with other conversations.
 * @returns its tiers, [kvHeads][tokens], and the bytes of its cells' masses
 */
function checkBlock(
  bytes: Uint8Array,
  { kvHeads, headDim }: Pick<ModelConfig, 'kvHeads' | 'headDim'>,
  layer: number,
  segment: number,
  span: SegmentSpan,
): { tiers: Uint8Array; mass: number } {
  const bad = (what: string): never => {
    throw new CorruptDataError(`segment ${segment} of layer ${layer}: ${what}`);
  };
  if (bytes.length < segmentHeaderBytes(kvHeads)) bad('shorter than its header');
  const reader = new SegmentReader(bytes, kvHeads, headDim);
  if (reader.storedBytes !== bytes.length) bad(`says ${reader.storedBytes} bytes, has ${bytes.length}`);
  if (reader.tokens < 1 || reader.tokens > 128) bad(`says ${reader.tokens} tokens`);
  if (reader.start !== span.start || reader.tokens !== span.tokens) bad('covers other positions');
  const length = span.tokens;
  const tiers = new Uint8Array(kvHeads * length);
  const counted = new Uint8Array(TIER_IDS);
  let mass = 0;
  let end = segmentHeaderBytes(kvHeads);
  for (let h = 0; h < kvHeads; h++) {
    const at = reader.recordAt(h);
    if (at === 0) {
      tiers.fill(DROP, h * length, (h + 1) * length);
      continue;
    }
    if (at !== end) bad('its records lie elsewhere than their sizes say');
    // Before the counts are read, and before what they place.
    if (at + RECORD_HEADER_BYTES + TIER_IDS > bytes.length) bad(`record ${h} lies outside`);
    const said = reader.counts(h);
    const parts = recordParts(length, said, headDim);
    end += parts.bytes;
    if (end > bytes.length) bad(`record ${h} lies outside`);
    let tokens = 0;
    for (let id = 0; id < TIER_IDS; id++) tokens += said[id]!;
    if (tokens === 0) bad(`record ${h} is empty`);
    if (tokens > length) bad(`record ${h} counts ${tokens} of ${length} tokens`);
    readTiers(bytes, at, parts.map, said, tiers, h * length, length);
    counted.fill(0);
    for (let i = h * length; i < (h + 1) * length; i++) counted[tiers[i]!]!++;
    let named = 0;
    for (let id = 0; id < TIER_IDS; id++) {
      if (counted[id] === 0 || id === DROP) continue;
      if (!isTier(id)) bad(`record ${h} has a tier that does not exist`);
      named |= 1 << id;
    }
    for (let id = 0; id < TIER_IDS; id++)
      if (said[id] !== (id < TIERS.length ? counted[id] : 0))
        bad(`record ${h} counts other tiers than its map`);
    // Kernels place everything by the tiers that are named: one without tokens would move the rest.
    if (reader.present(h) !== named) bad(`record ${h} names other tiers than it holds`);
    if (parts.plain && mixesPlain(said)) bad(`record ${h} holds plain tiers beside others`);
    mass += massBytes(parts.cells);
  }
  if (end !== bytes.length) bad('its records lie elsewhere than their sizes say');
  return { tiers, mass };
}

const mixesPlain = (counts: Uint8Array): boolean =>
  [true, false].every((plain) => TIERS.some((tier) => tier.plain === plain && counts[tier.id]! > 0));

/** [kvHeads][tokens] */
function tiersOf(reader: SegmentReader): Uint8Array {
  const tiers = new Uint8Array(reader.kvHeads * reader.tokens);
  for (let h = 0; h < reader.kvHeads; h++) reader.tiers(h, tiers, h * reader.tokens);
  return tiers;
}

/** The newest epoch's plan, which some layers wait for. */
function adoptPending(cache: KvCache, replay: Replay, journal: readonly PlanJournalEntry[]): void {
  const { layers } = cache.context.model;
  const epoch = epochOf(cache.position);
  const waiting = Array.from({ length: layers }, (_, layer) => isWaiting(cache.position, layer, layers));
  const changes = replay.pending(epoch, waiting, (layer, segment) => {
    const block = cache.blocks[layer]![segment];
    return block && tiersOf(cache.reader(block));
  });
  for (const [layer, waits] of waiting.entries()) {
    const held = cache.segmentsOf(layer);
    if (waits && held < cache.spans.length && !changes[layer]!.some(({ segment }) => segment === held))
      throw new CorruptDataError(`the plan of position ${epoch} lacks the newest segment of layer ${layer}`);
  }
  const entry = journal.findLast(({ position }) => position === epoch)!;
  cache.adoptPlan(PendingPlan.restored(entry, changes, waiting));
}

/** Takes a stored block over, and replays the plans since. */
function restoreBlock(
  cache: KvCache,
  source: CacheStateReader,
  replay: Replay,
  layer: number,
  segment: number,
): void {
  const { kernels, model } = cache.context;
  const { arena } = kernels;
  const { version, bytes } = source.block(layer, segment);
  const { tiers, mass } = checkBlock(bytes, model, layer, segment, cache.spans[segment]!);
  const id = arena.alloc(bytes.length + (cache.tracksMass ? mass : 0), 'a restored cache segment');
  arena.bytes(id).set(bytes);
  kernels.hostWrote(arena.ptr(id), bytes.length);
  cache.adopt(layer, id, version);
  const since = replay.stepsOf(layer, segment, version, tiers);
  for (const step of since.steps) cache.recode(layer, segment, step, 0, since.version);
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
    if (!Number.isSafeInteger(header.position) || header.position < 0)
      throw new CorruptDataError(`position ${header.position} is not a number of tokens`);
    cache.spans.push(...spansAt(header.position, header.config));
    if (cache.spans.length !== header.segments)
      throw new CorruptDataError(
        `${header.segments} segments at position ${header.position}, expected ${cache.spans.length}`,
      );
    cache.messages?.restore(header.messages ?? '', header.position);
    cache.gaps.restore(header.closed ?? [], header.position, header.config);
    // In one step: each growth is a new buffer of the whole memory to the collector, and costs ten milliseconds. Not beyond what the cache may hold, since
    // memory never shrinks.
    if (reader.bytes !== undefined) {
      const most = cache.budgetAt(header.position) + model.layers * cache.exact.bytesFor(2 * EPOCH);
      kernels.arena.reserve(Math.min(reader.bytes, most));
    }
    const replay = new Replay(reader.journal, cache.spans, model, header.position);
    const held = Array.from({ length: model.layers }, (_, layer) =>
      segmentsHeld(header.position, header.config, layer, model.layers),
    );
    // Segment by segment, as blocks are stored: each stored row is read once.
    for (let segment = 0; segment < cache.spans.length; segment++)
      for (let layer = 0; layer < model.layers; layer++)
        if (segment < held[layer]!) restoreBlock(cache, reader, replay, layer, segment);
    cache.position = header.position;
    if (cache.spans.length > 0 && isWaiting(header.position, model.layers - 1, model.layers))
      adoptPending(cache, replay, reader.journal);
    cache.restoreExact();
    for (let layer = 0; layer < model.layers; layer++) {
      const bytes = reader.hot(layer);
      const views = cache.hotViews(layer);
      const parts = [...views.planes, ...changingParts(views)];
      const expected = HOT_HEADER_BYTES + parts.reduce((sum, p) => sum + p.length, 0);
      const slots = bytes.length >= 4 ? new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true) : -1;
      if (bytes.length !== expected || slots !== cache.exactCount(layer))
        throw new CorruptDataError(
          `the hot part of layer ${layer} has ${bytes.length} bytes and ${slots} slots, expected ${expected} and ${cache.exactCount(layer)}`,
        );
      let at = HOT_HEADER_BYTES;
      for (const part of parts) {
        part.set(bytes.subarray(at, at + part.length));
        kernels.hostWrote(part.byteOffset, part.length);
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
