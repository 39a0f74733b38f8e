import { createReadStream } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { extname, join } from 'node:path';
import { Readable } from 'node:stream';
import { serve } from '@hono/node-server';
import { type App, createApp } from './http/app.ts';
import type { AuthConfig } from './http/auth.ts';
import type { ServedModel } from './http/models.ts';
import { PAGE_HEADERS, type PageFiles } from './page-files.ts';
import type { SessionHost } from './session/api.ts';

export { type AppOptions, createApp } from './http/app.ts';

export interface NodeServerOptions {
  readonly host: SessionHost;
  readonly model: ServedModel;
  readonly auth: AuthConfig;
  readonly page: PageFiles;
  /** Folder of the bundle, for the application in the browser; undefined: it is not served. */
  readonly bundle?: string;
  /** 0 takes a free one. */
  readonly port: number;
  readonly hostname?: string;
}

export interface NodeServer {
  readonly url: string;
  close(): Promise<void>;
}

/** The same API as the Worker's, in a Node process. @throws Error EADDRINUSE when the port is taken */
export async function startNodeServer(options: NodeServerOptions): Promise<NodeServer> {
  const { host, model, auth, page, bundle, port, hostname = '127.0.0.1' } = options;
  const app = createApp({ host, auth, loadModel: async () => model });
  servePage(app, page);
  if (bundle !== undefined) await serveBundle(app, bundle);
  return new Promise((resolve, reject) => {
    const server = serve({ fetch: app.fetch, port, hostname }, ({ port: actual }) =>
      resolve({
        url: `http://${hostname}:${actual}`,
        close: () =>
          new Promise((closed, failed) => {
            server.close((error) => (error ? failed(error) : closed()));
            if ('closeAllConnections' in server) server.closeAllConnections();
          }),
      }),
    );
    server.once('error', reject);
  });
}

function servePage(app: App, page: PageFiles): void {
  for (const [name, { type, text }] of page) {
    const path = name === 'index.html' ? '/' : `/${name}`;
    app.get(path, (c) => c.body(text, 200, { ...PAGE_HEADERS, 'content-type': type }));
  }
}

/** The files that are there now, by name: nothing else of the machine can be asked for. */
async function serveBundle(app: App, folder: string): Promise<void> {
  const types: Readonly<Record<string, string>> = { '.json': 'application/json' };
  for (const name of await readdir(folder)) {
    const file = join(folder, name);
    app.get(`/bundle/${name}`, async (c) => {
      const { size } = await stat(file);
      return c.body(Readable.toWeb(createReadStream(file)) as ReadableStream<Uint8Array>, 200, {
        'content-type': types[extname(name)] ?? 'application/octet-stream',
        'content-length': String(size),
      });
    });
  }
}
