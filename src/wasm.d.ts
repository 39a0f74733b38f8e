/** Workers import WebAssembly as compiled modules (wrangler.toml, `[[rules]]`); Node reads the files itself. */
declare module '*.wasm' {
  const module: WebAssembly.Module;
  export default module;
}
