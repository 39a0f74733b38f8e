import type { CacheConfig } from '../cache/policy.ts';
import { hash32 } from '../core/random.ts';
import type { ModelEngine } from '../engine/engine.ts';
import type { Kernels } from '../kernels/kernels.ts';

/** Share of the whole time that each kernel method takes, largest first; 'rest' is everything outside the kernels. */
export interface Shares {
  readonly what: string;
  readonly ms: number;
  readonly shares: Readonly<Record<string, number>>;
}

/** Runs `work` with every kernel method timed. The clock's own cost (two reads a call) is in the shares. */
async function timed(kernels: Kernels, what: string, work: () => Promise<unknown>): Promise<Shares> {
  const methods = kernels as unknown as Record<string, unknown>;
  const original = new Map<string, unknown>();
  const spent = new Map<string, number>();
  for (const [name, method] of Object.entries(methods)) {
    if (typeof method !== 'function') continue;
    original.set(name, method);
    methods[name] = (...args: unknown[]) => {
      const start = performance.now();
      const result = (method as (...a: unknown[]) => unknown).apply(kernels, args);
      // Products are told apart by the form of their weights.
      const key = name === 'matmul' ? `matmul ${args[0]}` : name;
      spent.set(key, (spent.get(key) ?? 0) + performance.now() - start);
      return result;
    };
  }
  const start = performance.now();
  try {
    await work();
  } finally {
    for (const [name, method] of original) methods[name] = method;
  }
  const ms = performance.now() - start;
  spent.set('rest', ms - [...spent.values()].reduce((sum, x) => sum + x, 0));
  const sorted = [...spent].sort((a, b) => b[1] - a[1]).map(([name, x]) => [name, x / ms]);
  return { what, ms, shares: Object.fromEntries(sorted) };
}

/** Where the time of a prefill and of `steps` decoding steps goes. */
export async function measureShares(
  engine: ModelEngine,
  kernels: Kernels,
  config: CacheConfig,
  context: number,
  steps = 32,
): Promise<Shares[]> {
  const cache = engine.createCache(config);
  const ids = Array.from({ length: context + steps }, (_, i) => hash32(i) % engine.model.vocab);
  try {
    const prefill = await timed(kernels, `prefill ${context}`, () =>
      engine.feed(cache, ids.slice(0, context), 'last'),
    );
    const decode = await timed(kernels, `decode at ${context}`, async () => {
      for (const id of ids.slice(context)) await engine.feed(cache, [id], 'last');
    });
    return [prefill, decode];
  } finally {
    cache.dispose();
  }
}
