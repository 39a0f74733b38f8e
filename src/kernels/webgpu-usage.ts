/** GPUBufferUsage of https://www.w3.org/TR/webgpu/#buffer-usage, as values: the global is not there before a host has loaded its WebGPU. */
export const MAP_READ = 1;
export const COPY_SRC = 4;
export const COPY_DST = 8;
export const UNIFORM = 64;
export const STORAGE = 128;
export const QUERY_RESOLVE = 512;
/** GPUMapMode.READ. */
export const MAP_MODE_READ = 1;
/** GPUShaderStage.COMPUTE. */
export const COMPUTE = 4;
