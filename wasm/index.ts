export * from './index.cache';
export { activationI8, activationI8H64 } from './simd/activation';
export * from './simd/calibrate';
export * from './simd/embed';
export * from './simd/matmul-exact';
export * from './simd/matmul-f32';
export * from './simd/matmul-q4r';
export { matmulQ6h } from './simd/matmul-q6h';
export * from './simd/plan';
export { add, mul, rmsNorm, rope, sigmoid, siluMul } from './simd/rows';

/** First byte past the module's own data: where the host's allocator starts. */
export function heapBase(): usize {
  return __heap_base;
}
