import type { FromWorker, ToWorker, WireRequest } from './protocol.ts';

/** Stands for this page in URLs: requests never leave it, and are those of who is on this machine. */
const ORIGIN = 'http://localhost';

interface Open {
  readonly abort: AbortController;
  reader?: ReadableStreamDefaultReader<Uint8Array>;
}

/** Answers a page's requests with `handle`: heads at once, bodies piece by piece as the page asks for them. */
export class Bridge {
  readonly #handle: (request: Request) => Response | Promise<Response>;
  readonly #post: (message: FromWorker, transfer?: Transferable[]) => void;
  readonly #open = new Map<number, Open>();

  constructor(
    handle: (request: Request) => Response | Promise<Response>,
    post: (message: FromWorker, transfer?: Transferable[]) => void,
  ) {
    this.#handle = handle;
    this.#post = post;
  }

  receive(message: ToWorker): void {
    if (message.type === 'request') void this.#answer(message.id, message.request);
    else if (message.type === 'pull') void this.#next(message.id);
    else if (message.type === 'cancel') {
      const open = this.#open.get(message.id);
      this.#open.delete(message.id);
      open?.abort.abort();
      // Whoever writes the body learns of it, as from a socket that was closed.
      void open?.reader?.cancel().catch(() => {});
    }
  }

  async #answer(id: number, { method, path, headers, body }: WireRequest): Promise<void> {
    const open: Open = { abort: new AbortController() };
    this.#open.set(id, open);
    try {
      const response = await this.#handle(
        new Request(ORIGIN + path, {
          method,
          headers: headers.map(([name, value]) => [name, value]),
          body,
          signal: open.abort.signal,
        }),
      );
      if (!this.#open.has(id)) return void response.body?.cancel();
      if (response.body) open.reader = response.body.getReader();
      this.#post({ type: 'head', id, status: response.status, headers: [...response.headers] });
      if (!response.body) this.#end(id);
    } catch (error) {
      this.#break(id, error);
    }
  }

  async #next(id: number): Promise<void> {
    const open = this.#open.get(id);
    if (!open?.reader) return;
    try {
      const { done, value } = await open.reader.read();
      if (!this.#open.has(id)) return;
      if (done) return this.#end(id);
      // A copy: the piece may be a view of what its writer goes on with.
      const bytes = value.slice();
      this.#post({ type: 'piece', id, bytes }, [bytes.buffer]);
    } catch (error) {
      this.#break(id, error);
    }
  }

  #end(id: number): void {
    this.#open.delete(id);
    this.#post({ type: 'end', id });
  }
  #break(id: number, error: unknown): void {
    if (this.#open.delete(id)) this.#post({ type: 'broken', id, message: String(error) });
  }
}
