import type { KvCache } from '../cache/cache.ts';
import type { CacheConfig } from '../cache/policy.ts';
import { EPOCH } from '../core/config.ts';
import { hash32 } from '../core/random.ts';
import { loadWebGpuEngine, type WebGpuEngine } from '../engine/load-webgpu.ts';
import type { PlanInstances } from '../kernels/wasm-plan.ts';
import type { ShaderSources } from '../kernels/webgpu.ts';
import type { BundleSource } from '../runtime/manifest.ts';
import { type DeviceCalls, nullDevice } from './null-device.ts';
import { snapshot } from './snapshot.ts';

export interface HostResult {
  readonly policy: string;
  readonly context: number;
  /** Of the last epochs of a prompt, by chunk of 128 tokens. */
  readonly prefill: HostCost;
  /** Of a step of so many conversations, over a whole epoch; then of the step that ends it. */
  readonly decoding: readonly {
    readonly conversations: number;
    readonly step: HostCost;
    readonly epochEnd: HostCost;
  }[];
}
export interface HostCost {
  /** Median. */
  readonly milliseconds: number;
  /** Mean. */
  readonly calls: DeviceCalls;
}

export interface HostBenchOptions {
  readonly source: BundleSource;
  readonly shaders: ShaderSources;
  readonly plans: PlanInstances;
  readonly config: CacheConfig;
  readonly context: number;
  readonly conversations: readonly number[];
}

/** Chunks of a prompt that are measured, and epochs of decoding. */
const CHUNKS = 8;
const MAX_BYTES = 4e9;

/** What the host does for a GPU, beside a device that does nothing: calls, bytes and its own time. A real device's driver takes time for each call on top. */
export async function measureHost(options: HostBenchOptions): Promise<HostResult> {
  const { source, shaders, plans, config, context, conversations } = options;
  const { device, take } = nullDevice();
  const engine = await loadWebGpuEngine({ source, shaders, device, plans, maxBytes: MAX_BYTES });
  const token = (a: number, b: number): number => hash32(a, b) % engine.model.vocab;
  const one = async (run: () => Promise<unknown>): Promise<{ ms: number; calls: DeviceCalls }> => {
    take();
    const start = performance.now();
    await run();
    return { ms: performance.now() - start, calls: take() };
  };
  const first = engine.createCache(config);
  const prompt = Array.from({ length: context }, (_, i) => token(i, 0));
  const chunks = [];
  // A step of the same position of an epoch each, so that every conversation ends it with the others.
  const whole = context - (context % EPOCH);
  for (let at = 0; at < whole; at += EPOCH)
    chunks.push(await one(() => engine.feed(first, prompt.slice(at, at + EPOCH), 'none')));
  const decoding = [];
  for (const count of conversations) decoding.push(await decode(engine, first, count, one, token));
  first.dispose();
  return { policy: config.policy, context: whole, prefill: cost(chunks.slice(-CHUNKS)), decoding };
}

async function decode(
  engine: WebGpuEngine,
  first: KvCache,
  count: number,
  one: (run: () => Promise<unknown>) => Promise<{ ms: number; calls: DeviceCalls }>,
  token: (a: number, b: number) => number,
): Promise<HostResult['decoding'][number]> {
  const { reader } = snapshot(first);
  // Blocks hold noise where a device would have written them: what is decided by the host is not among it.
  const caches = Array.from({ length: count }, () => engine.restoreCache(reader) as KvCache);
  const steps = [];
  for (let i = 0; i < EPOCH; i++)
    steps.push(
      await one(() => Promise.all(caches.map((cache, c) => engine.feedTop!(cache, [token(c, i)], 1)))),
    );
  for (const cache of caches) cache.dispose();
  return { conversations: count, step: cost(steps.slice(0, -1)), epochEnd: cost(steps.slice(-1)) };
}

function cost(all: readonly { ms: number; calls: DeviceCalls }[]): HostCost {
  const times = all.map(({ ms }) => ms).sort((a, b) => a - b);
  const names = Object.keys(all[0]!.calls) as (keyof DeviceCalls)[];
  const mean = (name: keyof DeviceCalls): number =>
    Math.round((10 * all.reduce((sum, { calls }) => sum + calls[name], 0)) / all.length) / 10;
  return {
    milliseconds: times[times.length >> 1]!,
    calls: Object.fromEntries(names.map((name) => [name, mean(name)])) as unknown as DeviceCalls,
  };
}
