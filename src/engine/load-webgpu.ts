import { type KvCache, tierScratchBytes } from '../cache/cache.ts';
import type { CacheStateReader } from '../cache/persist.ts';
import type { CacheConfig } from '../cache/policy.ts';
import { parseProfile } from '../cache/profile.ts';
import { ONE_SHOT_ONLY } from '../cache/registry.ts';
import { UnsupportedModelError } from '../core/errors.ts';
import type { PlanInstances } from '../kernels/wasm-plan.ts';
import type { ShaderSources } from '../kernels/webgpu.ts';
import type { BundleSource } from '../runtime/manifest.ts';
import { readManifest } from '../runtime/model.ts';
import { GpuForward } from '../runtime/webgpu/forward.ts';
import { loadGpuWeights } from '../runtime/webgpu/weights.ts';
import { createEngine, type ModelEngine } from './engine.ts';
import { readTokenizer } from './read-tokenizer.ts';
import { createTemplate } from './template.ts';

export interface LoadWebGpuEngineOptions {
  readonly source: BundleSource;
  /** From openWebGpuInNode or openWebGpu; the caller destroys it when the engine is no longer needed. */
  readonly device: GPUDevice;
  readonly shaders: ShaderSources;
  /** Of caches. */
  readonly maxBytes: number;
  /** Makes plans faster: prefill waits for the host. */
  readonly plans?: PlanInstances;
  readonly onProgress?: (done: number, total: number) => void;
}

export interface WebGpuEngine extends ModelEngine {
  readonly forward: GpuForward;
}

/** Loads a bundle's weights onto a GPU and makes it an engine: the same API, policies and stored state as over WebAssembly. */
export async function loadWebGpuEngine(options: LoadWebGpuEngineOptions): Promise<WebGpuEngine> {
  const { source, device, shaders, maxBytes, onProgress } = options;
  const manifest = await readManifest(source);
  const tokenizer = await readTokenizer(source, manifest);
  const template = createTemplate(manifest.chatTemplate, tokenizer, manifest);
  const weights = await loadGpuWeights(device, source, manifest, onProgress);
  const forward = new GpuForward({ device, shaders, manifest, weights, maxBytes });
  const { records: kernels } = forward;
  const tierScratch = kernels.arena.allocStatic(tierScratchBytes(manifest.model));
  const profile = manifest.profile
    ? parseProfile(await source.json(manifest.profile.file), manifest.model, manifest.profile.sha256)
    : undefined;
  const engine = createEngine({
    loaded: { manifest, config: manifest.model, kernels, weightBytes: weights.bytes, tierScratch },
    ...{ forward, tokenizer, template, profile, plans: options.plans },
  });
  // What no shader reads is refused when a cache is made, not at its first epoch.
  const readable = (cache: KvCache): KvCache => {
    const { policy } = cache.config;
    if (!ONE_SHOT_ONLY.has(policy)) return cache;
    cache.dispose();
    throw new UnsupportedModelError(
      `policy ${policy} passes on a part of a prompt's rows from layer to layer, which the WebGPU backend cannot; use the wasm backend (--backend wasm)`,
    );
  };
  const { createCache, restoreCache } = engine;
  return Object.assign(engine, {
    createCache: (config: CacheConfig) => readable(createCache(config)),
    restoreCache: (reader: CacheStateReader) => readable(restoreCache(reader) as KvCache),
    forward,
    ledger: () => ({
      ...{ weights: weights.bytes, workspace: forward.workspaceBytes, kernelStatic: 0 },
      ...{
        caches: kernels.arena.liveBytes,
        plans: options.plans?.bytes ?? 0,
        ortHeap: 0,
        kernelMemory: kernels.arena.memory.buffer.byteLength,
      },
    }),
  });
}
