/** Stands for Node's modules that a library names but never reaches in a Worker (see `[alias]` in wrangler.toml). */
export default {};
