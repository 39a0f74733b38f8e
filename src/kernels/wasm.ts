import { Arena } from '../core/arena.ts';
import type { Kernels } from './kernels.ts';
import { wasmMemory } from './memory.ts';
import { type CacheExports, cacheWasm } from './wasm-cache.ts';
import { type DenseExports, denseWasm } from './wasm-dense.ts';
import { PlanInstances } from './wasm-plan.ts';

export type WasmVariant = 'relaxed' | 'plain';

export interface WasmKernelsOptions {
  /** wasm/build/adkvc-relaxed.wasm or adkvc-plain.wasm, compiled; select.ts picks one. */
  readonly module: WebAssembly.Module;
  readonly variant: WasmVariant;
  /** Limit of the kernels' linear memory, which holds weights, workspaces and the cache. */
  readonly maxBytes: number;
}

/** What the calibration kernels of the same module give. */
export interface CalibrationExports {
  /** Runs 128 int8 products times `iterations` in registers; returns a sum that depends on all of them. */
  dotPeak(iterations: number): number;
  /** Reads `blocks` blocks of 144 bytes from an address as a 4-bit matrix-vector product, 256 products a block; whatever the bytes are. */
  q4Stream(from: number, blocks: number): number;
}

export interface WasmKernels extends Kernels {
  readonly calibration: CalibrationExports;
}

/**
 * The kernels in WebAssembly over a memory of their own. Both variants give the same bits.
 * @throws WebAssembly.CompileError or LinkError when the host lacks the variant's instructions
 */
export function createWasmKernels({ module, variant, maxBytes }: WasmKernelsOptions): WasmKernels {
  const memory = wasmMemory(maxBytes);
  const abort = (_message: number, _file: number, line: number, column: number) => {
    throw new Error(`the WASM kernels aborted at ${line}:${column}`);
  };
  const instance = new WebAssembly.Instance(module, { env: { memory: memory.memory, abort } });
  const exports = instance.exports as unknown as DenseExports &
    CacheExports &
    CalibrationExports & { heapBase(): number };
  const arena = new Arena(memory, exports.heapBase());
  return {
    name: 'wasm',
    numerics: 'wasm/3',
    variant: variant === 'relaxed' ? 'relaxed' : 'simd',
    arena,
    plans: new PlanInstances(module),
    calibration: { dotPeak: exports.dotPeak, q4Stream: exports.q4Stream },
    ...denseWasm(exports),
    ...cacheWasm(exports, arena),
  };
}
