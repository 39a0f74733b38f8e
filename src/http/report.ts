import type { CacheConfig, CacheReport } from '../cache/policy.ts';
import { DROP, TIERS } from '../kernels/layout.ts';
import type { SessionCacheMap, SessionInfo, SessionPage, TurnEvent } from '../session/api.ts';
import { MAX_SESSIONS_PER_KEY } from '../session/limits.ts';

/** The vendor's part of answers, in the API's spelling. */

export const cacheObject = (report: CacheReport) => ({
  policy: report.policy,
  tokens: report.tokens,
  bytes: report.bytes,
  fp16_bytes: report.fp16Bytes,
  ratio: report.ratio,
  peak_bytes: report.peakBytes,
  /** The heads' profile that plans use; "none" where the policy wants one and the model was not calibrated, null where it uses none. */
  profile: report.profile ?? null,
  mean_recodes: report.meanRecodes ?? null,
  /** One token of one layer and key/value head counts once, by the tier that holds it. */
  token_heads: report.tiers,
  bytes_by_tier: report.tierBytes,
});

const configObject = (config: CacheConfig) => ({
  policy: config.policy,
  ratio: config.ratio ?? null,
  bytes: config.bytes ?? null,
  quotas: config.quotas ?? null,
  window: config.window,
  sinks: config.sinks,
  seed: config.seed,
});

const seconds = (milliseconds: number): number => Math.floor(milliseconds / 1000);

export const sessionObject = (info: SessionInfo) => ({
  id: info.id,
  object: 'session',
  title: info.title,
  model: info.model,
  created_at: seconds(info.createdAt),
  last_used_at: seconds(info.lastUsedAt),
  expires_at: info.expiresAt === null ? null : seconds(info.expiresAt),
  turns: info.turns,
  tokens: info.tokens,
  cache_config: configObject(info.cacheConfig),
  cache: info.cache && cacheObject(info.cache),
  stored_bytes: info.storedBytes,
  busy: info.busy,
  /** Tokens that another backend computed: what follows goes on from them, but they cannot be made again here with the same bits. */
  ...(info.foreign && { foreign_prefix: { ...info.foreign, reproducible: false } }),
});

export const sessionListObject = ({ sessions, last, more, total }: SessionPage) => ({
  object: 'list',
  data: sessions.map(sessionObject),
  last_id: last,
  has_more: more,
  total,
  quota: MAX_SESSIONS_PER_KEY,
});

/** The legend of tier ids, finest first. */
const TIER_OBJECTS = [
  ...TIERS.map(({ id, name, kBits, vBits }) => ({ id, name, key_bits: kBits, value_bits: vBits })),
  { id: DROP, name: 'drop', key_bits: 0, value_bits: 0 },
];

export const cacheMapObject = (map: SessionCacheMap) => ({
  object: 'session.cache',
  session_id: map.id,
  layers: map.layers,
  kv_heads: map.kvHeads,
  tokens: map.position,
  /** Positions held exactly: [first, count]. */
  exact: [
    [0, Math.min(map.sinks, map.position)],
    [map.exactFrom, map.position - map.exactFrom],
  ],
  evicted: map.evicted,
  closed: map.closed,
  text: map.text,
  messages: map.messages,
  cache: map.report && cacheObject(map.report),
  tiers: TIER_OBJECTS,
  /** By segment: base64 of kv_heads * tokens bytes, head by head. */
  data: map.shown,
});

type Finished = Extract<TurnEvent, { type: 'finished' }>;

export const usageObject = ({ promptTokens, completionTokens, cachedTokens }: Finished['usage']) => ({
  prompt_tokens: promptTokens,
  completion_tokens: completionTokens,
  total_tokens: promptTokens + completionTokens,
  prompt_tokens_details: { cached_tokens: cachedTokens },
});

/** What the turn did, beyond OpenAI's fields. */
export const turnObject = (sessionId: string | null, event: Finished) => ({
  session_id: sessionId,
  cache: cacheObject(event.cache),
  ...(event.recovered ? { recovered: event.recovered } : {}),
  timing: {
    load_ms: event.timing.loadMs,
    wait_ms: event.timing.waitMs,
    prefill_ms: event.timing.prefillMs,
    decode_ms: event.timing.decodeMs,
    restore_ms: event.timing.restoreMs,
    commit_ms: event.timing.commitMs,
  },
  rows_written: event.rows.written,
  bytes_written: event.rows.bytes,
});

/** https://www.w3.org/TR/server-timing/ */
export const serverTiming = (timing: Finished['timing']): string =>
  `load;dur=${timing.loadMs.toFixed(1)}, wait;dur=${timing.waitMs.toFixed(1)}, ` +
  `restore;dur=${timing.restoreMs.toFixed(1)}, prefill;dur=${timing.prefillMs.toFixed(1)}, ` +
  `decode;dur=${timing.decodeMs.toFixed(1)}, commit;dur=${timing.commitMs.toFixed(1)}`;

type TokenEvent = Extract<TurnEvent, { type: 'token' }>;

const utf8 = new TextEncoder();

/** OpenAI's log-probabilities, of the tokens that have one. Where a token is a part of a character its bytes tell what it is. */
export const tokenLogprobs = (tokens: readonly TokenEvent[]) =>
  tokens
    .filter(({ logprob }) => logprob !== undefined)
    .map(({ text, piece = text, bytes = [...utf8.encode(piece)], logprob, top = [] }) => ({
      token: piece,
      logprob: logprob!,
      bytes,
      top_logprobs: top.map((other) => ({
        token: other.text,
        logprob: other.logprob,
        bytes: other.bytes ?? [...utf8.encode(other.text)],
      })),
    }));
