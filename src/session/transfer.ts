import * as v from 'valibot';
import type { CacheConfig } from '../cache/policy.ts';
import { EPOCH } from '../core/config.ts';
import { AdkvcError, CorruptDataError, InvalidInputError } from '../core/errors.ts';
import { release } from '../core/release.ts';
import type { Engine } from '../engine/types.ts';
import { LAYOUT_VERSION } from '../kernels/layout.ts';
import type { ForeignPrefix } from './api.ts';
import type { ByteReader } from './byte-reader.ts';
import { checksum } from './checksum.ts';
import { FIRST_FREE_ROW, type Head, headWithin } from './head.ts';
import { MAX_EXPORT_BYTES, MAX_MANIFEST_BYTES, MAX_NOTE_CHARACTERS } from './limits.ts';
import { type Log, prefixOf } from './log.ts';
import { FRAME_BYTES, RowKind, type RowRef, readFramed, readRef, writeFramed } from './row.ts';
import { readState, STATE_VERSION, type StateRecord } from './state.ts';
import { MAX_ROW_BYTES, type SessionStore } from './store/session-store.ts';

/*
 * A conversation as one stream of bytes: what export hands out, import takes, and a fork sends from object to object.
 *
 *   header    8 bytes 'ADKVCSES'; u32 format version; u32 manifest bytes; f64 bytes of the whole; u32 checksum of the
 *             manifest; u32 checksum of the 28 bytes before; little-endian
 *   manifest  JSON: the log, the configuration, whose they are, and the state record, whose references count the rows below from FIRST_FREE_ROW
 *   rows      the state's stored rows as they are, frames included, in the order of the references
 *
 * Each byte is under a checksum (rows: through the manifest's references), so that a change of any is found. Checksums are no signatures: a file that
 * was forged with right checksums is a conversation like any that its bearer could have had; its state is checked as strictly as it is read.
 */
const MAGIC = 'ADKVCSES';
export const EXPORT_VERSION = 2;
const HEADER_BYTES = 32;

/** A conversation at one commit, and the rows that it needs. */
export interface Snapshot {
  readonly manifest: Uint8Array;
  readonly rows: readonly { readonly ref: RowRef; readonly kind: RowKind }[];
  /** Their ids. */
  readonly stored: readonly number[];
  /** Bytes of the whole stream. */
  readonly bytes: number;
}

const uint = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
const refs = v.array(v.tuple([uint, uint, uint]));
/** Fields that a policy adds; the engine judges a configuration. */
const more = v.union([v.string(), v.number(), v.boolean(), v.record(v.string(), v.number())]);
const configSchema = v.objectWithRest(
  {
    policy: v.string(),
    window: v.pipe(uint, v.maxValue(EPOCH)),
    sinks: v.pipe(uint, v.maxValue(EPOCH)),
    seed: uint,
    exactBits: v.picklist([16, 32]),
    arithmetic: v.picklist(['integer', 'float']),
  },
  more,
);
const stateSchema = v.strictObject({
  version: v.literal(STATE_VERSION),
  header: v.objectWithRest(
    {
      layoutVersion: uint,
      numerics: v.string(),
      model: v.string(),
      config: configSchema,
      position: uint,
      segments: uint,
      closed: v.exactOptional(v.array(uint)),
      peakBytes: uint,
      recodes: uint,
    },
    more,
  ),
  hot: v.strictObject({ refs, sizes: v.array(uint) }),
  exact: v.strictObject({
    stride: uint,
    planes: uint,
    pinned: uint,
    pieces: v.array(v.strictObject({ refs, from: uint, to: uint })),
  }),
  extents: v.array(v.strictObject({ refs, written: uint, first: uint, count: uint })),
  journal: v.array(v.strictObject({ refs, positions: v.array(uint) })),
});
const manifestSchema = v.strictObject({
  ttlSeconds: v.nullable(uint),
  cacheConfig: configSchema,
  report: v.nullable(
    v.objectWithRest(
      {
        policy: v.string(),
        tokens: uint,
        bytes: uint,
        fp16Bytes: uint,
        ratio: v.number(),
        peakBytes: uint,
        tiers: v.record(v.string(), uint),
      },
      more,
    ),
  ),
  engine: v.nullable(
    v.strictObject({ model: v.string(), fingerprint: v.string(), numerics: v.string(), layoutVersion: uint }),
  ),
  log: v.strictObject({
    messages: v.array(
      v.strictObject({
        role: v.picklist(['system', 'user', 'assistant']),
        content: v.string(),
        end: uint,
        prompt: v.exactOptional(uint),
        open: v.exactOptional(v.literal(true)),
        unfinished: v.exactOptional(v.string()),
        idempotencyKey: v.exactOptional(v.string()),
        made: v.exactOptional(
          v.strictObject({
            reason: v.picklist(['stop', 'length']),
            promptTokens: uint,
            completionTokens: uint,
            cachedTokens: uint,
            at: uint,
            note: v.pipe(v.string(), v.maxLength(MAX_NOTE_CHARACTERS)),
          }),
        ),
        given: v.exactOptional(v.literal(true)),
        withdrawn: v.exactOptional(v.literal(true)),
      }),
    ),
    ids: v.array(uint),
    fed: uint,
  }),
  state: v.nullable(stateSchema),
  foreign: v.exactOptional(v.strictObject({ numerics: v.string(), tokens: uint })),
});
type Manifest = v.InferOutput<typeof manifestSchema>;

/** The rows of a state in the order of its references. */
function rowsOf(record: StateRecord): { ref: RowRef; kind: RowKind }[] {
  const all = (list: readonly RowRef[], kind: RowKind) => list.map((ref) => ({ ref, kind }));
  return [
    ...all(record.hot.refs, RowKind.hot),
    ...record.exact.pieces.flatMap((piece) => all(piece.refs, RowKind.exact)),
    ...record.extents.flatMap((extent) => all(extent.refs, RowKind.extent)),
    ...record.journal.flatMap((pack) => all(pack.refs, RowKind.journal)),
  ];
}

function renumbered(record: StateRecord): StateRecord {
  let next = FIRST_FREE_ROW;
  const all = (list: readonly RowRef[]): RowRef[] => list.map(([, check, bytes]) => [next++, check, bytes]);
  // In the order of rowsOf.
  return {
    version: record.version,
    header: record.header,
    hot: { ...record.hot, refs: all(record.hot.refs) },
    exact: {
      ...record.exact,
      pieces: record.exact.pieces.map((piece) => ({ ...piece, refs: all(piece.refs) })),
    },
    extents: record.extents.map((extent) => ({ ...extent, refs: all(extent.refs) })),
    journal: record.journal.map((pack) => ({ ...pack, refs: all(pack.refs) })),
  };
}

/**
 * The conversation as it was committed last, or its first `messages` messages: with the newest whole state within them. A state with a
 * damaged row is passed over, for an older one or none: the log leads to the same.
 * @throws InvalidInputError messages
 */
export function snapshot(store: SessionStore, head: Head, messages?: number): Snapshot {
  const said = head.log.messages.length;
  if (messages !== undefined && messages > said)
    throw new InvalidInputError(
      `messages must be at most ${said}: the session holds no more of them`,
      'messages',
    );
  const whole = messages === undefined || messages === said;
  const log = whole ? head.log : prefixOf(head.log, messages);
  const { foreign } = headWithin(head, log.ids.length);
  const state = newestState(store, head, whole ? log.fed : log.ids.length);
  const manifest: Manifest = {
    // An implicit session's short life is no wish of its owner.
    ttlSeconds: head.implicit ? null : head.ttlSeconds,
    cacheConfig: { ...head.cacheConfig },
    report: whole ? (head.report as Manifest['report']) : null,
    engine: head.engine && { ...head.engine },
    log: { ...log, fed: state?.header.position ?? 0 } as Manifest['log'],
    state: state ? (renumbered(state) as unknown as Manifest['state']) : null,
    ...(foreign && { foreign }),
  };
  const bytes = new TextEncoder().encode(JSON.stringify(manifest));
  const rows = state ? rowsOf(state) : [];
  const size = rows.reduce((sum, { ref }) => sum + FRAME_BYTES + ref[2], HEADER_BYTES + bytes.byteLength);
  return { manifest: bytes, rows, stored: rows.map(({ ref }) => ref[0]), bytes: size };
}

function newestState(store: SessionStore, head: Head, target: number): StateRecord | undefined {
  for (const entry of head.states.toReversed()) {
    if (entry.position > target) continue;
    try {
      const record = readState(store, entry);
      for (const { ref, kind } of rowsOf(record)) release(readRef(store, ref, kind));
      return record;
    } catch (error) {
      if (!(error instanceof CorruptDataError)) throw error;
    }
  }
  return undefined;
}

/** The snapshot's bytes, a row at a time. @throws CorruptDataError when the session was deleted meanwhile */
export function* exportChunks(
  store: SessionStore,
  { manifest, rows, bytes }: Snapshot,
): Generator<Uint8Array> {
  const header = new Uint8Array(HEADER_BYTES);
  const view = new DataView(header.buffer);
  header.set(new TextEncoder().encode(MAGIC));
  view.setUint32(8, EXPORT_VERSION, true);
  view.setUint32(12, manifest.byteLength, true);
  view.setFloat64(16, bytes, true);
  view.setUint32(24, checksum(manifest), true);
  view.setUint32(28, checksum(header.subarray(0, 28)), true);
  yield header;
  yield manifest;
  for (const { ref, kind } of rows) {
    const row = new Uint8Array(FRAME_BYTES + ref[2]);
    const payload = readRef(store, ref, kind);
    row.set(payload, FRAME_BYTES);
    release(payload);
    yield framed(row, kind);
  }
}

/** Fills the frame in, as in a store. */
function framed(row: Uint8Array, kind: RowKind): Uint8Array {
  const sink = { put: () => {} } as unknown as SessionStore;
  writeFramed(sink, 0, kind, row);
  return row;
}

/** Why a file is no import, by name. */
const refuse = (code: string, message: string): AdkvcError =>
  new AdkvcError(code, message, { param: 'file' });
const corrupt = (what: string): AdkvcError =>
  refuse('export_corrupt', `the file was changed or damaged: ${what}; export the session again`);

/** What an import makes of a session; states are added when its rows are written. */
export interface Imported {
  readonly ttlSeconds: number | null;
  readonly cacheConfig: CacheConfig;
  readonly report: Head['report'];
  readonly engine: Head['engine'];
  readonly log: Log;
  readonly state: StateRecord | null;
  readonly foreign?: ForeignPrefix;
}

/**
 * Reads an export and hands its rows on, one at a time; never holds more than the manifest and a row.
 * @param foreignNumerics takes a state that another backend computed for one of this engine's; else it is kept and passed over at the next turn
 * @param putRow called with a framed row and the id that the state record knows it by
 * @throws AdkvcError not_an_export, unsupported_export_version, unsupported_layout, foreign_model, export_truncated, export_too_large, export_corrupt
 */
export async function readExport(
  file: ByteReader,
  engine: Engine,
  putRow: (id: number, row: Uint8Array) => void,
  foreignNumerics = false,
): Promise<Imported> {
  const header = await file.take(HEADER_BYTES);
  const view = new DataView(header.buffer, header.byteOffset, HEADER_BYTES);
  if (new TextDecoder().decode(header.subarray(0, 8)) !== MAGIC)
    throw refuse('not_an_export', 'the file is no exported session: GET /v1/sessions/ID/export makes one');
  const version = view.getUint32(8, true);
  if (version !== EXPORT_VERSION)
    throw refuse(
      'unsupported_export_version',
      `the file has export version ${version}, this server reads ${EXPORT_VERSION}`,
    );
  if (view.getUint32(28, true) !== checksum(header.subarray(0, 28)))
    throw corrupt('its header fails its checksum');
  const total = view.getFloat64(16, true);
  const manifestBytes = view.getUint32(12, true);
  if (total > MAX_EXPORT_BYTES || manifestBytes > MAX_MANIFEST_BYTES)
    throw refuse(
      'export_too_large',
      `the file has ${total} bytes, ${manifestBytes} of them text; allowed are ${MAX_EXPORT_BYTES} (MAX_EXPORT_BYTES) and ${MAX_MANIFEST_BYTES} (MAX_MANIFEST_BYTES)`,
    );
  const text = await file.take(manifestBytes);
  if (checksum(text) !== view.getUint32(24, true)) throw corrupt('its manifest fails its checksum');
  const parsed = parseManifest(text, engine);
  const manifest = foreignNumerics ? asOwn(parsed, engine) : parsed;
  const rows = manifest.state ? rowsOf(manifest.state) : [];
  const sum = rows.reduce((bytes, { ref }) => bytes + FRAME_BYTES + ref[2], HEADER_BYTES + manifestBytes);
  if (sum !== total) throw corrupt('its rows and its length do not agree');

  for (const { ref, kind } of rows) {
    const row = await file.take(FRAME_BYTES + ref[2]);
    let check: number;
    try {
      ({ check } = readFramed(row, ref[0], kind));
    } catch (error) {
      throw corrupt(error instanceof Error ? error.message : String(error));
    }
    if (check !== ref[1]) throw corrupt(`row ${ref[0]} is another than its manifest names`);
    putRow(ref[0], row);
  }
  if (!(await file.atEnd())) throw corrupt('it goes on after its end');
  return manifest;
}

function parseManifest(bytes: Uint8Array, engine: Engine): Imported {
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch {
    throw corrupt('its manifest is no JSON');
  }
  const parsed = v.safeParse(manifestSchema, json, { abortEarly: true });
  if (!parsed.success) {
    const issue = parsed.issues[0];
    throw corrupt(`manifest.${v.getDotPath(issue) ?? ''}: ${issue.message}`);
  }
  const manifest = parsed.output;
  const { engine: from, log, state } = manifest;
  if (from && from.fingerprint !== engine.fingerprint)
    throw refuse(
      'foreign_model',
      `the session belongs to model ${from.model} (${from.fingerprint}), this server runs ${engine.model.name} (${engine.fingerprint})`,
    );
  if (from && from.layoutVersion !== LAYOUT_VERSION)
    throw refuse(
      'unsupported_layout',
      `the session's cache has layout ${from.layoutVersion}, this server reads ${LAYOUT_VERSION}`,
    );
  if (log.ids.some((id) => id >= engine.model.vocab)) throw corrupt('an id is outside the vocabulary');
  let end = 0;
  for (const message of log.messages) {
    if (message.end < end || message.end > log.ids.length || (message.prompt ?? 0) > message.end)
      throw corrupt('its messages and ids do not agree');
    end = message.end;
  }
  if (!from && log.ids.length > 0) throw corrupt('its ids belong to no model');
  if (log.fed !== (state?.header.position ?? 0) || log.fed > log.ids.length)
    throw corrupt('its log and its state do not agree');
  if (state) checkState(state, manifest);
  return manifest as unknown as Imported;
}

/** Stored bytes mean the same to every backend; only what is computed from them differs in its last bits. */
function asOwn(imported: Imported, { numerics }: Engine): Imported {
  const { engine, state } = imported;
  if (!engine || !state || engine.numerics === numerics) return imported;
  return {
    ...imported,
    engine: { ...engine, numerics },
    state: { ...state, header: { ...state.header, numerics } },
    foreign: { numerics: engine.numerics, tokens: state.header.position },
  };
}

function checkState(state: NonNullable<Manifest['state']>, { cacheConfig, engine }: Manifest): void {
  const { header } = state;
  // The configuration that admission counts by must be the one that the cache lives by.
  const same = Object.entries({ ...cacheConfig, ...header.config }).every(
    ([name, value]) =>
      cacheConfig[name as keyof typeof cacheConfig] === value &&
      header.config[name as keyof typeof cacheConfig] === value,
  );
  if (!same || header.model !== engine!.fingerprint || header.numerics !== engine!.numerics)
    throw corrupt('its state belongs to another conversation');
  if (header.layoutVersion !== engine!.layoutVersion) throw corrupt('its state has another layout');
  let next = FIRST_FREE_ROW;
  for (const { ref } of rowsOf(state as unknown as StateRecord)) {
    if (ref[0] !== next++) throw corrupt('its rows are out of order');
    if (ref[2] > MAX_ROW_BYTES - FRAME_BYTES) throw corrupt(`row ${ref[0]} is larger than a row`);
  }
}
