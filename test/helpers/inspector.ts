/** What V8 tells of an isolate: https://chromedevtools.github.io/devtools-protocol/tot/Runtime/#method-getHeapUsage */
export interface HeapUsage {
  /** Objects, garbage that was not collected yet included. */
  readonly usedSize: number;
  readonly totalSize: number;
  readonly embedderHeapUsedSize?: number;
  /** ArrayBuffers; WebAssembly's memories are not among them. */
  readonly backingStorageSize?: number;
}

/** Asks the inspector of `wrangler dev`. */
export async function openInspector(port: number): Promise<{ heap(): Promise<HeapUsage>; close(): void }> {
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
  const waiting = new Map<number, (answer: { result: HeapUsage }) => void>();
  socket.onmessage = ({ data }) => {
    const answer = JSON.parse(String(data)) as { id?: number; result: HeapUsage };
    if (answer.id !== undefined) waiting.get(answer.id)?.(answer);
  };
  let id = 0;
  return {
    async heap() {
      const asked = ++id;
      const answer = new Promise<{ result: HeapUsage }>((told) => waiting.set(asked, told));
      socket.send(JSON.stringify({ id: asked, method: 'Runtime.getHeapUsage' }));
      return (await answer).result;
    },
    close: () => socket.close(),
  };
}
