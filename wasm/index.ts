export * from './simd/matmul-q4r';

/** First byte past the module's own data: where the host's allocator starts. */
export function heapBase(): usize {
  return __heap_base;
}
