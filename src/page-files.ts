import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import * as nodeModule from 'node:module';
import { fileURLToPath } from 'node:url';

/** The chat page as a host serves it: name below the root -> bytes and type. */
export type PageFiles = ReadonlyMap<string, { readonly type: string; readonly text: string }>;

/** Nothing from elsewhere, nothing inline, in nobody's frame. https://developer.mozilla.org/docs/Web/HTTP/CSP */
export const PAGE_HEADERS: Readonly<Record<string, string>> = {
  'content-security-policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cross-origin-opener-policy': 'same-origin',
};

/** Cloudflare's `_headers` file for static assets. https://developers.cloudflare.com/workers/static-assets/headers/ */
export const headersFile = (): string =>
  `/*\n${Object.entries(PAGE_HEADERS)
    .map(([name, value]) => `  ${name}: ${value}`)
    .join('\n')}\n`;

const FOLDER = fileURLToPath(new URL('./page/', import.meta.url));
const SCRIPTS = [
  'page',
  'api',
  'cache-report',
  'cache-view',
  'composer',
  'conversation',
  'dialogs',
  'dom',
  'errors',
  'heat-map',
  'message-view',
  'sidebar',
];
const STATIC = [
  ['index.html', 'text/html; charset=utf-8'],
  ['page.css', 'text/css; charset=utf-8'],
  ['sidebar.css', 'text/css; charset=utf-8'],
  ['chat.css', 'text/css; charset=utf-8'],
  ['cache-view.css', 'text/css; charset=utf-8'],
  ['icon.svg', 'image/svg+xml'],
] as const;

/** Reads the page: compiled scripts from dist, or the sources with their types stripped. */
export async function pageFiles(): Promise<PageFiles> {
  const files = new Map<string, { type: string; text: string }>();
  for (const [name, type] of STATIC) files.set(name, { type, text: await readFile(FOLDER + name, 'utf8') });
  for (const name of SCRIPTS) {
    const compiled = `${FOLDER}${name}.js`;
    const text = existsSync(compiled)
      ? await readFile(compiled, 'utf8')
      : nodeModule
          .stripTypeScriptTypes(await readFile(`${FOLDER}${name}.ts`, 'utf8'))
          .replaceAll(/(from '\.\/[\w-]+)\.ts'/g, "$1.js'");
    files.set(`${name}.js`, { type: 'text/javascript; charset=utf-8', text });
  }
  return files;
}
