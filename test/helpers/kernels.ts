import { join } from 'node:path';
import { buildWasm } from '../../scripts/build-wasm.ts';
import type { Kernels } from '../../src/kernels/kernels.ts';
import { createReferenceKernels } from '../../src/kernels/reference.ts';
import { createWasmKernels, type WasmKernels, type WasmVariant } from '../../src/kernels/wasm.ts';
import { wasmModulesFrom } from '../../src/kernels/wasm-files.ts';

const MAX_BYTES = 64 * 1024 * 1024;
await buildWasm();
export const wasmModules = wasmModulesFrom(join(import.meta.dirname, '../../wasm/build'));

export const referenceKernels = (maxBytes = MAX_BYTES): Kernels => createReferenceKernels({ maxBytes });

export function wasmKernels(variant: WasmVariant, maxBytes = MAX_BYTES): WasmKernels {
  const source = wasmModules[variant];
  return createWasmKernels({ module: typeof source === 'function' ? source() : source, variant, maxBytes });
}
