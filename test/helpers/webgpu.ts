import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { deviceDescriptor } from '../../src/kernels/webgpu.ts';
import { shadersFrom } from '../../src/kernels/webgpu-files.ts';
import { COPY_DST, COPY_SRC, MAP_MODE_READ, MAP_READ, STORAGE } from '../../src/kernels/webgpu-usage.ts';

/** SwiftShader as Debian's chromium brings it: a software adapter for machines without a GPU. */
const SWIFTSHADER = '/usr/lib/chromium/vk_swiftshader_icd.json';

/**
 * A device of npm `webgpu` (Dawn). Without any adapter this throws and says what to install: a missing device is never a skipped test.
 */
export async function webGpuDevice(): Promise<GPUDevice> {
  if (!process.env.VK_ICD_FILENAMES && !process.env.VK_DRIVER_FILES && existsSync(SWIFTSHADER))
    process.env.VK_ICD_FILENAMES = SWIFTSHADER;
  const dawn = (await import('webgpu')) as unknown as {
    create(flags: string[]): GPU;
    globals: Record<string, unknown>;
  };
  Object.assign(globalThis, dawn.globals);
  const gpu = dawn.create([]);
  // Held for good: Dawn's instance must outlive its devices.
  Object.defineProperty(globalThis.navigator, 'gpu', { value: gpu, configurable: true });
  const adapter = await gpu.requestAdapter();
  if (!adapter)
    throw new Error(
      'no WebGPU adapter: install a Vulkan driver, or the software one: apt-get install -y libvulkan1 chromium (which brings SwiftShader)',
    );
  return adapter.requestDevice(deviceDescriptor(adapter));
}

export const shaders = () => shadersFrom(join(import.meta.dirname, '../../shaders'));

/** A buffer on the device with these bytes. */
export function uploaded(device: GPUDevice, bytes: Uint8Array): GPUBuffer {
  const buffer = device.createBuffer({
    size: (bytes.byteLength + 15) & ~15,
    usage: STORAGE | COPY_DST | COPY_SRC,
  });
  device.queue.writeBuffer(buffer, 0, bytes as Uint8Array<ArrayBuffer>);
  return buffer;
}

export async function readBack(device: GPUDevice, from: GPUBuffer): Promise<ArrayBuffer> {
  const to = device.createBuffer({ size: from.size, usage: MAP_READ | COPY_DST });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(from, 0, to, 0, from.size);
  device.queue.submit([encoder.finish()]);
  await to.mapAsync(MAP_MODE_READ);
  const bytes = to.getMappedRange().slice(0);
  to.destroy();
  return bytes;
}
