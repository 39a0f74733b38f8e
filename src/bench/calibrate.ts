import type { WasmKernels } from '../kernels/wasm.ts';

/**
 * What this core can do right now: the figures that stand beside every measured speed, so that a slow or a busy machine is seen.
 */
export interface Calibration {
  /** A hand-written 4-bit matrix-vector product over the kernels' memory (up to 80 MB), 1e9 multiply-adds a second. */
  readonly q4GMACs: number;
  /** int8 dot products in registers, 1e9 multiply-adds a second. */
  readonly dotGMACs: number;
  /** Bytes that the 4-bit product ran over: below the last-level cache's size it reads no memory. */
  readonly q4Bytes: number;
}

const Q4_BYTES = 80e6;
const BLOCK_BYTES = 144;
const BLOCK_PRODUCTS = 256;
const DOT_ITERATIONS = 50_000;
const DOT_PRODUCTS = 128;
/** Windows of each kind; the best counts, since whatever disturbs a window only slows it. */
const WINDOWS = 7;

/**
 * Reads kernel memory as it lies (weights, caches), writes nothing and allocates nothing. About 0.1 s.
 * @param now a clock in milliseconds that advances during computation (not in a deployed Worker)
 */
export function calibrate(kernels: WasmKernels, now: () => number = () => performance.now()): Calibration {
  const blocks = Math.floor(Math.min(Q4_BYTES, kernels.arena.memory.buffer.byteLength) / BLOCK_BYTES);
  // A small memory is read several times, so that a window stays measurable.
  const passes = Math.ceil(Q4_BYTES / 8 / (blocks * BLOCK_BYTES));
  const q4 = fastest(now, () => {
    for (let i = 0; i < passes; i++) kernels.calibration.q4Stream(0, blocks);
  });
  const dot = fastest(now, () => kernels.calibration.dotPeak(DOT_ITERATIONS));
  return {
    q4GMACs: (passes * blocks * BLOCK_PRODUCTS) / q4 / 1e6,
    dotGMACs: (DOT_ITERATIONS * DOT_PRODUCTS) / dot / 1e6,
    q4Bytes: blocks * BLOCK_BYTES,
  };
}

/** Milliseconds of the fastest of WINDOWS runs, after one that warms the compiler up. */
function fastest(now: () => number, run: () => void): number {
  run();
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < WINDOWS; i++) {
    const start = now();
    run();
    best = Math.min(best, now() - start);
  }
  return best;
}
