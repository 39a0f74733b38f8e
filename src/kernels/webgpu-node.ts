import { existsSync } from 'node:fs';
import { UnsupportedModelError } from '../core/errors.ts';
import { deviceDescriptor } from './webgpu.ts';

/** SwiftShader as Debian's chromium brings it: a software adapter for machines without a GPU. */
const SWIFTSHADER = '/usr/lib/chromium/vk_swiftshader_icd.json';

/** Dawn rounds the device's clock to 65 us otherwise, which hides from a web page what it has no business to know. */
const EXACT_CLOCK = 'disable-dawn-features=timestamp_quantization';
/** Dawn bounds every index of a shader otherwise. */
const UNCLAMPED = 'enable-dawn-features=disable_robustness,allow_unsafe_apis';

/**
 * A device of npm `webgpu` (Dawn for Node), with the limits and features that the kernels use. The software adapter is taken only when it is the
 * sole Vulkan driver that the environment names or that is installed with chromium; the device's own name says which it is.
 * Keep Node's event loop turning (a timer) while the device works: Dawn's promises do not.
 * @param unclamped for a measurement alone: shaders index without bounds, to learn what the bounds cost
 * @throws UnsupportedModelError without the package or without an adapter; the message says what to install
 */
export async function openWebGpuInNode({
  unclamped = false,
}: {
  readonly unclamped?: boolean;
} = {}): Promise<GPUDevice> {
  let dawn: { create(flags: string[]): GPU; globals: Record<string, unknown> };
  try {
    dawn = (await import('webgpu')) as unknown as typeof dawn;
  } catch (cause) {
    throw new UnsupportedModelError('npm package webgpu is missing: npm install webgpu@0.6.2', { cause });
  }
  Object.assign(globalThis, dawn.globals);
  const request = async (): Promise<GPUAdapter | null> => {
    const gpu = dawn.create([EXACT_CLOCK, ...(unclamped ? [UNCLAMPED] : [])]);
    // Held for good: Dawn's instance must outlive its devices; and onnxruntime-web looks for it here.
    Object.defineProperty(globalThis.navigator, 'gpu', { value: gpu, configurable: true });
    return gpu.requestAdapter();
  };
  let adapter = await request();
  const named = process.env.VK_ICD_FILENAMES ?? process.env.VK_DRIVER_FILES;
  if (!adapter && !named && existsSync(SWIFTSHADER)) {
    process.env.VK_ICD_FILENAMES = SWIFTSHADER;
    adapter = await request();
  }
  if (!adapter)
    throw new UnsupportedModelError(
      'no WebGPU adapter: install a Vulkan driver, or the software one: apt-get install -y libvulkan1 chromium (which brings SwiftShader)',
    );
  return adapter.requestDevice(deviceDescriptor(adapter));
}
