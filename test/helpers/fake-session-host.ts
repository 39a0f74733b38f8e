import { DEFAULT_CACHE } from '../../src/cache/policy.ts';
import { AbortedError, AdkvcError } from '../../src/core/errors.ts';
import type { ChatMessage } from '../../src/engine/types.ts';
import type {
  SaidMessage,
  SessionCacheMap,
  SessionExport,
  SessionHost,
  SessionInfo,
  SessionPage,
  TurnEvent,
  TurnRequest,
} from '../../src/session/api.ts';

export interface FakeTurn {
  readonly key: string;
  readonly id: string;
  readonly request: TurnRequest;
  readonly signal: AbortSignal;
}

/**
 * A host without a model, for tests of HTTP alone: a word is a token, the reply is scripted, sessions are a map. Every turn is kept in
 * `turns`, so that a test sees what HTTP made of a request.
 */
export class FakeSessionHost implements SessionHost {
  readonly turns: FakeTurn[] = [];
  readonly sessions = new Map<string, { info: SessionInfo; messages: SaidMessage[] }>();
  /** The answer's pieces. */
  pieces: readonly string[] = ['Hello', ' there', ', friend', '.'];
  reason: 'stop' | 'length' = 'stop';
  /** Thrown by `turn` itself. */
  refusal: AdkvcError | undefined;
  /** Told after this many tokens instead of the rest. */
  failure: { after: number; error: { code: string; message: string } } | undefined;
  /** Awaited before the first event, before each token and before the last event. */
  pause: (where: 'start' | 'token' | 'finish') => Promise<void> = async () => {};
  /** What `finished` hands out. */
  heldBack = '';

  async create(key: string, id: string, options: Parameters<SessionHost['create']>[2]): Promise<SessionInfo> {
    if (this.sessions.has(key))
      throw new AdkvcError('session_exists', `session ${id} exists`, { param: 'id' });
    const info: SessionInfo = {
      id,
      title: '',
      model: 'fake-model',
      createdAt: 1_700_000_000_000,
      lastUsedAt: 1_700_000_000_000,
      expiresAt: options.ttlSeconds ? 1_700_000_000_000 + options.ttlSeconds * 1000 : null,
      turns: 0,
      tokens: 0,
      cacheConfig: { ...DEFAULT_CACHE, ...options.cache },
      cache: null,
      storedBytes: 0,
      busy: false,
    };
    this.sessions.set(key, { info, messages: [] });
    return info;
  }
  async get(key: string): Promise<SessionInfo> {
    return this.#find(key).info;
  }
  async messages(key: string): Promise<SaidMessage[]> {
    return this.#find(key).messages;
  }
  async unsay(key: string, count: number): Promise<void> {
    const session = this.#find(key);
    const said = session.messages;
    if (count < said.length) {
      const { made: _, ...rest } = said[count - 1]!;
      session.messages = said.with(count - 1, { ...rest, withdrawn: true });
    } else
      session.messages = said.slice(
        0,
        said.slice(0, -1).findLastIndex(({ role }) => role === 'assistant') + 1,
      );
  }
  async delete(key: string): Promise<void> {
    this.#find(key);
    this.sessions.delete(key);
  }

  async list(_directory: string, page: { limit: number; after?: string }): Promise<SessionPage> {
    const all = [...this.sessions.values()].map(({ info }) => info).reverse();
    const start = page.after === undefined ? 0 : all.findIndex(({ id }) => id === page.after) + 1;
    const sessions = all.slice(start, start + page.limit);
    return {
      sessions,
      last: sessions.at(-1)?.id ?? null,
      more: start + sessions.length < all.length,
      total: all.length,
    };
  }
  async cacheMap(key: string, layer?: number): Promise<SessionCacheMap> {
    const { info } = this.#find(key);
    const shown = layer === undefined ? [0, 1] : [layer];
    return {
      id: info.id,
      layers: 2,
      kvHeads: 1,
      position: 9,
      sinks: 4,
      exactFrom: 7,
      report: info.cache,
      text: ['a', ' b', ' c', ' d', ' e', ' f', ' g', ' h', ' i'],
      messages: [{ role: 'user', end: 9 }],
      evicted: [[5, 2]],
      closed: [],
      shown: shown.map((at) => ({
        layer: at,
        segments: [{ start: 4, tokens: 3, tiers: btoa('\x02\x0f\x0f'), relevance: btoa('\xff\0\0') }],
      })),
    };
  }
  /** The file is the messages as JSON. */
  async export(key: string): Promise<SessionExport> {
    const bytes = new TextEncoder().encode(JSON.stringify(this.#find(key).messages));
    return { bytes: bytes.length, stream: new Blob([bytes]).stream() };
  }
  async import(
    key: string,
    id: string,
    file: ReadableStream<Uint8Array>,
    options: { ttlSeconds?: number },
  ): Promise<SessionInfo> {
    const text = await new Response(file as BodyInit).text();
    if (!text.startsWith('[')) throw new AdkvcError('not_an_export', 'no export', { param: 'file' });
    const info = await this.create(key, id, options);
    this.sessions.get(key)!.messages = JSON.parse(text);
    return info;
  }
  async fork(
    key: string,
    to: { key: string; id: string },
    options: { messages?: number; ttlSeconds?: number },
  ): Promise<SessionInfo> {
    const { messages } = this.#find(key);
    const info = await this.create(to.key, to.id, options);
    this.sessions.get(to.key)!.messages = messages.slice(0, options.messages);
    return info;
  }

  async turn(
    key: string,
    id: string,
    request: TurnRequest,
    signal: AbortSignal,
  ): Promise<AsyncIterable<TurnEvent>> {
    this.turns.push({ key, id, request, signal });
    if (this.refusal) throw this.refusal;
    const logged = this.sessions.get(key)?.messages ?? [];
    if (request.continues && logged.some((m, i) => m.content !== request.messages[i]?.content))
      throw new AdkvcError('session_moved', 'the session went on');
    return this.#run(key, id, request, signal);
  }

  async *#run(key: string, id: string, request: TurnRequest, signal: AbortSignal): AsyncGenerator<TurnEvent> {
    const words = (messages: readonly ChatMessage[]): number =>
      messages.reduce((sum, { content }) => sum + content.split(' ').length, 0);
    const before = this.sessions.get(key)?.messages ?? [];
    const all = request.mode === 'append' ? [...before, ...request.messages] : [...request.messages];
    let shared = 0;
    while (shared < before.length && before[shared]!.content === all[shared]?.content) shared++;
    const promptTokens = words(all);
    const cachedTokens = words(all.slice(0, shared));
    await this.pause('start');
    yield { type: 'started', promptTokens, cachedTokens };
    yield { type: 'prefill', position: promptTokens, total: promptTokens };
    let text = '';
    for (const [index, piece] of this.pieces.entries()) {
      await this.pause('token');
      if (signal.aborted) {
        yield { type: 'failed', error: { code: 'aborted', message: new AbortedError().message } };
        return;
      }
      if (this.failure?.after === index) {
        yield { type: 'failed', error: this.failure.error };
        return;
      }
      text += piece;
      const scored =
        request.sampling.topLogprobs === undefined
          ? {}
          : {
              piece,
              logprob: -0.5,
              // As a token that begins a character of four bytes.
              ...(piece === '\ufffd' && { bytes: [0xf0, 0x9f] }),
            };
      const top = Array.from({ length: request.sampling.topLogprobs ?? 0 }, (_, rank) => ({
        id: rank,
        text: rank === 0 ? piece : `other${rank}`,
        logprob: -0.5 - rank,
      }));
      yield { type: 'token', id: index, text: piece, ...scored, ...(top.length > 0 ? { top } : {}) };
    }
    await this.pause('finish');
    if (request.store) {
      if (!this.sessions.has(key)) await this.create(key, id, {});
      const session = this.sessions.get(key)!;
      const made = request.note !== undefined && {
        made: {
          reason: this.reason,
          promptTokens,
          completionTokens: this.pieces.length,
          cachedTokens,
          at: Date.now(),
          note: request.note,
        },
      };
      session.messages = [
        ...all.map((message, i) => (i < shared ? before[i]! : message)),
        { role: 'assistant', content: text + this.heldBack, ...made },
      ];
      session.info = { ...session.info, turns: session.info.turns + 1 };
    }
    const tokens = promptTokens + this.pieces.length;
    yield {
      type: 'finished',
      reason: this.reason,
      text: this.heldBack,
      usage: { promptTokens, completionTokens: this.pieces.length, cachedTokens },
      cache: {
        policy: 'full',
        tokens,
        bytes: tokens * 100,
        fp16Bytes: tokens * 400,
        ratio: 4,
        peakBytes: tokens * 120,
        tiers: { exact: tokens },
        tierBytes: { exact: tokens * 23_040 },
      },
      timing: { loadMs: 0, waitMs: 0, prefillMs: 1, decodeMs: 2, restoreMs: 0, commitMs: 1 },
      rows: { written: 1, bytes: 10 },
    };
  }

  #find(key: string): { info: SessionInfo; messages: SaidMessage[] } {
    const session = this.sessions.get(key);
    if (!session) throw new AdkvcError('session_not_found', 'there is no such session', { param: 'id' });
    return session;
  }
}
