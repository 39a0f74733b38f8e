import plain from '../../wasm/build/adkvc-plain.wasm';
import relaxed from '../../wasm/build/adkvc-relaxed.wasm';
import { selectKernels } from '../kernels/select.ts';
import type { WasmKernels } from '../kernels/wasm.ts';

/**
 * The calibration kernels as a Worker of their own, which is never deployed: what WebAssembly reaches inside workerd. `GET /?kind=q4&count=3` runs that
 * many passes and answers with the multiply-adds done; whoever asks takes the time, since a Worker's clock stands still while it computes.
 */
const BYTES = 80e6;
const BLOCK_BYTES = 144;
const BLOCK_PRODUCTS = 256;
const DOT_ITERATIONS = 50_000;
const DOT_PRODUCTS = 128;

let kernels: WasmKernels | undefined;

function make(): WasmKernels {
  const made = selectKernels({ modules: { relaxed, plain }, maxBytes: 90e6 }).kernels;
  // Written to: pages that nobody wrote are all the same one, which lies in the cache.
  const at = made.arena.allocStatic(BYTES);
  new Uint8Array(made.arena.memory.buffer, at, BYTES).fill(0x35);
  return made;
}

export default {
  async fetch(request: Request): Promise<Response> {
    kernels ??= make();
    const query = new URL(request.url).searchParams;
    const count = Number(query.get('count'));
    const blocks = Math.floor(BYTES / BLOCK_BYTES);
    const q4 = query.get('kind') === 'q4';
    for (let i = 0; i < count; i++)
      if (q4) kernels.calibration.q4Stream(0, blocks);
      else kernels.calibration.dotPeak(DOT_ITERATIONS);
    return Response.json({
      products: count * (q4 ? blocks * BLOCK_PRODUCTS : DOT_ITERATIONS * DOT_PRODUCTS),
    });
  },
};
