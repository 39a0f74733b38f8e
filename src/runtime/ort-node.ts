import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';

/** onnxruntime-web's WebAssembly, compiled from the installed package: what createOrtRunner wants in Node. */
export async function ortWasmInNode(): Promise<WebAssembly.Module> {
  const file = createRequire(import.meta.url).resolve('onnxruntime-web/ort-wasm-simd-threaded.wasm');
  return WebAssembly.compile(await readFile(file));
}
