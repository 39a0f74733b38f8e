import { existsSync, readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { SingleBar } from 'cli-progress';
import type { ModelEngine } from '../engine/engine.ts';
import { loadEngine } from '../engine/load.ts';
import { loadWebGpuEngine, type WebGpuEngine } from '../engine/load-webgpu.ts';
import type { Kernels } from '../kernels/kernels.ts';
import { createReferenceKernels } from '../kernels/reference.ts';
import { selectKernels } from '../kernels/select.ts';
import type { WasmKernels } from '../kernels/wasm.ts';
import { PlanInstances } from '../kernels/wasm-plan.ts';
import { shadersFrom } from '../kernels/webgpu-files.ts';
import { openWebGpuInNode } from '../kernels/webgpu-node.ts';
import { folderSource } from '../prepare/folder-source.ts';
import { foreignFromBundle } from '../runtime/foreign.ts';
import type { BundleSource } from '../runtime/manifest.ts';
import { createOrtRunner } from '../runtime/ort.ts';
import { ortWasmInNode } from '../runtime/ort-node.ts';
import { bundleFolder, PROJECT_ROOT } from './bundle-folder.ts';
import type { EngineOptions } from './engine-options.ts';

/** A command on a machine of one's own may hold an uncompressed long cache: 1 GB, where a Worker's isolate has 128 MB. */
export const CLI_KERNEL_BYTES = 1e9;
/** On a GPU: 64 uncompressed conversations of 1,024 tokens; most devices bind at most 2 GiB at once. */
const CLI_GPU_BYTES = 2e9;

export interface CliEngine {
  readonly engine: ModelEngine;
  readonly kernels: Kernels;
  readonly host: string;
}

/** Where the compiled kernels lie; from a checkout they are built when a source has changed. */
export async function wasmFolder(): Promise<string> {
  const build = join(PROJECT_ROOT, 'scripts/build-wasm.ts');
  if (existsSync(build)) {
    const { buildWasm } = (await import(build)) as {
      buildWasm(log: (line: string) => void): Promise<boolean>;
    };
    await buildWasm((line) => process.stderr.write(`${line}\n`));
  }
  return join(PROJECT_ROOT, 'wasm/build');
}

/** The WASM kernels that this Node can run, over a memory of at most `maxBytes`. */
export async function loadWasmKernels(maxBytes = CLI_KERNEL_BYTES): Promise<WasmKernels> {
  const folder = await wasmFolder();
  const compile = (variant: string) => (): WebAssembly.Module =>
    new WebAssembly.Module(readFileSync(join(folder, `adkvc-${variant}.wasm`)));
  return selectKernels({ modules: { relaxed: compile('relaxed'), plain: compile('plain') }, maxBytes })
    .kernels;
}

/** What makes plans where the kernels are a GPU's: either variant does, and the plain one runs everywhere. */
export async function wasmPlans(): Promise<PlanInstances> {
  const file = join(await wasmFolder(), 'adkvc-plain.wasm');
  return new PlanInstances(new WebAssembly.Module(readFileSync(file)));
}

/** Any bundle, on this machine's processor. */
export async function loadOnCpu(
  source: BundleSource,
  backend: 'wasm' | 'reference' = 'wasm',
  maxBytes = CLI_KERNEL_BYTES,
): Promise<ModelEngine> {
  const kernels =
    backend === 'reference' ? createReferenceKernels({ maxBytes }) : await loadWasmKernels(maxBytes);
  const ort = createOrtRunner({ wasm: ortWasmInNode });
  return loadEngine({ source, kernels, foreign: foreignFromBundle(source, ort) });
}

/** Loads the embedded model's bundle (made on first use) for a command. */
export async function loadCliEngineParts(
  options: Pick<EngineOptions, 'backend' | 'exact'>,
): Promise<CliEngine> {
  const folder = await bundleFolder(options.exact ? 'exact' : 'compact');
  const kernels =
    options.backend === 'reference'
      ? createReferenceKernels({ maxBytes: CLI_KERNEL_BYTES })
      : await loadWasmKernels();
  const bar = process.stderr.isTTY
    ? new SingleBar({
        format: 'loading weights {bar} {percentage}%',
        stream: process.stderr,
        clearOnComplete: true,
      })
    : undefined;
  let started = false;
  const source = folderSource(folder);
  const ort = createOrtRunner({ wasm: ortWasmInNode });
  const engine = await loadEngine({
    source,
    kernels,
    foreign: foreignFromBundle(source, ort),
    ortHeapBytes: ort.heapBytes,
    onProgress: (done, total) => {
      if (!started) bar?.start(total, 0);
      started = true;
      bar?.update(done);
    },
  });
  bar?.stop();
  const host = `node ${process.versions.node}, ${process.platform} ${process.arch}, ${cpus()[0]?.model.trim() ?? 'unknown processor'}, kernels ${kernels.name} ${kernels.variant}`;
  return { engine, kernels, host };
}

/**
 * The embedded model on this machine's GPU; says on standard error which adapter was taken.
 * @throws UnsupportedModelError without an adapter: who asks for a GPU by name is not served by something else
 */
export const loadWebGpuCliEngine = async (options: Pick<EngineOptions, 'exact'>): Promise<WebGpuEngine> =>
  loadWebGpuInNode(folderSource(await bundleFolder(options.exact ? 'exact' : 'compact')), CLI_GPU_BYTES);

/** As loadWebGpuCliEngine, of any bundle. */
export async function loadWebGpuInNode(source: BundleSource, maxBytes: number): Promise<WebGpuEngine> {
  const device = await openWebGpuInNode();
  const { vendor, architecture, description } = device.adapterInfo;
  process.stderr.write(
    `webgpu: ${[vendor, architecture, description].filter((part) => part !== '').join(', ')}\n`,
  );
  return loadWebGpuEngine({
    device,
    source,
    shaders: shadersFrom(join(PROJECT_ROOT, 'shaders')),
    maxBytes,
    plans: await wasmPlans(),
  });
}

export const loadCliEngine = async (
  options: Pick<EngineOptions, 'backend' | 'exact'>,
): Promise<ModelEngine> =>
  options.backend === 'webgpu' ? loadWebGpuCliEngine(options) : (await loadCliEngineParts(options)).engine;
