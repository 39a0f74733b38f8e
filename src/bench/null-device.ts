import { hash32 } from '../core/random.ts';

/** What was asked of a device. */
export interface DeviceCalls {
  dispatches: number;
  passes: number;
  copies: number;
  submits: number;
  bindGroups: number;
  buffers: number;
  writes: number;
  bytesWritten: number;
  /** Waits for bytes to come back, and for work to be done. */
  waits: number;
  bytesRead: number;
}
const none = (): DeviceCalls => ({
  ...{ dispatches: 0, passes: 0, copies: 0, submits: 0, bindGroups: 0, buffers: 0 },
  ...{ writes: 0, bytesWritten: 0, waits: 0, bytesRead: 0 },
});

/**
 * A WebGPU device that counts what it is asked and does nothing: what remains is what a host costs. Bytes that are read back are noise of 16 bits each,
 * so that plans have something to choose from.
 */
export function nullDevice(): { readonly device: GPUDevice; take(): DeviceCalls } {
  let calls = none();
  const noise = Uint16Array.from({ length: 1 << 19 }, (_, i) => hash32(i, 5) >>> (16 + (hash32(i, 6) & 15)));
  const buffer = ({ size, usage }: GPUBufferDescriptor) => {
    calls.buffers++;
    return {
      ...{ size, usage, destroy: () => {}, unmap: () => {} },
      mapAsync: async (): Promise<void> => {
        calls.waits++;
        calls.bytesRead += size;
      },
      getMappedRange: (): ArrayBuffer => {
        const bytes = new Uint8Array(size);
        const all = new Uint8Array(noise.buffer);
        for (let at = 0; at < size; at += all.length) bytes.set(all.subarray(0, size - at), at);
        return bytes.buffer;
      },
    };
  };
  const pass = {
    ...{ setPipeline: () => {}, setBindGroup: () => {}, end: () => {} },
    dispatchWorkgroups: () => {
      calls.dispatches++;
    },
  };
  const encoder = {
    beginComputePass: () => {
      calls.passes++;
      return pass;
    },
    copyBufferToBuffer: () => {
      calls.copies++;
    },
    clearBuffer: () => {
      calls.copies++;
    },
    ...{ resolveQuerySet: () => {}, finish: () => ({}) },
  };
  const pipeline = { getBindGroupLayout: () => ({}) };
  const device = {
    features: new Set<string>(),
    limits: {
      ...{ maxBufferSize: 2 ** 32, maxStorageBufferBindingSize: 2 ** 32 - 4 },
      ...{ maxComputeWorkgroupStorageSize: 49152, maxStorageBuffersPerShaderStage: 16 },
    },
    adapterInfo: { vendor: 'none', architecture: '', description: 'does nothing' },
    createBuffer: buffer,
    createBindGroup: () => {
      calls.bindGroups++;
      return {};
    },
    createCommandEncoder: () => encoder,
    createComputePipeline: () => pipeline,
    ...{
      createBindGroupLayout: () => ({}),
      createPipelineLayout: () => ({}),
      createShaderModule: () => ({}),
    },
    queue: {
      writeBuffer: (_: unknown, __: number, data: ArrayBufferView, ___?: number, size?: number) => {
        calls.writes++;
        calls.bytesWritten += size ?? data.byteLength;
      },
      submit: () => {
        calls.submits++;
      },
      onSubmittedWorkDone: async (): Promise<void> => {
        calls.waits++;
      },
    },
    destroy: () => {},
  };
  return {
    device: device as unknown as GPUDevice,
    take: () => {
      const taken = calls;
      calls = none();
      return taken;
    },
  };
}
