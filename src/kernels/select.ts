import { createWasmKernels, type WasmKernels, type WasmVariant } from './wasm.ts';

/** A compiled module, or how to compile it: a host that cannot read one variant must not fail before the other is tried. */
export type WasmModules = Readonly<Record<WasmVariant, WebAssembly.Module | (() => WebAssembly.Module)>>;

export interface SelectedKernels {
  readonly kernels: WasmKernels;
  readonly variant: WasmVariant;
  /** For the log and /health: why this variant runs. */
  readonly reason: string;
}

/**
 * Takes the relaxed-SIMD kernels where the host can instantiate them, else the plain ones. Trying is the detection: workerd
 * compiles no bytes at run time, so no probe module could be validated there. Both give the same bits.
 * @param variant forces one; then its failure is the caller's
 */
export function selectKernels(options: {
  modules: WasmModules;
  maxBytes: number;
  variant?: WasmVariant;
}): SelectedKernels {
  const { modules, maxBytes } = options;
  const create = (variant: WasmVariant): WasmKernels => {
    const source = modules[variant];
    return createWasmKernels({ module: typeof source === 'function' ? source() : source, variant, maxBytes });
  };
  if (options.variant)
    return { kernels: create(options.variant), variant: options.variant, reason: 'asked for by the caller' };
  try {
    return { kernels: create('relaxed'), variant: 'relaxed', reason: 'the host has relaxed SIMD' };
  } catch (error) {
    // Only what a missing instruction causes: a memory limit would fail the plain kernels alike and must be seen.
    if (!(error instanceof WebAssembly.CompileError || error instanceof WebAssembly.LinkError)) throw error;
    return {
      kernels: create('plain'),
      variant: 'plain',
      reason: `the host lacks relaxed SIMD: ${error.message}`,
    };
  }
}
