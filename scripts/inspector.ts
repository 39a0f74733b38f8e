/** What an isolate's heap holds. https://chromedevtools.github.io/devtools-protocol/tot/Runtime/#method-getHeapUsage */
interface HeapUsage {
  /** JavaScript objects, garbage that was not collected yet included. */
  readonly usedSize: number;
  /** ArrayBuffers; the memories of WebAssembly are none. */
  readonly backingStorageSize: number;
}

/** The bytes of an isolate, as workerd's inspector tells them. */
export interface IsolateBytes {
  readonly objects: number;
  readonly buffers: number;
  /** WebAssembly's memories, at their full length. */
  readonly wasm: number;
}

export interface Inspector {
  /** @throws Error when the isolate gives no answer */
  bytes(): Promise<IsolateBytes>;
  /**
   * Asks again and again until `stop`, which tells the most that was held at one time. An isolate answers between two of its tasks.
   * @param alive collect what nobody holds any more before each look; without it, garbage that waits for the collector counts
   */
  watch(alive?: boolean): { stop(): Promise<IsolateBytes> };
  close(): void;
}

const ANSWER_MS = 60_000;
const BETWEEN_MS = 100;

export const sum = ({ objects, buffers, wasm }: IsolateBytes): number => objects + buffers + wasm;

interface Answer {
  readonly id?: number;
  readonly method?: string;
  readonly params?: { context: { id: number } };
  readonly result?: unknown;
  readonly error?: { message: string };
}

/** Speaks to the inspector of `wrangler dev`. */
export async function openInspector(port: number): Promise<Inspector> {
  const targets = (await (await fetch(`http://127.0.0.1:${port}/json`)).json()) as {
    webSocketDebuggerUrl: string;
  }[];
  // Wrangler refuses who tells no origin; Node's WebSocket takes headers, its types do not say so.
  const options = { headers: { origin: 'http://localhost' } } as unknown as string[];
  const socket = new WebSocket(targets[0]!.webSocketDebuggerUrl, options);
  await new Promise((opened, failed) => {
    socket.onopen = opened;
    socket.onerror = failed;
  });
  const waiting = new Map<number, (answer: Answer) => void>();
  let context: number | undefined;
  socket.onmessage = ({ data }) => {
    const answer = JSON.parse(String(data)) as Answer;
    if (answer.method === 'Runtime.executionContextCreated') context ??= answer.params!.context.id;
    if (answer.id !== undefined) waiting.get(answer.id)?.(answer);
  };
  let id = 0;
  const call = async <T>(method: string, params: object = {}): Promise<T> => {
    const asked = ++id;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const answer = await new Promise<Answer>((told, failed) => {
      waiting.set(asked, told);
      timer = setTimeout(() => failed(new Error(`the inspector does not answer ${method}`)), ANSWER_MS);
      socket.send(JSON.stringify({ id: asked, method, params }));
    }).finally(() => {
      clearTimeout(timer);
      waiting.delete(asked);
    });
    if (answer.error) throw new Error(`${method}: ${answer.error.message}`);
    return answer.result as T;
  };

  await call('Runtime.enable');
  /** Finds every WebAssembly.Memory of the isolate, whoever holds it. V8 collects all garbage before it looks (HeapProfiler::QueryObjects). */
  const wasmBytes = async (): Promise<number> => {
    const objectGroup = 'memories';
    const { result } = await call<{ result: { objectId: string } }>('Runtime.evaluate', {
      ...{ expression: 'WebAssembly.Memory.prototype', contextId: context, objectGroup },
    });
    const { objects } = await call<{ objects: { objectId: string } }>('Runtime.queryObjects', {
      ...{ prototypeObjectId: result.objectId, objectGroup },
    });
    const { result: lengths } = await call<{ result: { value: number } }>('Runtime.callFunctionOn', {
      objectId: objects.objectId,
      functionDeclaration:
        'function () { return this.reduce((all, { buffer }) => all + buffer.byteLength, 0); }',
      returnByValue: true,
    });
    await call('Runtime.releaseObjectGroup', { objectGroup });
    return lengths.value;
  };
  const heap = async (): Promise<Omit<IsolateBytes, 'wasm'>> => {
    const { usedSize, backingStorageSize } = await call<HeapUsage>('Runtime.getHeapUsage');
    return { objects: usedSize, buffers: backingStorageSize };
  };
  return {
    bytes: async () => ({ ...(await heap()), wasm: await wasmBytes() }),
    watch(alive = false) {
      let most = { objects: 0, buffers: 0 };
      let stopped = false;
      const watching = (async () => {
        while (!stopped) {
          if (alive) await wasmBytes();
          const now = await heap();
          if (now.objects + now.buffers > most.objects + most.buffers) most = now;
          await new Promise((next) => setTimeout(next, BETWEEN_MS));
        }
      })();
      return {
        // A memory never shrinks: its length at the end is the most that it had.
        async stop() {
          stopped = true;
          await watching;
          return { ...most, wasm: await wasmBytes() };
        },
      };
    },
    close: () => socket.close(),
  };
}
