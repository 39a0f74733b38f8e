import { CorruptDataError } from '../core/errors.ts';
import type { BundleSource } from './manifest.ts';

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
    async *stream(file) {
      const reader = (await get(file)).body!.getReader();
      try {
        for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
      } finally {
        await reader.cancel();
      }
    },
  };
}
