import { chooseBackend } from './browser/backend.ts';
import { Bridge } from './browser/bridge.ts';
import { cachedBundle } from './browser/bundle-cache.ts';
import type { BackendChoice, BrowserStatus, FromWorker, ToWorker } from './browser/protocol.ts';
import { AdkvcError } from './core/errors.ts';
import { generate } from './engine/generate.ts';
import { ISOLATE_CACHE_BYTES } from './engine/isolate.ts';
import type { Engine } from './engine/types.ts';
import { createApp } from './http/app.ts';
import { servedModel } from './http/models.ts';
import { readManifest } from './runtime/model.ts';
import { LocalDirectories } from './session/directory.ts';
import { LocalHost } from './session/local-host.ts';
import { Scheduler } from './session/scheduler.ts';
import { OpfsFolder } from './session/store/opfs.ts';

/** The whole application in a page's worker: the Worker's API over the browser's own files, and a GPU where it has one. */

const FOLDER = 'adkvc-sessions';
const SESSION = 'session:';
const DIRECTORY = 'directory:';
/** A page that is being reloaded lets its files go within this time, ms. */
const LOCK_WAIT_MS = 5_000;

const post = (message: FromWorker, transfer: Transferable[] = []): void => postMessage(message, { transfer });
const tell = (status: BrowserStatus): void => post({ type: 'status', status });

/** A macrotask, so that requests and their ends are seen between tokens: timers of 0 ms wait for 4 after a few of them. */
const turns = new MessageChannel();
const waiting: (() => void)[] = [];
turns.port1.onmessage = () => waiting.shift()?.();
const pause = (ms: number): Promise<void> =>
  new Promise((resolve) => {
    if (ms > 0) return void setTimeout(resolve, ms);
    waiting.push(resolve);
    turns.port2.postMessage(0);
  });

/** Files have one owner. @throws AdkvcError storage_unavailable while another tab is it */
async function ownFiles(): Promise<OpfsFolder> {
  if (!isSecureContext)
    throw new AdkvcError(
      'storage_unavailable',
      'browsers keep nothing for pages that come over plain http from another machine: open the page over https, or from localhost',
    );
  await new Promise<void>((resolve, reject) => {
    // Held until the worker ends.
    const held = () => {
      resolve();
      return new Promise<never>(() => {});
    };
    navigator.locks
      .request(FOLDER, { signal: AbortSignal.timeout(LOCK_WAIT_MS) }, held)
      .catch(() =>
        reject(
          new AdkvcError(
            'storage_unavailable',
            'these conversations are open in another tab of this browser: close it, then reload this one',
          ),
        ),
      );
  });
  return OpfsFolder.open(FOLDER);
}

async function start(backend: BackendChoice): Promise<Bridge> {
  let fetchedBytes = 0;
  let total = 0;
  const asset = (name: string): string => new URL(name, self.location.href).href;
  const bundle = cachedBundle(new URL('bundle', self.location.href).href, (bytes) => {
    fetchedBytes += bytes;
    if (total > 0) tell({ state: 'loading', done: Math.min(fetchedBytes, total), total, cached: false });
  });
  const [files, chosen, source] = await Promise.all([
    ownFiles(),
    chooseBackend({
      choice: backend,
      asset,
      onLost: (why) =>
        tell({
          state: 'failed',
          code: 'gpu_lost',
          message: `the GPU was taken away (${why}): reload the page`,
        }),
    }),
    bundle,
  ]);
  tell({ state: 'chosen', report: chosen.report });
  const manifest = await readManifest(source);
  total = manifest.shards.reduce((sum, { bytes }) => sum + bytes, 0);
  // Begun at once, so that the first message finds the weights there; who asks before waits for the same load.
  const loading: Promise<Engine> = chosen.load(source, (done) => {
    if (fetchedBytes === 0) tell({ state: 'loading', done, total, cached: true });
  });
  loading.then(
    () =>
      tell({
        state: 'ready',
        report: chosen.report,
        timing: { readyMs: Math.round(performance.now()), fetchedBytes },
      }),
    (error: unknown) => tell({ state: 'failed', ...inWords(error) }),
  );
  const host = new LocalHost(
    {
      loadEngine: () => loading,
      generate,
      scheduler: new Scheduler({ pause }),
      cacheBytes: ISOLATE_CACHE_BYTES,
      directories: new LocalDirectories((name) => files.store(DIRECTORY + name)),
    },
    (key) => files.store(SESSION + key),
  );
  await host.resume(
    files.names.filter((name) => name.startsWith(SESSION)).map((name) => name.slice(SESSION.length)),
  );
  const app = createApp({
    host,
    // Nobody but this page reaches it.
    auth: { anonymous: true },
    loadModel: async () => servedModel(manifest, [], ISOLATE_CACHE_BYTES),
  });
  return new Bridge((request) => app.fetch(request), post);
}

const inWords = (error: unknown) => ({
  code: error instanceof AdkvcError ? error.code : 'internal_error',
  message: error instanceof Error ? error.message : String(error),
});

let bridge: Promise<Bridge> | undefined;
self.onmessage = ({ data }: MessageEvent<ToWorker>): void => {
  if (data.type === 'start') {
    bridge = start(data.backend);
    bridge.catch((error: unknown) => tell({ state: 'failed', ...inWords(error) }));
    return;
  }
  // Requests keep their order; those that come before the application does wait for it.
  bridge?.then(
    (ready) => ready.receive(data),
    (error: unknown) => {
      if (data.type === 'request') post({ type: 'broken', id: data.id, message: inWords(error).message });
    },
  );
};
