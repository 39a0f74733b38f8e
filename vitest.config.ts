import { mkdirSync } from 'node:fs';
import { cloudflareTest } from '@cloudflare/vitest-plugin';
import { defineConfig } from 'vitest/config';

// wrangler.toml names this folder, and its reader insists that it exists.
mkdirSync('.adkvc/assets', { recursive: true });

const timeouts = { testTimeout: 180_000, hookTimeout: 300_000 };

export default defineConfig({
  test: {
    // The machines that this is made for have two cores, and one test may hold a whole model.
    maxWorkers: 2,
    projects: [
      {
        test: {
          name: 'node',
          include: ['test/**/*.test.ts'],
          exclude: ['test/workerd/**', 'test/e2e/**'],
          ...timeouts,
        },
      },
      {
        test: {
          // Whole servers, browsers and packages: one after the other, after everything else.
          name: 'e2e',
          include: ['test/e2e/**/*.test.ts'],
          fileParallelism: false,
          sequence: { groupOrder: 1 },
          expect: { poll: { timeout: 20_000 } },
          testTimeout: 420_000,
          hookTimeout: 420_000,
        },
      },
      {
        // The Worker's own runtime: storage, eviction, alarms and SIMD as they are there.
        plugins: [cloudflareTest({ wrangler: { configPath: './wrangler.toml' } })],
        test: {
          name: 'workerd',
          include: ['test/workerd/**/*.test.ts'],
          sequence: { groupOrder: 2 },
          ...timeouts,
        },
      },
      // Sessions in workerd over a double of the engine, with a Worker of their own.
      './test/workerd/session/vitest.config.ts',
    ],
  },
});
