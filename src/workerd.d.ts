/** What workerd has and its published types leave out. */
declare namespace WebAssembly {
  class LinkError extends Error {}
}
