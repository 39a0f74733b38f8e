import { AdkvcError, UnsupportedModelError } from '../core/errors.ts';
import type { ModelEngine } from '../engine/engine.ts';
import { loadEngine } from '../engine/load.ts';
import { loadWebGpuEngine } from '../engine/load-webgpu.ts';
import { selectKernels } from '../kernels/select.ts';
import { PlanInstances } from '../kernels/wasm-plan.ts';
import { deviceDescriptor, SHADER_FILES, type ShaderSources } from '../kernels/webgpu.ts';
import type { BundleSource } from '../runtime/manifest.ts';
import type { BackendChoice, BrowserReport } from './protocol.ts';

/** Of kernel memory: weights, workspaces and caches. A browser's tab may have more than an isolate; a phone's has about this. */
const KERNEL_BYTES = 512e6;
/** One row of logits: nobody asks for more while generating. */
const LOGIT_ROWS = 1;

type Progress = (done: number, total: number) => void;
type Load = (source: BundleSource, onProgress: Progress) => Promise<ModelEngine>;

/** A backend that this browser has, and why it was taken. */
export interface ChosenBackend {
  readonly report: BrowserReport;
  readonly load: Load;
}

export interface BackendOptions {
  readonly choice: BackendChoice;
  /** URL of a file that lies beside the worker. */
  readonly asset: (name: string) => string;
  /** The GPU was taken away (a driver was reset, a laptop slept): nothing more can be computed on it. */
  readonly onLost: (why: string) => void;
}

/**
 * Looks at what the browser has. Who asks for a backend by name gets it or an error, never another one; 'auto' takes a GPU where it is a real one.
 * @throws AdkvcError backend_unavailable, saying what is missing
 */
export async function chooseBackend({ choice, asset, onLost }: BackendOptions): Promise<ChosenBackend> {
  if (choice === 'wasm') return wasmBackend(asset, 'asked for by name');
  const found = await findAdapter();
  if ('missing' in found) {
    if (choice === 'webgpu')
      throw new AdkvcError(
        'backend_unavailable',
        `WebGPU was asked for, and this browser has none: ${found.missing}; use ?backend=wasm`,
      );
    return wasmBackend(asset, found.missing);
  }
  const { adapter } = found;
  if (choice === 'auto' && adapter.info.isFallbackAdapter)
    return wasmBackend(asset, `the only GPU is a processor in disguise (${nameOf(adapter)})`);
  return webGpuBackend(
    adapter,
    asset,
    onLost,
    choice === 'webgpu' ? 'asked for by name' : 'the browser has a GPU',
  );
}

async function findAdapter(): Promise<{ adapter: GPUAdapter } | { missing: string }> {
  const { gpu } = navigator as { gpu?: GPU };
  if (!gpu) return { missing: 'it has no WebGPU (navigator.gpu)' };
  const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' }).catch(() => null);
  return adapter ? { adapter } : { missing: 'WebGPU finds no adapter' };
}

const nameOf = ({ info }: GPUAdapter): string =>
  [info.vendor, info.architecture, info.description].filter((part) => part !== '').join(' ') ||
  'unnamed adapter';

async function webGpuBackend(
  adapter: GPUAdapter,
  asset: BackendOptions['asset'],
  onLost: BackendOptions['onLost'],
  why: string,
): Promise<ChosenBackend> {
  const device = await adapter.requestDevice(deviceDescriptor(adapter)).catch((cause: unknown) => {
    throw new AdkvcError('backend_unavailable', `the GPU cannot be used: ${cause}; use ?backend=wasm`, {
      cause,
    });
  });
  void device.lost.then(({ reason, message }) => {
    if (reason !== 'destroyed') onLost(message);
  });
  return {
    report: { backend: 'webgpu', what: nameOf(adapter), why },
    load: async (source, onProgress) =>
      loadWebGpuEngine({
        device,
        source,
        shaders: await readShaders(asset),
        maxBytes: KERNEL_BYTES,
        plans: await plansFrom(asset),
        onProgress,
      }),
  };
}

async function plansFrom(asset: BackendOptions['asset']): Promise<PlanInstances> {
  const bytes = await (await read(asset('adkvc-plain.wasm'))).arrayBuffer();
  return new PlanInstances(await WebAssembly.compile(bytes));
}

async function readShaders(asset: BackendOptions['asset']): Promise<ShaderSources> {
  const all = (await (await read(asset('shaders.json'))).json()) as Record<string, string>;
  for (const name of SHADER_FILES)
    if (all[name] === undefined)
      throw new UnsupportedModelError(`shaders.json lacks ${name}: lay the page again`);
  return all as ShaderSources;
}

async function wasmBackend(asset: BackendOptions['asset'], why: string): Promise<ChosenBackend> {
  const relaxed = await compile(asset('adkvc-relaxed.wasm'));
  // Fetched only where the browser has no relaxed SIMD.
  const plain = typeof relaxed === 'function' ? await compile(asset('adkvc-plain.wasm')) : relaxed;
  const modules = { relaxed, plain };
  const { kernels, variant } = selectKernels({ modules, maxBytes: KERNEL_BYTES });
  return {
    report: { backend: 'wasm', what: variant === 'relaxed' ? 'relaxed SIMD' : 'plain SIMD', why },
    load: (source, onProgress) =>
      loadEngine({ source, kernels, logitRows: LOGIT_ROWS, onProgress, foreign: refuseForeign }),
  };
}

/** What a browser cannot compile is told when it is tried. */
async function compile(url: string): Promise<WebAssembly.Module | (() => never)> {
  const bytes = await (await read(url)).arrayBuffer();
  return WebAssembly.compile(bytes).catch((error: unknown) => () => {
    throw error;
  });
}

async function read(url: string): Promise<Response> {
  const response = await fetch(url);
  if (response.ok) return response;
  throw new AdkvcError(
    'backend_unavailable',
    `${url} cannot be read (status ${response.status}): lay the page again`,
  );
}

async function refuseForeign(): Promise<never> {
  throw new UnsupportedModelError(
    'this model has operators that no kernel of this project has: it runs on a server, which brings onnxruntime, and not in a page',
  );
}
