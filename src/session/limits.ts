/** Every limit of a session, by name; an error that one of them causes names it and its value. */

/** Turns that may wait for one conversation's lock; the next one gets `session_busy`. */
export const MAX_WAITING_TURNS_PER_SESSION = 4;
/** Turns of all conversations that may wait for memory in one isolate. */
export const MAX_WAITING_TURNS_PER_ISOLATE = 16;
/** How long a turn waits for memory before `memory_limit`. */
export const MAX_ADMISSION_WAIT_MS = 30_000;
/**
 * How long a turn may hold memory that others wait for: then it stores its cache, lets the next one run and goes on later. Storing and restoring cost
 * some tenths of a second; with more than seven such turns at once the newest is refused after MAX_ADMISSION_WAIT_MS.
 */
export const MEMORY_SHARE_MS = 4_000;
/** Seconds after which a refused client should try again. */
export const RETRY_AFTER_SECONDS = 5;

/** Positions between two commits of a long prefill or a long answer, at most. */
export const CHECKPOINT_POSITIONS = 1_024;
/** An opening (system messages, first message of the user) of at least so many positions gets a checkpoint near its end, for forks. */
export const OPENING_POSITIONS = 512;
/** Turns whose starts can be returned to without a replay from the beginning. */
export const CHECKPOINT_TURNS = 4;
/** Bytes that checkpoints may hold beside what the current state refers to. */
export const CHECKPOINT_QUOTA_BYTES = 32_000_000;

/** Rows that a turn of about an epoch writes at most; Durable Objects bill rows written. https://developers.cloudflare.com/durable-objects/platform/pricing/ */
export const COMMIT_ROWS = 64;
/** A checkpoint after many epochs may write this many times COMMIT_ROWS. */
export const MAX_COMMIT_FACTOR = 4;
/** Stored blocks are rewritten once they lag behind by at least so many epochs of journalled plans; restoring replays those. */
export const LAZY_EPOCHS = 8;
/** In so many epochs every block that changes is rewritten once. */
export const REWRITE_EPOCHS = 24;
/**
 * Pieces that a state's exact tokens may lie in: about 170 tokens are exact in some layer, and each turn ends a piece. Restoring holds a row of each, which is
 * all of them at most.
 */
export const MAX_EXACT_PIECES = 24;
/**
 * Exact tokens that are stored while an answer is decoded, without waiting for its end: a row of SmolLM2-135M's. A Durable Object writes it in about 3 ms, a
 * fifth of the time that a token takes there.
 */
export const SPILL_TOKENS = 11;
/** At most so many at once, where a prompt has left more: what they take holds back the next token. */
export const MAX_SPILL_TOKENS = 3 * SPILL_TOKENS;
/** Unreferenced rows that wait to be overwritten; more are deleted (a deletion is billed like a write, an overwrite saves it). */
export const SPARE_ROWS = 32;

/** Idle seconds after which an implicit session (no id given by the client) is deleted. */
export const IMPLICIT_TTL_SECONDS = 3_600;
/** The alarm looks again after this long when it finds a turn running. */
export const EXPIRY_RETRY_MS = 60_000;

/** Characters of a session's title. */
export const TITLE_CHARACTERS = 80;

/** Sessions of one owner; implicit ones, which expire by themselves, are counted apart. */
export const MAX_SESSIONS_PER_KEY = 1_000;
/** Requests that one key may send at once, and how many places come back a second: 120 a minute. */
export const REQUESTS_BURST = 120;
export const REQUESTS_PER_SECOND = 2;
/** A directory's entry is taken for left over when its session is not there after this long. */
export const UNSEEN_ENTRY_MS = 60_000;

/** Of what a request wants kept with its answer. */
export const MAX_NOTE_CHARACTERS = 20_000;

/** Bytes of an exported session that an import takes: more than any cache that an isolate holds. */
export const MAX_EXPORT_BYTES = 64_000_000;
/** Of these, text and ids, which are held in memory at once. */
export const MAX_MANIFEST_BYTES = 4_000_000;
/** Exports of one session at a time: each keeps the rows of its commit from being overwritten. */
export const MAX_EXPORTS_PER_SESSION = 2;
/** An import whose sender went silent is cleared away after this long. */
export const IMPORT_TIMEOUT_MS = 600_000;

/** Bytes of an answer that wait for a slow reader; beyond it the reader counts as gone. */
export const MAX_BUFFERED_BYTES = 1_000_000;
