import { AdkvcError } from '../core/errors.ts';
import type { WireError } from '../session/api.ts';

/** OpenAI's error object. https://platform.openai.com/docs/guides/error-codes */
export interface ErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: string;
    /** What the error was built from: limits, counts. Clients ignore what they do not know. */
    readonly data?: Readonly<Record<string, unknown>>;
  };
}

export interface ErrorReply {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: ErrorBody;
}

/** An error that HTTP itself finds: its code is in STATUS below like every other. */
export class HttpError extends AdkvcError {}

const STATUS: Readonly<Record<string, number>> = {
  invalid_input: 400,
  invalid_json: 400,
  unsupported_parameter: 400,
  unsupported_content: 400,
  context_length_exceeded: 400,
  invalid_api_key: 401,
  forbidden_host: 403,
  forbidden_origin: 403,
  unknown_url: 404,
  model_not_found: 404,
  session_not_found: 404,
  response_not_found: 404,
  method_not_allowed: 405,
  session_exists: 409,
  session_diverged: 409,
  session_moved: 409,
  session_deleted: 409,
  aborted: 409,
  not_an_export: 400,
  unsupported_export_version: 400,
  unsupported_layout: 400,
  foreign_model: 400,
  export_truncated: 400,
  export_corrupt: 400,
  export_too_large: 413,
  request_too_large: 413,
  unsupported_media_type: 415,
  session_too_large: 400,
  session_busy: 429,
  memory_limit: 429,
  session_quota_exceeded: 429,
  rate_limit_exceeded: 429,
  turn_interrupted: 503,
  no_keys_configured: 503,
  invalid_keys_configured: 503,
  unsupported_model: 503,
  storage_unavailable: 503,
  storage_full: 507,
};
/** Seconds a client is asked to wait when whoever refused it named none. */
const DEFAULT_RETRY_AFTER = 5;

const typeOf = (status: number): string => {
  if (status === 429) return 'rate_limit_error';
  if (status === 401 || status === 403) return 'authentication_error';
  return status < 500 ? 'invalid_request_error' : 'server_error';
};

const INTERNAL: WireError = {
  code: 'internal_error',
  message:
    'The server failed. The session stands at its last commit, and the same request may be sent again.',
};

/** Whether the error tells of the inside: it belongs in the server's log, and not in an answer. */
export const isInternal = (error: unknown): boolean =>
  !(error instanceof AdkvcError) || error.code === INTERNAL.code;

/** An AdkvcError as JSON; the message of any other stays inside. */
export function wireError(error: unknown): WireError {
  if (isInternal(error)) return INTERNAL;
  const { code, message, param, data } = error as AdkvcError;
  return { code, message, param, data: { ...data } };
}

/** Maps a code to a status and OpenAI's error shape; the sole place that does. */
export function errorReply(error: WireError): ErrorReply {
  const status = STATUS[error.code] ?? 500;
  const headers: Record<string, string> = {};
  if (status === 429) {
    const wait = Number(error.data?.retryAfter);
    headers['retry-after'] = String(
      Math.max(1, Math.ceil(Number.isFinite(wait) ? wait : DEFAULT_RETRY_AFTER)),
    );
  }
  if (status === 401) headers['www-authenticate'] = 'Bearer';
  const data = error.data && Object.keys(error.data).length > 0 ? { data: error.data } : {};
  return {
    status,
    headers,
    body: {
      error: {
        message: error.message,
        type: typeOf(status),
        param: error.param ?? null,
        code: error.code,
        ...data,
      },
    },
  };
}
