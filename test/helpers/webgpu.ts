import { join } from 'node:path';
import { afterAll, expect } from 'vitest';
import { shadersFrom } from '../../src/kernels/webgpu-files.ts';
import { openWebGpuInNode } from '../../src/kernels/webgpu-node.ts';
import { COPY_DST, COPY_SRC, MAP_MODE_READ, MAP_READ, STORAGE } from '../../src/kernels/webgpu-usage.ts';

export const shaders = () => shadersFrom(join(import.meta.dirname, '../../shaders'));

/** The device of a test file, closed behind its tests. Without an adapter this fails: what is expected to be there must not be skipped. */
export async function testDevice(): Promise<GPUDevice> {
  // Dawn's promises do not keep Node's event loop turning.
  const alive = setInterval(() => {}, 1000);
  const device = await openWebGpuInNode();
  const errors: string[] = [];
  device.onuncapturederror = ({ error }) => void errors.push(error.message);
  afterAll(() => {
    device.destroy();
    clearInterval(alive);
    expect(errors).toEqual([]);
  });
  return device;
}

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
