import { CorruptDataError } from '../core/errors.ts';
import type { BundleSource } from './manifest.ts';

/** Bytes of one read. workerd's asset streams bring 4 kB at a time, and every read is a turn of the event loop: 20,000 of them for a model. */
const PIECE = 1 << 18;

/** workerd's readers fill a buffer on their own (https://developers.cloudflare.com/workers/runtime-apis/streams/readablestreambyobreader/). */
interface FillingReader {
  readAtLeast(
    bytes: number,
    view: Uint8Array<ArrayBuffer>,
  ): Promise<{ done: boolean; value?: Uint8Array<ArrayBuffer> | undefined }>;
  cancel(): Promise<void>;
}

/**
 * Reads a bundle over fetch: a Worker's static assets, or a page's own origin.
 * @param at URL of the bundle's folder, without a slash at its end
 * @example fetchSource('https://assets.local/bundle', (url) => env.ASSETS.fetch(url))
 */
export function fetchSource(at: string, fetch: (url: string) => Promise<Response>): BundleSource {
  const get = async (file: string): Promise<Response> => {
    const response = await fetch(`${at}/${file}`);
    if (response.ok) return response;
    await response.body?.cancel();
    throw new CorruptDataError(
      `${at}: ${file} cannot be read (status ${response.status}); \`npm start\` and \`adkvc prepare\` lay the bundle`,
      { file },
    );
  };
  return {
    describe: at,
    json: async (file) => (await get(file)).json(),
    text: async (file) => (await get(file)).text(),
    stream: async function* (file) {
      const body = (await get(file)).body!;
      const filling = fillingReader(body);
      if (filling) yield* filled(filling);
      else {
        const reader = body.getReader();
        try {
          for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
        } finally {
          await reader.cancel();
        }
      }
    },
  };
}

function fillingReader(body: ReadableStream<Uint8Array>): FillingReader | undefined {
  try {
    const reader = body.getReader({ mode: 'byob' });
    if ('readAtLeast' in reader) return reader as unknown as FillingReader;
    (reader as ReadableStreamBYOBReader).releaseLock();
  } catch {
    // Not a stream of bytes: it is read as it comes.
  }
  return undefined;
}

/** One buffer for the whole file: a piece is valid until the next one is asked for. */
async function* filled(reader: FillingReader): AsyncGenerator<Uint8Array> {
  let buffer = new Uint8Array(PIECE);
  try {
    for (let done = false; !done; ) {
      const part = await reader.readAtLeast(PIECE, buffer);
      done = part.done;
      if (!part.value) return;
      if (part.value.byteLength > 0) yield part.value;
      buffer = new Uint8Array(part.value.buffer);
    }
  } finally {
    await reader.cancel();
  }
}
