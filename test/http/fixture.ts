import { DEFAULT_CACHE } from '../../src/cache/policy.ts';
import { type App, createApp } from '../../src/http/app.ts';
import type { AuthConfig } from '../../src/http/auth.ts';
import type { ServedModel } from '../../src/http/models.ts';
import type { SessionHost } from '../../src/session/api.ts';
import { LocalRates, type RequestRates } from '../../src/session/rate.ts';
import { FakeSessionHost } from '../helpers/fake-session-host.ts';

export const MODEL: ServedModel = {
  id: 'fake-model',
  aliases: ['other-name'],
  contextLength: 8192,
  weightForm: 'compact',
  fingerprint: 'ab'.repeat(32),
  generation: { temperature: 0.2, topP: 0.9, maxTokens: 512 },
  cache: DEFAULT_CACHE,
};

export interface Fixture {
  readonly host: FakeSessionHost;
  readonly app: App;
  /** A request from this machine, JSON unless it is a string. */
  call(path: string, body?: unknown, init?: RequestInit): Promise<Response>;
  chat(fields?: Record<string, unknown>, init?: RequestInit): Promise<Response>;
}

/** @param real a host to use instead of the double */
export function fixture(
  auth: AuthConfig = { anonymous: true },
  rates: RequestRates = new LocalRates(),
  real?: SessionHost,
): Fixture {
  const host = new FakeSessionHost();
  const app = createApp({ host: real ?? host, auth, rates, loadModel: async () => MODEL });
  const call: Fixture['call'] = async (path, body, init = {}) =>
    app.request(`http://localhost:8787${path}`, {
      method: body === undefined ? 'GET' : 'POST',
      body:
        body === undefined || typeof body === 'string' ? (body as string | undefined) : JSON.stringify(body),
      ...init,
      headers: {
        host: 'localhost:8787',
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...init.headers,
      },
    });
  const chat: Fixture['chat'] = (fields = {}, init) =>
    call(
      '/v1/chat/completions',
      { model: MODEL.id, messages: [{ role: 'user', content: 'Hi' }], ...fields },
      init,
    );
  return { host, app, call, chat };
}

export interface Sse {
  readonly chunks: any[];
  readonly comments: string[];
  readonly done: boolean;
  readonly text: string;
}

export async function readSse(response: Response): Promise<Sse> {
  const raw = await response.text();
  const blocks = raw.split('\n\n');
  if (blocks.pop() !== '') throw new Error('the last event is not closed by an empty line');
  const data = blocks.filter((b) => b.startsWith('data: ')).map((b) => b.slice(6));
  const chunks = data.filter((d) => d !== '[DONE]').map((d) => JSON.parse(d));
  return {
    chunks,
    comments: blocks.filter((b) => b.startsWith(': ')).map((b) => b.slice(2)),
    done: data.at(-1) === '[DONE]',
    text: chunks.map((c) => c.choices?.[0]?.delta?.content ?? '').join(''),
  };
}
