import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { WasmModules } from './select.ts';

/** The modules of a folder, for hosts that have files (Node). Each is read and compiled when it is first asked for. */
export function wasmModulesFrom(folder: string): WasmModules {
  const compile = (file: string) => {
    let module: WebAssembly.Module | undefined;
    return () => (module ??= new WebAssembly.Module(readFileSync(join(folder, file))));
  };
  return { relaxed: compile('adkvc-relaxed.wasm'), plain: compile('adkvc-plain.wasm') };
}
