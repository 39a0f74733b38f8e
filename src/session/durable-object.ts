import { DurableObject } from 'cloudflare:workers';
import { AdkvcError } from '../core/errors.ts';
import type {
  ImportOptions,
  SessionExport,
  SessionHost,
  SessionInfo,
  TurnEvent,
  TurnRequest,
  WireError,
} from './api.ts';
import { type Directories, Directory, type DirectoryEntry } from './directory.ts';
import type { Alarm } from './expiry.ts';
import { listSessions } from './list.ts';
import { type RequestRates, type Spent, TokenBucket } from './rate.ts';
import type { SessionServices } from './services.ts';
import { Session } from './session.ts';
import { DurableObjectStore } from './store/durable-object.ts';
import { streamTurn, type TurnStream } from './turn-stream.ts';
import { fromWire, toWire } from './wire.ts';

/** Lets the runtime's other events run: streaming and aborts need a macrotask. For `Scheduler`. */
export const pause = (ms: number): Promise<void> => scheduler.wait(ms);

/**
 * A conversation as a Durable Object. A host's entry derives its class from it, since only the entry knows the model:
 *
 * @example
 * export class ConversationObject extends Conversation<Env> {
 *   protected services(env: Env) { return servicesOfThisIsolate(env); }
 * }
 */
export abstract class Conversation<Env> extends DurableObject<Env> {
  readonly #session: Session;

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    // Nothing is read before it is asked for, and the table is made by the first write: no start-up work that could fail or block.
    this.#session = new Session(
      ctx.id.toString(),
      this.services(env),
      new DurableObjectStore(ctx.storage),
      storageAlarm(ctx.storage),
    );
  }

  /** The same object for all conversations of an isolate: one scheduler divides their thread and memory. */
  protected abstract services(env: Env): SessionServices;

  override async alarm(): Promise<void> {
    await this.#session.expire();
  }

  /** The wire between `durableObjectHost` and this object: a call a path, JSON both ways, a turn's events as NDJSON. */
  override async fetch(request: Request): Promise<Response> {
    try {
      switch (new URL(request.url).pathname) {
        case '/create': {
          const { id, options } = await request.json<CreateCall>();
          return Response.json(await this.#session.create(id, options));
        }
        case '/get':
          return Response.json(this.#session.info());
        case '/messages':
          return Response.json(this.#session.messages());
        case '/unsay': {
          const { count, mark } = await request.json<UnsayCall>();
          await this.#session.unsay(count, mark);
          return Response.json(null);
        }
        case '/delete':
          await this.#session.delete();
          return Response.json(null);
        case '/cache': {
          const { layer } = await request.json<CacheCall>();
          return Response.json(await this.#session.cacheMap(layer));
        }
        case '/export': {
          const { messages } = await request.json<ExportCall>();
          const { bytes, stream } = this.#session.export(messages);
          return new Response(stream, { headers: { [BYTES]: String(bytes) } });
        }
        case '/import': {
          const { id, options } = JSON.parse(request.headers.get(CALL)!) as ImportCall;
          return Response.json(await this.#session.import(id, request.body!, options));
        }
        case '/turn': {
          const { id, turn } = await request.json<TurnCall>();
          const events = await streamTurn((emit, signal) => {
            const done = this.#session.turn(id, turn, signal, emit);
            // The commit of a turn whose client went away outlives the request.
            this.ctx.waitUntil(done.catch(() => {}));
            return done;
          }, request.signal);
          return new Response(encodeLines(events), { headers: { 'content-type': 'application/x-ndjson' } });
        }
        default:
          throw new AdkvcError('not_found', `no such call: ${request.url}`);
      }
    } catch (error) {
      return Response.json(toWire(error), { status: FAILED });
    }
  }
}

/** The sessions of one owner; its calls carry what they throw as a value, so that codes and data arrive. */
export class SessionDirectory extends DurableObject {
  readonly #directory = new Directory(new DurableObjectStore(this.ctx.storage));
  readonly #bucket = new TokenBucket();

  /** A place for one request of the owner's. Nothing is written. */
  spend(): Spent {
    return this.#bucket.take(Date.now());
  }

  async add(entry: DirectoryEntry): Promise<WireError | null> {
    try {
      await this.#directory.add(entry);
      return null;
    } catch (error) {
      return toWire(error);
    }
  }
  async remove(key: string): Promise<void> {
    await this.#directory.remove(key);
  }
  list(): DirectoryEntry[] {
    return this.#directory.list();
  }
}

export function durableObjectDirectories(namespace: DurableObjectNamespace<SessionDirectory>): Directories {
  return {
    add: async (directory, entry) => {
      const error = await namespace.getByName(directory).add(entry);
      if (error) throw fromWire(error);
    },
    remove: async (directory, key) => {
      await namespace.getByName(directory).remove(key);
    },
    list: async (directory) => namespace.getByName(directory).list(),
  };
}

/** One bucket a key, whichever of the deployment's isolates the requests come to. */
export function durableObjectRates(namespace: DurableObjectNamespace<SessionDirectory>): RequestRates {
  return { spend: async (directory) => namespace.getByName(directory).spend() };
}

interface CreateCall {
  readonly id: string;
  readonly options: Parameters<SessionHost['create']>[2];
}
interface UnsayCall {
  readonly count: number;
  readonly mark?: string | undefined;
}
interface CacheCall {
  readonly layer?: number | undefined;
}
interface ExportCall {
  readonly messages?: number | undefined;
}
/** Beside the file, which is the body. */
interface ImportCall {
  readonly id: string;
  readonly options: ImportOptions;
}
const CALL = 'x-adkvc-call';
const BYTES = 'x-adkvc-bytes';
interface TurnCall {
  readonly id: string;
  readonly turn: TurnRequest;
}
/** The status of a call whose body is a WireError; the HTTP layer chooses the client's own. */
const FAILED = 520;

function storageAlarm(storage: DurableObjectStorage): Alarm {
  return {
    get: () => storage.getAlarm(),
    set: (at) => storage.setAlarm(at),
    clear: () => storage.deleteAlarm(),
  };
}

/** Pulled by the reader: what it does not take waits in the bounded TurnStream, not in the stream's own queue. */
function encodeLines(events: TurnStream): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const { done, value } = await events.next();
        if (done) controller.close();
        else controller.enqueue(encoder.encode(`${JSON.stringify(value)}\n`));
      },
      async cancel() {
        await events.return();
      },
    },
    { highWaterMark: 0 },
  );
}

/** Sessions behind a namespace of Conversation objects, named by `key`. */
export function durableObjectHost(namespace: DurableObjectNamespace, directories: Directories): SessionHost {
  const send = async (key: string, path: string, init: RequestInit): Promise<Response> => {
    const response = await namespace
      .getByName(key)
      .fetch(`https://conversation/${path}`, { ...init, method: 'POST' });
    if (response.status === FAILED) throw fromWire(await response.json());
    return response;
  };
  const call = (key: string, path: string, body: unknown, signal?: AbortSignal): Promise<Response> =>
    send(key, path, { body: JSON.stringify(body ?? null), ...(signal && { signal }) });
  const json = async <T>(key: string, path: string, body?: unknown): Promise<T> =>
    (await call(key, path, body)).json<T>();
  const exported = async (key: string, messages?: number): Promise<SessionExport> => {
    const response = await call(key, 'export', { messages } satisfies ExportCall);
    return { bytes: Number(response.headers.get(BYTES)), stream: response.body! };
  };
  const imported: SessionHost['import'] = async (key, id, file, options) => {
    const headers = { [CALL]: JSON.stringify({ id, options } satisfies ImportCall) };
    return (await send(key, 'import', { body: file, headers })).json<SessionInfo>();
  };
  return {
    list: (directory, page) =>
      listSessions(directories, (key) => json<SessionInfo>(key, 'get'), Date.now(), directory, page),
    cacheMap: (key, layer) => json(key, 'cache', { layer } satisfies CacheCall),
    export: exported,
    import: imported,
    fork: async (key, to, options) => {
      const { stream } = await exported(key, options.messages);
      const { messages: _cut, ...rest } = options;
      return imported(to.key, to.id, stream, rest);
    },
    create: (key, id, options) => json(key, 'create', { id, options } satisfies CreateCall),
    get: (key) => json(key, 'get'),
    messages: (key) => json(key, 'messages'),
    unsay: (key, count, mark) => json(key, 'unsay', { count, mark } satisfies UnsayCall),
    delete: (key) => json(key, 'delete'),
    turn: async (key, id, turn, signal) => {
      const response = await call(key, 'turn', { id, turn } satisfies TurnCall, signal);
      return new TurnReader(response.body!, signal);
    },
  };
}

/**
 * The events of a turn; a stream that breaks off (the object was reset) ends with `failed`. Returning, or the signal, cancels
 * the turn, also before the first event was asked for: hence no generator, which would not have started then.
 */
class TurnReader implements AsyncIterableIterator<TurnEvent> {
  readonly #reader: ReadableStreamDefaultReader<string>;
  #rest = '';
  #events: TurnEvent[] = [];
  #last: TurnEvent | undefined;
  #done = false;

  constructor(body: ReadableStream<Uint8Array>, signal: AbortSignal) {
    this.#reader = body.pipeThrough(new TextDecoderStream()).getReader();
    signal.addEventListener('abort', () => void this.return(), { once: true });
  }

  async next(): Promise<IteratorResult<TurnEvent, undefined>> {
    while (this.#events.length === 0) {
      if (this.#done) return { done: true, value: undefined };
      const chunk = await this.#reader.read().catch(() => undefined);
      const lines = (this.#rest + (chunk?.value ?? '')).split('\n');
      this.#rest = lines.pop()!;
      for (const line of lines) this.#events.push(JSON.parse(line) as TurnEvent);
      this.#last = this.#events.at(-1) ?? this.#last;
      if (chunk && !chunk.done) continue;
      this.#done = true;
      if (this.#last?.type !== 'finished' && this.#last?.type !== 'failed') this.#events.push(INTERRUPTED);
    }
    return { done: false, value: this.#events.shift()! };
  }

  async return(): Promise<IteratorResult<TurnEvent, undefined>> {
    this.#done = true;
    this.#events.length = 0;
    await this.#reader.cancel().catch(() => {});
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}

const INTERRUPTED: TurnEvent = {
  type: 'failed',
  error: {
    code: 'turn_interrupted',
    message: 'the conversation was interrupted; it stands at its last commit: send the request again',
  },
};
