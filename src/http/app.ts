import type { Context } from 'hono';
import { Hono } from 'hono/quick';
import type { ContentfulStatusCode } from 'hono/utils/http-status';
import type { SessionHost } from '../session/api.ts';
import { LocalRates, type RequestRates } from '../session/rate.ts';
import { ANONYMOUS_OWNER, type AuthConfig, authenticate } from './auth.ts';
import { chatCompletions } from './chat-completions.ts';
import { getDocs } from './docs.ts';
import { errorReply, HttpError, isInternal, wireError } from './error-response.ts';
import { getInputItems } from './input-items.ts';
import { meteredHost } from './metrics/metered-host.ts';
import { getMetrics, MemoryMetrics, type Metrics } from './metrics/metrics.ts';
import { getModel, listModels, type ServedModel } from './models.ts';
import { openApiDocument } from './openapi.ts';
import { directoryOf, ownedHost } from './owned-host.ts';
import { admitRequest } from './rate-limit.ts';
import { createResponse } from './responses.ts';
import {
  createSession,
  deleteSession,
  exportSession,
  forkSession,
  getCache,
  getMessages,
  getSession,
  getSessions,
  importSession,
} from './sessions.ts';
import { deleteResponse, getResponse } from './stored-response.ts';

export interface AppOptions {
  readonly host: SessionHost;
  /** Reads the bundle's manifest; called when it is first needed, and again after a failure. */
  readonly loadModel: () => Promise<ServedModel>;
  readonly auth: AuthConfig;
  /** Counters; those of this application alone by default. */
  readonly metrics?: Metrics;
  /** Requests of each key; counted by this application alone by default. */
  readonly rates?: RequestRates;
  /** Keeps the host alive until the work is done, where answers are sent before that (a Worker's waitUntil). */
  readonly defer?: (work: Promise<unknown>) => void;
}

/** Answers are data of one key, never pages: a page brings its own policy, an event stream its own caching. */
const SECURITY_HEADERS: Readonly<Record<string, string>> = {
  'content-security-policy': "default-src 'none'; frame-ancestors 'none'",
  'cross-origin-resource-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
  'cache-control': 'no-store',
};

type Variables = { owner: string; requestId: string };
export type App = Hono<{ Variables: Variables }>;

const REQUEST_ID = /^[\w.-]{1,128}$/;

/**
 * The HTTP API over any host of sessions.
 * @example
 * const app = createApp({ host, loadModel: async () => servedModel(manifest), auth: { keys: 'me:9f86d0...' } });
 * const response = await app.request('/v1/models', { headers: { authorization: 'Bearer secret' } });
 */
export function createApp(options: AppOptions): App {
  const { loadModel, auth, metrics = new MemoryMetrics(), rates = new LocalRates() } = options;
  const metered = meteredHost(options.host, metrics, options.defer);
  const hostOf = (c: { var: Variables }) => ownedHost(metered, c.var.owner);
  const app: App = new Hono<{ Variables: Variables }>();
  let loading: Promise<ServedModel> | undefined;
  const model = (): Promise<ServedModel> =>
    (loading ??= loadModel().catch((error: unknown) => {
      loading = undefined;
      throw error;
    }));

  app.use(async (c, next) => {
    const given = c.req.header('x-request-id');
    const requestId =
      given && REQUEST_ID.test(given) ? given : `req_${crypto.randomUUID().replaceAll('-', '')}`;
    c.set('requestId', requestId);
    c.header('x-request-id', requestId);
    for (const [name, value] of Object.entries(SECURITY_HEADERS)) c.header(name, value);
    await next();
  });

  app.get('/health', async (c) => {
    const { id, fingerprint } = await model();
    return c.json({ status: 'ok', model: id, fingerprint });
  });

  app.get('/openapi.json', (c) => c.json(openApiDocument(app.routes)));
  app.get('/docs', (c) => getDocs(c, openApiDocument(app.routes)));

  for (const path of ['/v1/*', '/metrics'])
    app.use(path, async (c, next) => {
      const owner = await authenticate(c.req.raw, auth);
      c.set('owner', owner);
      // Who is on this machine has no key to limit.
      if (owner !== ANONYMOUS_OWNER) admitRequest(c, await rates.spend(await directoryOf(owner)));
      await next();
    });
  app.get('/metrics', (c) => getMetrics(c, metrics));
  app.post('/v1/chat/completions', async (c) => chatCompletions(c, c.var.owner, hostOf(c), await model()));
  app.post('/v1/responses', async (c) => createResponse(c, c.var.owner, hostOf(c), await model()));
  app.get('/v1/responses/:id', (c) => getResponse(c, c.var.owner, hostOf(c), c.req.param('id')));
  app.delete('/v1/responses/:id', (c) => deleteResponse(c, c.var.owner, hostOf(c), c.req.param('id')));
  app.get('/v1/responses/:id/input_items', (c) =>
    getInputItems(c, c.var.owner, hostOf(c), c.req.param('id')),
  );
  app.get('/v1/models', async (c) => listModels(c, await model()));
  app.get('/v1/models/:id{.+}', async (c) => getModel(c, await model(), c.req.param('id')));
  app.post('/v1/sessions', (c) => createSession(c, c.var.owner, hostOf(c)));
  app.get('/v1/sessions', (c) => getSessions(c, c.var.owner, hostOf(c)));
  app.post('/v1/sessions/import', (c) => importSession(c, c.var.owner, hostOf(c)));
  app.post('/v1/sessions/:id/fork', (c) => forkSession(c, c.var.owner, hostOf(c), c.req.param('id')));
  app.get('/v1/sessions/:id/cache', (c) => getCache(c, c.var.owner, hostOf(c), c.req.param('id')));
  app.get('/v1/sessions/:id/export', (c) => exportSession(c, c.var.owner, hostOf(c), c.req.param('id')));
  app.get('/v1/sessions/:id', (c) => getSession(c, c.var.owner, hostOf(c), c.req.param('id')));
  app.delete('/v1/sessions/:id', (c) => deleteSession(c, c.var.owner, hostOf(c), c.req.param('id')));
  app.get('/v1/sessions/:id/messages', (c) => getMessages(c, c.var.owner, hostOf(c), c.req.param('id')));

  app.notFound((c) => {
    const { pathname } = new URL(c.req.url);
    const there = app.routes.filter(({ method, path }) => method !== 'ALL' && pathMatches(path, pathname));
    const methods = [...new Set(there.map(({ method }) => method))];
    if (methods.length === 0)
      return reply(c, new HttpError('unknown_url', `There is no ${c.req.method} ${pathname}.`));
    // https://www.rfc-editor.org/rfc/rfc9110#status.405
    c.header('allow', methods.join(', '));
    const message = `${c.req.method} is not allowed here: use ${methods.join(' or ')}.`;
    return reply(c, new HttpError('method_not_allowed', message));
  });
  app.onError((error, c) => {
    if (isInternal(error)) console.error(c.var.requestId, error);
    return reply(c, error);
  });
  return app;
}

/** `:name` stands for one part of a path, `:name{.+}` for the rest. */
const pathMatches = (pattern: string, path: string): boolean =>
  new RegExp(`^${pattern.replace(/\/:\w+\{\.\+\}/g, '/.+').replace(/\/:\w+/g, '/[^/]+')}$`).test(path);

function reply(c: Context, error: unknown): Response {
  const { status, headers, body } = errorReply(wireError(error));
  return c.json(body, status as ContentfulStatusCode, { ...headers });
}
