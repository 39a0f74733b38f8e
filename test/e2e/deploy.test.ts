import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { measureDeploy, overLimits, PLATFORM_LIMITS } from '../../scripts/check-deploy.ts';

const toml = readFileSync(join(import.meta.dirname, '../../wrangler.toml'), 'utf8');

test('wrangler builds what would be deployed, and every size is under the platform’s limit', async () => {
  const sizes = await measureDeploy();
  expect(overLimits(sizes)).toEqual([]);
  for (const binding of ['CONVERSATIONS', 'METRICS', 'DIRECTORIES', 'ASSETS'])
    expect(sizes.output).toContain(`env.${binding} `);
  // Both variants of the kernels, and the model as assets: nothing that is needed is missing.
  expect(Object.keys(sizes.modules)).toEqual(
    expect.arrayContaining(['worker.js', 'adkvc-plain.wasm', 'adkvc-relaxed.wasm']),
  );
  expect(sizes.assetsTotalBytes).toBeGreaterThan(80e6);
  // The check can fail.
  expect(overLimits({ ...sizes, assetBytes: PLATFORM_LIMITS.assetBytes + 1 })).toHaveLength(1);
});

test('what is deployed serves nobody without keys', () => {
  expect(toml).not.toMatch(/^[^#]*ADKVC_(ANONYMOUS|KEYS)/m);
});
