import { join } from 'node:path';
import { shadersFrom } from '../../src/kernels/webgpu-files.ts';
import { COPY_DST, COPY_SRC, MAP_MODE_READ, MAP_READ, STORAGE } from '../../src/kernels/webgpu-usage.ts';

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
