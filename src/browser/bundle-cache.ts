import { CorruptDataError } from '../core/errors.ts';
import { fetchSource } from '../runtime/fetch-source.ts';
import type { BundleSource } from '../runtime/manifest.ts';

const PREFIX = 'adkvc-bundle-';
const MANIFEST = 'manifest.json';

/**
 * A bundle over fetch whose files are kept by the browser (https://w3c.github.io/ServiceWorker/#cache-interface): a second visit reads the
 * weights from there. The manifest is asked for again each time, and names what belongs together: where it has changed, what was kept is
 * fetched anew; where it cannot be had, the kept one serves.
 * @param at URL of the bundle's folder, without a slash at its end
 * @param onBytes told of bytes that come over the network
 * @throws CorruptDataError where there is no bundle
 */
export async function cachedBundle(at: string, onBytes: (bytes: number) => void): Promise<BundleSource> {
  const url = `${at}/${MANIFEST}`;
  const fresh = await fetch(url, { cache: 'no-cache' }).catch(() => undefined);
  let text: string;
  if (fresh?.ok) text = await fresh.text();
  else {
    const kept = await caches.match(url);
    // What answers is told by whoever reads it.
    if (!kept)
      throw new CorruptDataError(
        `${url} cannot be read (${fresh ? `status ${fresh.status}` : 'no connection'}): the model must lie beside the page`,
      );
    text = await kept.text();
  }
  const name = PREFIX + fingerprintOf(text, url);
  const cache = await caches.open(name);
  if (fresh?.ok) {
    await cache.put(url, new Response(text, { headers: { 'content-type': 'application/json' } }));
    for (const other of await caches.keys())
      if (other.startsWith(PREFIX) && other !== name) await caches.delete(other);
  }

  /** A file is kept when all of it has come: `put` fails, and keeps nothing, where the connection breaks off. */
  const get = async (file: string): Promise<Response> => {
    const kept = await cache.match(file);
    if (kept) return kept;
    const response = await fetch(file);
    if (!response.ok) return response;
    await cache.put(file, counted(response, onBytes));
    return (await cache.match(file))!;
  };
  return fetchSource(at, get);
}

function fingerprintOf(text: string, url: string): string {
  try {
    const { fingerprint } = JSON.parse(text) as { fingerprint?: unknown };
    if (typeof fingerprint === 'string') return fingerprint;
  } catch {
    // A host that answers whatever it is asked for with a page.
  }
  throw new CorruptDataError(`${url} is no bundle's manifest: the model must lie beside the page`);
}

/** The response, whose bytes are counted as they pass. */
function counted(response: Response, count: (bytes: number) => void): Response {
  const meter = new TransformStream<Uint8Array, Uint8Array>({
    transform(piece, controller) {
      count(piece.byteLength);
      controller.enqueue(piece);
    },
  });
  return new Response(
    response.body?.pipeThrough(
      meter as ReadableWritablePair<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>,
    ),
    {
      headers: response.headers,
    },
  );
}
