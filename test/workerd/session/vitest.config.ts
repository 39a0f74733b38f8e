import { cloudflareTest } from '@cloudflare/vitest-plugin';
import { defineProject } from 'vitest/config';

/** Sessions in workerd, over a double of the engine: their own Worker, so that no model must be prepared first. */
export default defineProject({
  plugins: [
    cloudflareTest({
      main: './worker.ts',
      miniflare: {
        compatibilityDate: '2026-10-01',
        compatibilityFlags: ['enable_request_signal'],
        bindings: { ADKVC_FAULTS: process.env.ADKVC_FAULTS ?? '' },
        durableObjects: {
          CONVERSATIONS: { className: 'ConversationObject', useSQLite: true },
          DIRECTORIES: { className: 'SessionDirectory', useSQLite: true },
        },
      },
    }),
  ],
  test: {
    name: 'workerd-session',
    include: ['**/*.spec.ts'],
    sequence: { groupOrder: 3 },
    testTimeout: 60_000,
    hookTimeout: 120_000,
  },
});
