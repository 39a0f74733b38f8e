import { existsSync } from 'node:fs';
import { type Browser, chromium } from 'playwright-core';

const PATHS = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];
const FLAGS = [
  '--headless=new',
  '--no-sandbox',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--no-first-run',
];

const NO_GPU = ['--disable-gpu'];
/** WebGPU on a processor: SwiftShader, which Chromium brings. It is correct and slow. */
const SOFTWARE_GPU = [
  '--enable-unsafe-webgpu',
  '--use-webgpu-adapter=swiftshader',
  '--enable-features=Vulkan',
];

/** A real Chromium; CHROMIUM names one that lies elsewhere. @throws Error with the command that installs it */
export async function launchChromium({ webgpu = false } = {}): Promise<Browser> {
  const path = process.env.CHROMIUM ?? PATHS.find(existsSync);
  if (!path)
    throw new Error('Chromium is missing: apt-get install --no-install-recommends chromium, or set CHROMIUM');
  return chromium.launch({ executablePath: path, args: [...FLAGS, ...(webgpu ? SOFTWARE_GPU : NO_GPU)] });
}
