import { existsSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, test } from 'vitest';

/** The folder of golden data and further models beside the project, where there is one. */
const SHARED = resolve(dirname(fileURLToPath(import.meta.url)), '../../../shared');

/** A path within the shared folder, or undefined when the folder is not there. */
export const sharedPath = (...parts: string[]): string | undefined =>
  existsSync(SHARED) ? join(SHARED, ...parts) : undefined;

/** A suite that needs the shared folder. Without it: fails when CI is set, else prints one loud line and is skipped. */
export function describeShared(name: string, suite: () => void): void {
  if (existsSync(SHARED)) {
    describe(name, suite);
  } else if (process.env.CI) {
    test(name, () => {
      throw new Error(`the golden data is missing: CI needs the folder ${SHARED}`);
    });
  } else {
    console.warn(`\n!!! SKIPPED "${name}": the golden data folder ../shared is not there\n`);
    // A skipped suite's function still runs, and may read what is not there.
    describe.skip(name, () => {
      test('needs ../shared', () => {});
    });
  }
}
