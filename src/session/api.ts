import type { CacheConfig, CacheReport } from '../cache/policy.ts';
import type { AnswerFormat } from '../engine/json/schema.ts';
import type { ChatMessage, SamplingOptions, TokenLogprob } from '../engine/types.ts';
import type { Listing } from './directory.ts';
import type { MadeAnswer } from './log.ts';

/** What the HTTP layer knows of sessions. Two hosts: Durable Objects (worker.ts) and in-process (node.ts). All data are JSON. */
export interface TurnRequest {
  /** Where a session that this turn makes is listed; undefined: nowhere. */
  readonly listing?: Listing;
  readonly messages: readonly ChatMessage[];
  /** 'whole': messages is the whole conversation, longest common prefix is reused. 'append': only what is new. */
  readonly mode: 'whole' | 'append';
  /** With 'whole': replace a log that shares no turn with the messages instead of failing with `session_diverged`. */
  readonly overwrite: boolean;
  /** With 'whole': fail with `session_moved` if the messages would cut anything that was finished. */
  readonly continues?: boolean;
  /** The messages that the request was made for, see markOf in log.ts: fail with `session_moved` if the session holds others by now. */
  readonly onto?: string;
  /** false: nothing is left behind after the turn. */
  readonly store: boolean;
  /** true: the object was chosen by hash, not named by the client: short time to live, first to be evicted. */
  readonly implicit: boolean;
  readonly sampling: SamplingOptions;
  readonly stop: readonly string[];
  readonly maxTokens: number;
  /** What the answer must be; any text by default. */
  readonly format?: AnswerFormat;
  /** Only used when the session does not exist yet. */
  readonly cache?: Partial<CacheConfig>;
  /** With 'append': a name for this very message. Sent again under it, it is answered again instead of being said twice. */
  readonly idempotencyKey?: string;
  /** Kept with the answer when it is complete, and handed out with it by `messages`: what the asker wants to know again. At most MAX_NOTE_CHARACTERS. */
  readonly note?: string;
  /** Idle seconds until a session that this turn creates is deleted; otherwise what `implicit` says. */
  readonly ttlSeconds?: number;
}

export interface Usage {
  readonly promptTokens: number;
  readonly completionTokens: number;
  /** Prompt tokens whose keys and values were really reused; exact. */
  readonly cachedTokens: number;
}

export type TurnEvent =
  | { readonly type: 'started'; readonly promptTokens: number; readonly cachedTokens: number }
  | { readonly type: 'prefill'; readonly position: number; readonly total: number }
  | {
      readonly type: 'token';
      readonly id: number;
      readonly text: string;
      /** The token by itself, where `logprob` is given: `text` may be held back or belong to several tokens. */
      readonly piece?: string;
      /** The piece's bytes, where they are no whole characters: `piece` has U+FFFD in their place. */
      readonly bytes?: readonly number[];
      readonly logprob?: number;
      readonly top?: readonly (TokenLogprob & { text: string; bytes?: readonly number[] })[];
    }
  /** Comes only after the commit and storage.sync(). */
  | {
      readonly type: 'finished';
      readonly reason: 'stop' | 'length';
      /** What was held back until the end: the answer is the text of all tokens, then this. */
      readonly text: string;
      readonly usage: Usage;
      readonly cache: CacheReport;
      /** Set when stored state was damaged, foreign or cut: where it stood and what was recomputed. */
      readonly recovered?: { readonly reason: string; readonly from: number; readonly replayed: number };
      readonly timing: {
        /** Until the engine was there: the whole load for the first turn of an isolate, nothing later. */
        readonly loadMs: number;
        /** In the queue for the isolate's memory. */
        readonly waitMs: number;
        readonly prefillMs: number;
        readonly decodeMs: number;
        readonly restoreMs: number;
        readonly commitMs: number;
      };
      readonly rows: { readonly written: number; readonly bytes: number };
    }
  | { readonly type: 'failed'; readonly error: WireError };

/** An AdkvcError as JSON. */
export interface WireError {
  readonly code: string;
  readonly message: string;
  readonly param?: string;
  readonly data?: Record<string, unknown>;
}

/** A session's first tokens that another backend computed: going on from them is sound, making them again here would give other bits. */
export interface ForeignPrefix {
  readonly numerics: string;
  readonly tokens: number;
}

export interface ImportOptions {
  readonly ttlSeconds?: number;
  readonly listing?: Listing;
  /** Goes on from a state that another backend computed, as it lies, instead of reading the log again. */
  readonly foreignNumerics?: boolean;
}

export interface SessionInfo {
  readonly id: string;
  /** How the user's first message begins, for lists; '' before it. */
  readonly title: string;
  readonly model: string;
  readonly createdAt: number;
  readonly lastUsedAt: number;
  readonly expiresAt: number | null;
  readonly turns: number;
  readonly tokens: number;
  readonly cacheConfig: CacheConfig;
  readonly cache: CacheReport | null;
  readonly storedBytes: number;
  /** A turn runs or waits: all else is as of the last commit; before the first one nothing is said yet, and the title is of what was asked. */
  readonly busy: boolean;
  readonly foreign?: ForeignPrefix;
}

/** A message, and what is known of how it was made. */
export interface SaidMessage extends ChatMessage {
  readonly made?: MadeAnswer;
  /** An answer that nobody gave here: the client brought it. */
  readonly given?: true;
  readonly withdrawn?: true;
}

export interface SessionPage {
  /** Newest first. */
  readonly sessions: readonly SessionInfo[];
  /** The id that the next page comes after. */
  readonly last: string | null;
  readonly more: boolean;
  /** Of all pages. */
  readonly total: number;
}

/** How a conversation's cache holds its tokens, as of the last commit. */
export interface SessionCacheMap {
  readonly id: string;
  readonly layers: number;
  readonly kvHeads: number;
  /** Tokens in the cache. */
  readonly position: number;
  /** Held exactly in every layer shown: the first `sinks`, and [exactFrom, position). A layer without the newest segment holds its tokens exactly too. */
  readonly sinks: number;
  readonly exactFrom: number;
  readonly report: CacheReport | null;
  /** What was said at each position; a character of several tokens stands at its last one, markup may be ''. */
  readonly text: readonly string[];
  /** Whose words they are: a message goes from the end of the one before (0 for the first) to `end`. */
  readonly messages: readonly { readonly role: ChatMessage['role']; readonly end: number }[];
  /** Positions between that no head of the layers shown holds any more, as [first, count]. */
  readonly evicted: readonly (readonly [number, number])[];
  /** Positions whose gaps are closed, likewise: what follows is read as if they had never been. */
  readonly closed: readonly (readonly [number, number])[];
  /** Without the closed segments of which nothing is held any more: past the trained length most are. */
  readonly shown: readonly {
    readonly layer: number;
    readonly segments: readonly {
      readonly start: number;
      readonly tokens: number;
      /** Base64 of [kvHeads][tokens] bytes: tier ids. */
      readonly tiers: string;
      /** Likewise, 0..255 relative to the head's most attended token; null where the policy keeps no attention history. */
      readonly relevance: string | null;
    }[];
  }[];
}

/** One conversation as bytes, see transfer.ts. Cancel the stream when it is not read to its end. */
export interface SessionExport {
  readonly bytes: number;
  readonly stream: ReadableStream<Uint8Array>;
}

/**
 * `key` is the object's name, HMAC(owner, id): made by the HTTP layer. Methods throw AdkvcError with codes
 * session_not_found, session_exists, session_diverged, session_moved, session_busy (data.retryAfter), memory_limit (data.retryAfter), context_length_exceeded, ...
 */
export interface SessionHost {
  create(
    key: string,
    id: string,
    options: { cache?: Partial<CacheConfig>; ttlSeconds?: number; listing?: Listing },
  ): Promise<SessionInfo>;
  get(key: string): Promise<SessionInfo>;
  messages(key: string): Promise<SaidMessage[]>;
  /**
   * Deletes the answer that is message `count` (from 1), see unsay.ts. A turn that runs is waited for.
   * @param mark of the messages before the answer, see markOf in log.ts
   * @throws AdkvcError session_not_found, session_moved where others stand by now; InvalidInputError message
   */
  unsay(key: string, count: number, mark?: string): Promise<void>;
  delete(key: string): Promise<void>;
  /** What is listed in a directory. @throws AdkvcError session_not_found (after) */
  list(directory: string, page: { limit: number; after?: string }): Promise<SessionPage>;
  /** As of the last commit, whether a turn runs or not. @param layer undefined: all */
  cacheMap(key: string, layer?: number): Promise<SessionCacheMap>;
  /** As of the last commit; turns go on meanwhile. */
  export(key: string): Promise<SessionExport>;
  /** @throws AdkvcError session_exists, not_an_export, unsupported_export_version, unsupported_layout, foreign_model, export_truncated, export_too_large, export_corrupt */
  import(
    key: string,
    id: string,
    file: ReadableStream<Uint8Array>,
    options: ImportOptions,
  ): Promise<SessionInfo>;
  /**
   * An independent copy, as of the last commit, that goes on under another key and id.
   * @param options.messages how many of the conversation's messages it keeps; undefined: all
   */
  fork(
    key: string,
    to: { readonly key: string; readonly id: string },
    options: { messages?: number; ttlSeconds?: number; listing?: Listing },
  ): Promise<SessionInfo>;
  /**
   * Runs one turn. Errors found before the first event are thrown, later ones come as `failed`. Aborting
   * `signal` (or returning from the iterator) ends the turn at the next token; what was generated is committed.
   * @param id the public id, stored when the turn creates the session (named and implicit sessions alike)
   */
  turn(key: string, id: string, request: TurnRequest, signal: AbortSignal): Promise<AsyncIterable<TurnEvent>>;
}
