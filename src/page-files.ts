import { existsSync, readFileSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import * as nodeModule from 'node:module';
import { fileURLToPath } from 'node:url';

/** The chat page as a host serves it: name below the root -> bytes and type. */
export type PageFiles = ReadonlyMap<string, PageFile>;
interface PageFile {
  readonly type: string;
  readonly text: string | Uint8Array<ArrayBuffer>;
}

/** Nothing from elsewhere, nothing inline, in nobody's frame; WebAssembly for the application in the browser. https://developer.mozilla.org/docs/Web/HTTP/CSP */
export const PAGE_HEADERS: Readonly<Record<string, string>> = {
  'content-security-policy':
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
};

/** Cloudflare's `_headers` file for static assets. https://developers.cloudflare.com/workers/static-assets/headers/ */
export const headersFile = (): string =>
  `/*\n${Object.entries(PAGE_HEADERS)
    .map(([name, value]) => `  ${name}: ${value}`)
    .join('\n')}\n`;

const JAVASCRIPT = 'text/javascript; charset=utf-8';
const ROOT = fileURLToPath(new URL('../', import.meta.url));
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
  'local-app',
  'markdown',
  'message-view',
  'place',
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

/** A page has no packages: the one that it uses lies beside it. */
const MARKED = /from ['"]marked['"]/;
export const markedPath = (): string => {
  const built = `${FOLDER}marked.js`;
  return existsSync(built) ? built : fileURLToPath(import.meta.resolve('marked'));
};

/** The application in one script, its kernels and its shaders, beside the page. */
async function browserFiles(): Promise<PageFiles> {
  const built = `${ROOT}dist/browser-app.js`;
  const isPacked = import.meta.filename.endsWith('.js');
  const shaders = Object.fromEntries(
    (await readdir(`${ROOT}shaders`))
      .filter((name) => name.endsWith('.wgsl'))
      .map((name) => [name.slice(0, -'.wgsl'.length), readFileSync(`${ROOT}shaders/${name}`, 'utf8')]),
  );
  const wasm = async (variant: string) => ({
    type: 'application/wasm',
    text: new Uint8Array(await readFile(`${ROOT}wasm/build/adkvc-${variant}.wasm`)),
  });
  return new Map<string, PageFile>([
    [
      'browser.js',
      { type: JAVASCRIPT, text: isPacked ? await readFile(built, 'utf8') : await bundleBrowserApp() },
    ],
    ['shaders.json', { type: 'application/json', text: JSON.stringify(shaders) }],
    ['adkvc-relaxed.wasm', await wasm('relaxed')],
    ['adkvc-plain.wasm', await wasm('plain')],
  ]);
}

/** A worker has no import map: what src/browser.ts imports becomes one script. The package ships it; a checkout makes it in half a second. */
export async function bundleBrowserApp(): Promise<string> {
  const { build } = await import('esbuild');
  const { outputFiles } = await build({
    entryPoints: [`${ROOT}src/browser.ts`],
    ...{ bundle: true, write: false, minify: true, format: 'esm', target: 'es2024', legalComments: 'none' },
  });
  return outputFiles[0]!.text;
}

/** Reads the page: compiled scripts from dist, or the sources with their types stripped; and the application that runs in a browser. */
export async function pageFiles(): Promise<PageFiles> {
  const files = new Map(await browserFiles());
  for (const [name, type] of STATIC) files.set(name, { type, text: await readFile(FOLDER + name, 'utf8') });
  for (const name of SCRIPTS) {
    const compiled = `${FOLDER}${name}.js`;
    const text = existsSync(compiled)
      ? await readFile(compiled, 'utf8')
      : nodeModule
          .stripTypeScriptTypes(await readFile(`${FOLDER}${name}.ts`, 'utf8'))
          .replaceAll(/(from '\.\/[\w-]+)\.ts'/g, "$1.js'");
    files.set(`${name}.js`, { type: JAVASCRIPT, text: text.replace(MARKED, "from './marked.js'") });
  }
  files.set('marked.js', { type: JAVASCRIPT, text: await readFile(markedPath(), 'utf8') });
  return files;
}
