import type { BackendChoice, BrowserStatus, FromWorker, ToWorker } from '../browser/protocol.ts';

/** The application in this browser: a worker that answers requests as a server does. */
export class LocalApp {
  readonly #worker: Worker;
  readonly #told: (status: BrowserStatus) => void;
  readonly #open = new Map<number, Answer>();
  #last = 0;
  #failure: LocalAppError | undefined;

  /** @param told called whenever the application's state changes */
  constructor(backend: BackendChoice, told: (status: BrowserStatus) => void) {
    this.#told = told;
    this.#worker = new Worker('browser.js', { type: 'module', name: 'adkvc' });
    this.#worker.addEventListener('message', ({ data }: MessageEvent<FromWorker>) => this.#receive(data));
    this.#worker.addEventListener('error', (event) => {
      event.preventDefault();
      const message = `the application in this browser ended: ${event.message || 'its script cannot be loaded'}`;
      this.#receive({ type: 'status', status: { state: 'failed', code: 'worker_failed', message } });
    });
    this.#post({ type: 'start', backend });
  }

  /** As the global fetch, for paths of this page. */
  readonly fetch = (path: string, init: RequestInit = {}): Promise<Response> =>
    new Promise((resolve, reject) => {
      if (this.#failure !== undefined) return reject(this.#failure);
      const { signal } = init;
      if (signal?.aborted) return reject(signal.reason);
      const id = ++this.#last;
      const answer = new Answer(resolve, reject, {
        pull: () => this.#post({ type: 'pull', id }),
        cancel: () => {
          if (this.#open.delete(id)) this.#post({ type: 'cancel', id });
        },
      });
      this.#open.set(id, answer);
      signal?.addEventListener('abort', () => answer.abort(signal.reason));
      this.#post({
        type: 'request',
        id,
        request: {
          method: init.method ?? 'GET',
          path,
          headers: [...new Headers(init.headers)],
          body: (init.body as string | Blob | null | undefined) ?? null,
        },
      });
    });

  /** Ends it at once, as when the tab is closed: what was committed stays. */
  end(): void {
    this.#worker.terminate();
  }

  #receive(message: FromWorker): void {
    if (message.type === 'status') {
      if (message.status.state === 'failed') {
        this.#failure = new LocalAppError(message.status.code, message.status.message);
        for (const answer of this.#open.values()) answer.fail(this.#failure);
        this.#open.clear();
      }
      this.#told(message.status);
      return;
    }
    const answer = this.#open.get(message.id);
    if (!answer) return;
    if (message.type === 'head') answer.begin(message.status, message.headers);
    else if (message.type === 'piece') answer.piece(message.bytes);
    else {
      this.#open.delete(message.id);
      if (message.type === 'end') answer.end();
      else answer.fail(new LocalAppError('broken_off', message.message));
    }
  }

  #post(message: ToWorker): void {
    this.#worker.postMessage(message);
  }
}

/** The application in the browser cannot answer. */
export class LocalAppError extends Error {
  readonly code: string;
  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

/** An answer on its way: a Response whose body is asked for piece by piece. */
class Answer {
  readonly #resolve: (response: Response) => void;
  readonly #reject: (error: unknown) => void;
  readonly #body: ReadableStream<Uint8Array<ArrayBuffer>>;
  readonly #cancel: () => void;
  #controller!: ReadableStreamDefaultController<Uint8Array<ArrayBuffer>>;
  /** Told when the piece that was asked for is there. */
  #next: (() => void) | undefined;

  constructor(
    resolve: (response: Response) => void,
    reject: (error: unknown) => void,
    { pull, cancel }: { pull(): void; cancel(): void },
  ) {
    this.#resolve = resolve;
    this.#reject = reject;
    this.#cancel = cancel;
    this.#body = new ReadableStream(
      {
        start: (controller) => {
          this.#controller = controller;
        },
        pull: () => {
          pull();
          return new Promise<void>((next) => {
            this.#next = next;
          });
        },
        cancel,
      },
      // The first piece is asked for when somebody reads.
      { highWaterMark: 0 },
    );
  }

  begin(status: number, headers: readonly (readonly [string, string])[]): void {
    const empty = status === 204 || status === 304;
    this.#resolve(
      new Response(empty ? null : this.#body, { status, headers: headers.map(([a, b]) => [a, b]) }),
    );
  }
  piece(bytes: Uint8Array<ArrayBuffer>): void {
    this.#controller.enqueue(bytes);
    this.#next?.();
  }
  end(): void {
    this.#controller.close();
    this.#next?.();
  }
  fail(error: unknown): void {
    this.#reject(error);
    this.#controller.error(error);
    this.#next?.();
  }
  abort(reason: unknown): void {
    this.#cancel();
    this.fail(reason);
  }
}
