import plain from '../wasm/build/adkvc-plain.wasm';
import relaxed from '../wasm/build/adkvc-relaxed.wasm';
import { generate } from './engine/generate.ts';
import { ISOLATE_CACHE_BYTES, ISOLATE_KERNEL_BYTES, isolateEngine } from './engine/isolate.ts';
import { createApp } from './http/app.ts';
import { durableObjectMetrics, type MetricsObject } from './http/metrics/durable-object.ts';
import { type ServedModel, servedModel } from './http/models.ts';
import { selectKernels } from './kernels/select.ts';
import { fetchSource } from './runtime/fetch-source.ts';
import type { BundleSource } from './runtime/manifest.ts';
import { readManifest } from './runtime/model.ts';
import { createOrtRunner } from './runtime/ort.ts';
import {
  Conversation,
  durableObjectDirectories,
  durableObjectHost,
  durableObjectRates,
  pause,
  type SessionDirectory,
} from './session/durable-object.ts';
import { Scheduler } from './session/scheduler.ts';
import type { SessionServices } from './session/services.ts';

export { MetricsObject } from './http/metrics/durable-object.ts';
export { SessionDirectory } from './session/durable-object.ts';

export interface Env {
  readonly ASSETS: Fetcher;
  readonly CONVERSATIONS: DurableObjectNamespace<ConversationObject>;
  readonly DIRECTORIES: DurableObjectNamespace<SessionDirectory>;
  readonly METRICS: DurableObjectNamespace<MetricsObject>;
  /** Secret: `name:sha256` entries, see http/auth.ts. */
  readonly ADKVC_KEYS?: string;
  /** "1" serves without keys; only what binds to loopback passes it. */
  readonly ADKVC_ANONYMOUS?: string;
  /** Other names of the model, separated by commas. */
  readonly ADKVC_MODEL_ALIASES?: string;
}

const bundleOf = (env: Env): BundleSource =>
  fetchSource('https://assets.local/bundle', (url) => env.ASSETS.fetch(url));

const aliases = (env: Env): string[] =>
  (env.ADKVC_MODEL_ALIASES ?? '').split(',').filter((name) => name !== '');

/** For models with operators that no kernel has; others never ask for its module. */
const ort = createOrtRunner({
  wasm: async () => (await import('onnxruntime-web/ort-wasm-simd-threaded.wasm')).default,
});

/** One thread and one memory for all conversations of an isolate. */
const scheduler = new Scheduler({ pause });

export class ConversationObject extends Conversation<Env> {
  protected services(env: Env): SessionServices {
    return {
      scheduler,
      generate,
      cacheBytes: ISOLATE_CACHE_BYTES,
      directories: durableObjectDirectories(env.DIRECTORIES),
      loadEngine: () =>
        isolateEngine.get(bundleOf(env), {
          makeKernels: () =>
            selectKernels({ modules: { relaxed, plain }, maxBytes: ISOLATE_KERNEL_BYTES }).kernels,
          wait: pause,
          ort,
        }),
    };
  }
}

/** Read once: the assets of a deployed Worker never change. A value, no promise: requests must not wait for each other's I/O. */
let model: ServedModel | undefined;

export default {
  async fetch(request, env, context): Promise<Response> {
    const app = createApp({
      host: durableObjectHost(env.CONVERSATIONS, durableObjectDirectories(env.DIRECTORIES)),
      metrics: durableObjectMetrics(env.METRICS),
      rates: durableObjectRates(env.DIRECTORIES),
      defer: (work) => context.waitUntil(work),
      auth: { keys: env.ADKVC_KEYS, anonymous: env.ADKVC_ANONYMOUS === '1' },
      loadModel: async () =>
        (model ??= servedModel(await readManifest(bundleOf(env)), aliases(env), ISOLATE_CACHE_BYTES)),
    });
    return app.fetch(request, env, context);
  },
} satisfies ExportedHandler<Env>;
