import { HttpError } from './error-response.ts';

/** What the host is configured with; in a Worker these are its secrets and variables. */
export interface AuthConfig {
  /** `name:sha256` entries, separated by commas or white space; sha256 of the key, 64 hex digits. */
  readonly keys?: string | undefined;
  /** Serves whoever asks on this machine. Only what binds to loopback may set it. */
  readonly anonymous?: boolean | undefined;
}

/** Owners are key names, so that a key can be replaced and its sessions stay. */
export const ANONYMOUS_OWNER = 'anonymous';
const KEY_NAME = /^[A-Za-z0-9_.-]{1,64}$/;
const LOOPBACK_HOST = /^(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?$/i;
const SET_KEYS =
  'Set them with `npx wrangler secret put ADKVC_KEYS`; an entry is NAME:SHA256, and `printf %s "$KEY" | sha256sum` gives the digest.';

interface KeyEntry {
  readonly owner: string;
  readonly digest: Uint8Array;
}

const utf8 = new TextEncoder();

export const hex = (bytes: Uint8Array): string =>
  Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');

const sha256 = async (text: string): Promise<Uint8Array> =>
  new Uint8Array(await crypto.subtle.digest('SHA-256', utf8.encode(text)));

/** HMAC-SHA-256 of the parts, each preceded by its length so that no two lists of parts meet. */
export async function hmac(secret: string, ...parts: readonly string[]): Promise<Uint8Array> {
  const key = await crypto.subtle.importKey(
    'raw',
    utf8.encode(`adkvc\n${secret}`),
    { name: 'HMAC', hash: 'SHA-256' },
    false,
    ['sign'],
  );
  const message = parts.map((part) => `${utf8.encode(part).length}:${part}`).join('');
  return new Uint8Array(await crypto.subtle.sign('HMAC', key, utf8.encode(message)));
}

/** @throws HttpError invalid_keys_configured, naming the entry by its place and never by its content. */
export function parseKeys(text: string): KeyEntry[] {
  const entries = text.split(/[\s,]+/).filter((entry) => entry !== '');
  return entries.map((entry, index) => {
    const colon = entry.lastIndexOf(':');
    const owner = entry.slice(0, colon);
    const digest = entry.slice(colon + 1);
    if (colon < 0 || !KEY_NAME.test(owner) || owner === ANONYMOUS_OWNER || !/^[0-9a-f]{64}$/i.test(digest))
      throw new HttpError(
        'invalid_keys_configured',
        `Entry ${index + 1} of ADKVC_KEYS is not NAME:SHA256 (a name of letters, digits, "_", "." and "-" other than "${ANONYMOUS_OWNER}"; 64 hex digits). ${SET_KEYS}`,
      );
    return { owner, digest: Uint8Array.from(digest.match(/../g)!, (pair) => Number.parseInt(pair, 16)) };
  });
}

/** Runs over all bytes whatever they are; both are digests of equal length. */
function equalDigests(a: Uint8Array, b: Uint8Array): boolean {
  let difference = a.length ^ b.length;
  for (let i = 0; i < a.length; i++) difference |= a[i]! ^ (b[i] ?? 0);
  return difference === 0;
}

/**
 * Whose request this is.
 * @throws HttpError invalid_api_key, no_keys_configured, or in anonymous mode forbidden_host, forbidden_origin, unsupported_media_type
 */
export async function authenticate(request: Request, config: AuthConfig): Promise<string> {
  // Keys win: who sets both has keys in mind.
  const keys = parseKeys(config.keys ?? '');
  if (keys.length === 0) {
    if (!config.anonymous)
      throw new HttpError(
        'no_keys_configured',
        `This server has no API keys and so serves nobody. ${SET_KEYS}`,
      );
    checkLocal(request);
    return ANONYMOUS_OWNER;
  }
  const match = /^Bearer +(\S+) *$/i.exec(request.headers.get('authorization') ?? '');
  if (!match)
    throw new HttpError('invalid_api_key', 'Send an API key in the header `Authorization: Bearer KEY`.');
  const presented = await sha256(match[1]!);
  let owner: string | undefined;
  for (const entry of keys) if (equalDigests(entry.digest, presented)) owner ??= entry.owner;
  if (owner === undefined) throw new HttpError('invalid_api_key', 'The API key is not one of this server.');
  return owner;
}

/**
 * A page of another site can reach a server on loopback: by a name of its own that resolves to 127.0.0.1 (Host tells), or by a
 * cross-site post (Origin tells, and `application/json` cannot be sent without a preflight that is never granted).
 */
function checkLocal(request: Request): void {
  const host = request.headers.get('host') ?? new URL(request.url).host;
  if (!LOOPBACK_HOST.test(host))
    throw new HttpError(
      'forbidden_host',
      'Without API keys this server answers only to localhost, 127.0.0.1 and [::1]: use one of these in the URL.',
    );
  const origin = request.headers.get('origin');
  if (origin !== null && origin.toLowerCase() !== `http://${host}`.toLowerCase())
    throw new HttpError(
      'forbidden_origin',
      'Without API keys this server answers only pages that it served itself: open its own page, or leave the header Origin out.',
    );
  if (request.method === 'POST') {
    const type = (request.headers.get('content-type') ?? '').split(';')[0]!.trim().toLowerCase();
    // Either type makes a browser ask first.
    if (type !== 'application/json' && type !== 'application/octet-stream')
      throw new HttpError('unsupported_media_type', 'Send the header `content-type: application/json`.');
  }
}
