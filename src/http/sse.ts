import { MAX_BUFFERED_BYTES } from '../session/limits.ts';

/** Server-sent events to one client. https://html.spec.whatwg.org/multipage/server-sent-events.html */
export interface EventWriter {
  data(value: unknown): void;
  /** With a name, as the Responses API has them. */
  event(name: string, value: unknown): void;
  /** Clients ignore it; it keeps the connection alive. */
  comment(text: string): void;
  /** OpenAI's last event. */
  done(): void;
  close(): void;
}

/**
 * A body that is written without ever waiting, so that a slow reader never holds a turn. A reader who falls behind by more than
 * MAX_BUFFERED_BYTES counts as gone.
 * @param onGone called once when the client leaves or falls behind
 */
export function eventStream(onGone: () => void): { body: ReadableStream<Uint8Array>; writer: EventWriter } {
  const encoder = new TextEncoder();
  let open = true;
  let controller!: ReadableStreamDefaultController<Uint8Array>;
  const leave = (): void => {
    if (!open) return;
    open = false;
    onGone();
  };
  const body = new ReadableStream<Uint8Array>(
    {
      start(c) {
        controller = c;
      },
      cancel: leave,
    },
    { highWaterMark: MAX_BUFFERED_BYTES, size: (chunk) => chunk?.byteLength ?? 0 },
  );
  const write = (text: string): void => {
    if (!open) return;
    controller.enqueue(encoder.encode(text));
    if ((controller.desiredSize ?? 0) <= 0) {
      controller.error(new Error('the client reads too slowly'));
      leave();
    }
  };
  return {
    body,
    writer: {
      data: (value) => write(`data: ${JSON.stringify(value)}\n\n`),
      event: (name, value) => write(`event: ${name}\ndata: ${JSON.stringify(value)}\n\n`),
      comment: (text) => write(`: ${text.replaceAll(/[\r\n]+/g, ' ')}\n\n`),
      done: () => write('data: [DONE]\n\n'),
      close() {
        if (!open) return;
        open = false;
        controller.close();
      },
    },
  };
}

export const SSE_HEADERS: Readonly<Record<string, string>> = {
  'content-type': 'text/event-stream; charset=utf-8',
  'cache-control': 'no-cache, no-transform',
  'x-accel-buffering': 'no',
};
