import type { Context } from 'hono';
import type { CacheConfig } from '../cache/policy.ts';
import type { SessionHost } from '../session/api.ts';
import { MAX_EXPORT_BYTES } from '../session/limits.ts';
import { newSessionId, sessionKey } from './conversation.ts';
import { HttpError } from './error-response.ts';
import { directoryOf } from './owned-host.ts';
import { parseCacheQuery, parseImportQuery, parseListQuery } from './query-schema.ts';
import { cacheMapObject, sessionListObject, sessionObject } from './report.ts';
import { parseForkRequest, parseSessionRequest, readJson, SESSION_ID } from './schema.ts';

const DEFAULT_PAGE = 20;
const FILE_TYPE = 'application/octet-stream';

/** POST /v1/sessions */
export async function createSession(c: Context, owner: string, host: SessionHost): Promise<Response> {
  const request = parseSessionRequest(await readJson(c.req.raw));
  const id = request.id ?? newSessionId();
  const { policy, ratio, bytes, quotas, window, sinks, seed } = request;
  const given = Object.entries({ policy, ratio, bytes, quotas, window, sinks, seed }).filter(
    ([, v]) => v !== undefined,
  );
  const info = await host.create(await sessionKey(owner, id), id, {
    cache: Object.fromEntries(given) as Partial<CacheConfig>,
    ttlSeconds: request.ttl_seconds,
  });
  return c.json(sessionObject(info), 201);
}

/** GET /v1/sessions?limit=&after=: the owner's own, newest first. */
export async function getSessions(c: Context, owner: string, host: SessionHost): Promise<Response> {
  const { limit = DEFAULT_PAGE, after } = parseListQuery(c.req.query());
  const page = await host.list(await directoryOf(owner), {
    limit,
    ...(after === undefined ? {} : { after }),
  });
  return c.json(sessionListObject(page));
}

/** GET /v1/sessions/:id. Reads the last commit, and writes nothing. */
export async function getSession(
  c: Context,
  owner: string,
  host: SessionHost,
  id: string,
): Promise<Response> {
  return c.json(sessionObject(await host.get(await keyOf(owner, id))));
}

/** GET /v1/sessions/:id/messages, for a page that reloads. */
export async function getMessages(
  c: Context,
  owner: string,
  host: SessionHost,
  id: string,
): Promise<Response> {
  const messages = await host.messages(await keyOf(owner, id));
  return c.json({ object: 'list', data: messages.map(({ role, content }) => ({ role, content })) });
}

/** GET /v1/sessions/:id/cache?layer=: for a picture of the cache. Reads the last commit, while a turn runs, too. */
export async function getCache(c: Context, owner: string, host: SessionHost, id: string): Promise<Response> {
  const { layer } = parseCacheQuery(c.req.query());
  return c.json(cacheMapObject(await host.cacheMap(await keyOf(owner, id), layer)));
}

/** POST /v1/sessions/:id/fork: a copy as of the last commit, that goes on apart. */
export async function forkSession(
  c: Context,
  owner: string,
  host: SessionHost,
  from: string,
): Promise<Response> {
  const request = parseForkRequest(await readJson(c.req.raw, {}));
  const id = request.id ?? newSessionId();
  const info = await host.fork(
    await keyOf(owner, from),
    { key: await sessionKey(owner, id), id },
    {
      ...(request.messages === undefined ? {} : { messages: request.messages }),
      ...(request.ttl_seconds === undefined ? {} : { ttlSeconds: request.ttl_seconds }),
    },
  );
  return c.json(sessionObject(info), 201);
}

/** GET /v1/sessions/:id/export: one file, as of the last commit; turns may go on while it is read. */
export async function exportSession(
  c: Context,
  owner: string,
  host: SessionHost,
  id: string,
): Promise<Response> {
  const { bytes, stream } = await host.export(await keyOf(owner, id));
  const headers = {
    'content-type': FILE_TYPE,
    'content-length': String(bytes),
    'content-disposition': `attachment; filename="${id}.adkvc"`,
    'cache-control': 'no-store',
  };
  if (c.req.method !== 'HEAD') return c.body(stream, 200, headers);
  // Nobody will read it: it would keep its place among the session's exports for ever.
  await stream.cancel();
  return c.body(null, 200, headers);
}

/** POST /v1/sessions/import?id=&ttl_seconds=&numerics=: the body is what export gave. */
export async function importSession(c: Context, owner: string, host: SessionHost): Promise<Response> {
  const type = (c.req.header('content-type') ?? '').split(';')[0]!.trim().toLowerCase();
  if (type !== FILE_TYPE)
    throw new HttpError('unsupported_media_type', `Send the header \`content-type: ${FILE_TYPE}\`.`);
  const { id = newSessionId(), ttl_seconds, numerics } = parseImportQuery(c.req.query());
  if (Number(c.req.header('content-length') ?? 0) > MAX_EXPORT_BYTES)
    throw new HttpError(
      'export_too_large',
      `The file is larger than the limit of ${MAX_EXPORT_BYTES} bytes (MAX_EXPORT_BYTES).`,
      { param: 'file', data: { limit: MAX_EXPORT_BYTES } },
    );
  const file = c.req.raw.body ?? new Blob([]).stream();
  const options = {
    ...(ttl_seconds === undefined ? {} : { ttlSeconds: ttl_seconds }),
    ...(numerics === undefined ? {} : { foreignNumerics: true }),
  };
  return c.json(sessionObject(await host.import(await sessionKey(owner, id), id, file, options)), 201);
}

/** DELETE /v1/sessions/:id. Aborts a running turn first. */
export async function deleteSession(
  c: Context,
  owner: string,
  host: SessionHost,
  id: string,
): Promise<Response> {
  await host.delete(await keyOf(owner, id));
  return c.json({ id, object: 'session.deleted', deleted: true });
}

async function keyOf(owner: string, id: string): Promise<string> {
  // No session can have such a name, so none is looked for.
  if (!SESSION_ID.test(id))
    throw new HttpError('session_not_found', `There is no session "${id}".`, { param: 'id' });
  return sessionKey(owner, id);
}
