import { activationKind, type WeightForm } from '../kernels/kernels.ts';
import { createWasmKernels, type WasmVariant } from '../kernels/wasm.ts';
import { wasmModulesFrom } from '../kernels/wasm-files.ts';
import { weightBytes } from '../kernels/weights.ts';
import { calibrate } from './calibrate.ts';

/**
 * GMAC/s and GB/s of the products at SmolLM2-135M's shapes, beside the calibration of the same moment. A single row runs over
 * as many copies of the weight as make WORKING_SET bytes, since a token reads every weight once from memory, not from a cache.
 */
const SHAPES: readonly (readonly [what: string, form: WeightForm, n: number, k: number])[] = [
  ['q, o', 'q4r', 576, 576],
  ['k, v', 'q4r', 192, 576],
  ['gate, up', 'q4r', 1536, 576],
  ['down', 'q4r', 576, 1536],
  ['lm_head', 'q6h', 49152, 576],
  ['gate exact', 'q4_1', 1536, 576],
  ['down exact', 'q4_1', 576, 1536],
  ['lm_head exact', 'q8_0', 8192, 576],
  ['gate f32', 'f32', 1536, 576],
];
const ROWS = [1, 8, 128];
const WORKING_SET = 60e6;
const WINDOWS = 5;

export function benchKernels(variant: WasmVariant, folder: string, log: (line: string) => void): void {
  const source = wasmModulesFrom(folder)[variant];
  const kernels = createWasmKernels({
    module: typeof source === 'function' ? source() : source,
    variant,
    maxBytes: 200e6,
  });
  const weights = kernels.arena.allocStatic(WORKING_SET + 1e6);
  const x = kernels.arena.allocStatic(128 * 1536 * 4);
  const activation = kernels.arena.allocStatic(128 * 1536 * 4);
  const out = kernels.arena.allocStatic(128 * 49152 * 4);
  fillPlausibly(kernels.arena.memory.buffer, weights, WORKING_SET + 1e6);
  const input = new Float32Array(kernels.arena.memory.buffer, x, 128 * 1536);
  for (let i = 0; i < input.length; i++) input[i] = Math.sin(i * 1.7) * 3;

  log(`${variant}\nshape\tform\tn x k\trows\tGMAC/s\tGB/s of weights\tq4GMACs\tdotGMACs`);
  for (const [what, form, n, k] of SHAPES)
    for (const rows of ROWS) {
      const bytes = weightBytes(form, n, k);
      const copies = rows === 1 ? Math.max(1, Math.floor(WORKING_SET / bytes)) : 1;
      const kind = activationKind(form);
      kernels.prepareActivation(kind, x, rows, k, activation);
      const operand = kind === 'f32' ? x : activation;
      const run = () => {
        for (let i = 0; i < copies; i++)
          kernels.matmul(form, operand, rows, weights + i * bytes, n, k, out, n);
      };
      run();
      let best = Number.POSITIVE_INFINITY;
      for (let i = 0; i < WINDOWS; i++) {
        const start = performance.now();
        run();
        best = Math.min(best, performance.now() - start);
      }
      const { q4GMACs, dotGMACs } = calibrate(kernels);
      log(
        [
          what,
          form,
          `${n} x ${k}`,
          rows,
          ((copies * rows * n * k) / best / 1e6).toFixed(1),
          ((copies * bytes) / best / 1e6).toFixed(1),
          q4GMACs.toFixed(1),
          dotGMACs.toFixed(1),
        ].join('\t'),
      );
    }
}

/** Bytes whose halves, bfloats and floats are all of ordinary size, so that no product meets a subnormal. */
function fillPlausibly(buffer: ArrayBuffer, at: number, bytes: number): void {
  const words = new Uint32Array(buffer, at, bytes >> 2);
  for (let i = 0; i < words.length; i++) {
    const noise = Math.imul(i + 1, 0x9e3779b1) >>> 0;
    words[i] = 0x3c003c00 | (noise & 0x01ff01ff);
  }
}
