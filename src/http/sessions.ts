import type { Context } from 'hono';
import type { CacheConfig } from '../cache/policy.ts';
import type { SessionHost } from '../session/api.ts';
import { newSessionId, sessionKey } from './conversation.ts';
import { HttpError } from './error-response.ts';
import { sessionObject } from './report.ts';
import { parseSessionRequest, readJson, SESSION_ID } from './schema.ts';

/** POST /v1/sessions */
export async function createSession(c: Context, owner: string, host: SessionHost): Promise<Response> {
  const request = parseSessionRequest(await readJson(c.req.raw));
  const id = request.id ?? newSessionId();
  const { policy, ratio, bytes, window, sinks, seed } = request;
  const given = Object.entries({ policy, ratio, bytes, window, sinks, seed }).filter(
    ([, v]) => v !== undefined,
  );
  const info = await host.create(await sessionKey(owner, id), id, {
    cache: Object.fromEntries(given) as Partial<CacheConfig>,
    ttlSeconds: request.ttl_seconds,
  });
  return c.json(sessionObject(info), 201);
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
  return c.json({ object: 'list', data: await host.messages(await keyOf(owner, id)) });
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
