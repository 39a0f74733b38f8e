/** Limits of one request. Each is named in the error that it causes. */

/** A whole conversation of 8,192 tokens is about 40 kB of text; resent with generous escapes it stays far below. */
export const MAX_BODY_BYTES = 1_000_000;
export const MAX_MESSAGES = 1_024;
/** OpenAI's own limit. https://platform.openai.com/docs/api-reference/chat/create */
export const MAX_STOP_STRINGS = 4;
export const MAX_STOP_LENGTH = 256;
export const MAX_TOP_LOGPROBS = 20;
/** Sessions of one list; each is asked how it is. */
export const MAX_PAGE = 40;
/** OpenAI's own limit of a list of items. https://platform.openai.com/docs/api-reference/responses/input-items */
export const MAX_ITEMS_PAGE = 100;
/** Seconds a session may live unused. */
export const MAX_TTL_SECONDS = 30 * 24 * 3600;
export const MIN_TTL_SECONDS = 60;
/** Proxies give up on a silent connection; comments keep it alive while nothing else is sent. */
export const HEARTBEAT_MS = 10_000;
/** While a prompt is read its progress is told this often, as comments. */
export const PROGRESS_MS = 500;
/** Idle seconds that a stored response can be continued for, as long as OpenAI keeps them. https://platform.openai.com/docs/guides/conversation-state */
export const RESPONSE_TTL_SECONDS = 30 * 24 * 3600;
/** How often a response to a conversation is planned anew because others went on there meanwhile: as many as wait for one session, and some that come later. */
export const MAX_REPLANS = 8;
