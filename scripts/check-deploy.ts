import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { bundleFolder } from '../src/cli/bundle-folder.ts';
import { layAssets } from '../src/cli/lay-assets.ts';
import { buildWasm } from './build-wasm.ts';

/**
 * `npm run check:deploy`: lays the assets, lets wrangler build the Worker as it would for a deployment, without one, and holds every size
 * against the platform's limit. Prints the sizes; fails when one is too large.
 */
const ROOT = join(import.meta.dirname, '..');

/** https://developers.cloudflare.com/workers/platform/limits/, read in November 2026. */
export const PLATFORM_LIMITS = {
  /** All modules together, before compression. */
  scriptBytes: 64 * 1024 ** 2,
  /** The limit of older accounts on the paid plan, after compression. */
  scriptGzipBytes: 10_000_000,
  assetBytes: 25 * 1024 ** 2,
  assetFiles: 20_000,
} as const;

export interface DeploySizes {
  readonly scriptBytes: number;
  readonly scriptGzipBytes: number;
  readonly modules: Readonly<Record<string, number>>;
  readonly assetFiles: number;
  /** Of the largest asset. */
  readonly assetBytes: number;
  readonly assetsTotalBytes: number;
  /** What wrangler says of the Worker: bindings and their kinds. */
  readonly output: string;
}

/** @throws Error with wrangler's own words when it refuses the configuration or the code */
export async function measureDeploy(): Promise<DeploySizes> {
  await buildWasm();
  const assets = join(ROOT, '.adkvc/assets');
  await layAssets(assets, await bundleFolder('compact'));
  const out = mkdtempSync(join(tmpdir(), 'adkvc-deploy-'));
  try {
    const wrangler = join(
      dirname(createRequire(import.meta.url).resolve('wrangler/package.json')),
      'bin/wrangler.js',
    );
    const { status, stdout, stderr } = spawnSync(
      process.execPath,
      [wrangler, 'deploy', '--dry-run', '--outdir', out],
      {
        cwd: ROOT,
        encoding: 'utf8',
        env: { ...process.env, WRANGLER_SEND_METRICS: 'false', WRANGLER_HIDE_BANNER: 'true', NO_COLOR: '1' },
      },
    );
    if (status !== 0) throw new Error(`wrangler deploy --dry-run failed:\n${stdout}\n${stderr}`);
    const modules = readdirSync(out).filter((name) => name.endsWith('.js') || name.endsWith('.wasm'));
    const bytesOf = (name: string) => readFileSync(join(out, name));
    const files = readdirSync(assets, { recursive: true, withFileTypes: true }).filter((entry) =>
      entry.isFile(),
    );
    const sizes = files.map((entry) => statSync(join(entry.parentPath, entry.name)).size);
    return {
      scriptBytes: modules.reduce((sum, name) => sum + bytesOf(name).byteLength, 0),
      scriptGzipBytes: modules.reduce((sum, name) => sum + gzipSync(bytesOf(name)).byteLength, 0),
      modules: Object.fromEntries(
        modules.map((name) => [name.replace(/^[0-9a-f]{40}-/, ''), bytesOf(name).byteLength]),
      ),
      assetFiles: files.length,
      assetBytes: Math.max(...sizes),
      assetsTotalBytes: sizes.reduce((sum, size) => sum + size, 0),
      output: stdout,
    };
  } finally {
    rmSync(out, { recursive: true, force: true });
  }
}

/** Sizes over their limits, in words. */
export const overLimits = (sizes: DeploySizes): string[] =>
  Object.entries(PLATFORM_LIMITS).flatMap(([name, limit]) => {
    const value = sizes[name as keyof typeof PLATFORM_LIMITS];
    return value > limit ? [`${name} is ${value}, the platform allows ${limit}`] : [];
  });

if (import.meta.main) {
  const sizes = await measureDeploy();
  const { output: _, ...rest } = sizes;
  console.log(JSON.stringify({ ...rest, limits: PLATFORM_LIMITS }, null, 1));
  const over = overLimits(sizes);
  if (over.length > 0) {
    console.error(over.join('\n'));
    process.exit(1);
  }
}
