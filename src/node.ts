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
  const { host, model, auth, page, port, hostname = '127.0.0.1' } = options;
  const app = createApp({ host, auth, loadModel: async () => model });
  servePage(app, page);
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
