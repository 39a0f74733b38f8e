import { expect, it } from 'vitest';
import { CorruptDataError } from '../../src/core/errors.ts';
import { fetchSource } from '../../src/runtime/fetch-source.ts';

const BYTES = Uint8Array.from({ length: 700_000 }, (_, i) => (i * 7919) >> 3);

/** A stream of bytes as a Worker's assets bring it: 4 kB at a time, and a reader that fills what it is given. */
function filling(bytes: Uint8Array): { body: object; cancelled: () => boolean } {
  let at = 0;
  let cancelled = false;
  const reader = {
    readAtLeast: async (least: number, view: Uint8Array) => {
      const count = Math.min(bytes.length - at, Math.max(least, 1), view.byteLength);
      if (count === 0) return { done: true, value: view.subarray(0, 0) };
      view.set(bytes.subarray(at, at + count));
      at += count;
      return { done: false, value: view.subarray(0, count) };
    },
    cancel: async () => {
      cancelled = true;
    },
  };
  return { body: { getReader: () => reader }, cancelled: () => cancelled };
}

async function read(response: object): Promise<{ bytes: Uint8Array; pieces: number }> {
  const source = fetchSource('https://x', async () => response as Response);
  const parts: number[] = [];
  let pieces = 0;
  // A piece is valid until the next one is asked for.
  for await (const piece of source.stream('weights-00.bin')) {
    for (const byte of piece) parts.push(byte);
    pieces++;
  }
  return { bytes: Uint8Array.from(parts), pieces };
}

it('reads large pieces where the host fills a buffer, whole and in order', async () => {
  const { body, cancelled } = filling(BYTES);
  const { bytes, pieces } = await read({ ok: true, body });
  expect(bytes).toEqual(BYTES);
  expect(pieces).toBe(3);
  expect(cancelled()).toBe(true);
});

it('reads a stream as it comes where the host does not', async () => {
  const body = new ReadableStream({
    start(controller) {
      for (let at = 0; at < BYTES.length; at += 4096) controller.enqueue(BYTES.slice(at, at + 4096));
      controller.close();
    },
  });
  expect((await read({ ok: true, body })).bytes).toEqual(BYTES);
  expect((await read(new Response(BYTES))).bytes).toEqual(BYTES);
});

it('names the file that cannot be read', async () => {
  await expect(read(new Response('', { status: 404 }))).rejects.toThrow(CorruptDataError);
});
