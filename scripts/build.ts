import { spawnSync } from 'node:child_process';
import { chmodSync, cpSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { bundleBrowserApp, markedPath } from '../src/page-files.ts';

/**
 * `npm run build`: compiled JavaScript for the package's `bin` and `exports` in dist/, because Node strips no types below
 * node_modules; and the kernels, which the package ships beside it.
 */
const root = fileURLToPath(new URL('..', import.meta.url));
const run = (command: string, ...args: string[]): void => {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit' });
  if (error) throw error;
  if (status !== 0) process.exit(status ?? 1);
};

rmSync(`${root}/dist`, { recursive: true, force: true });
run('tsc', '-p', 'tsconfig.build.json');
for (const file of readdirSync(`${root}/src/page`))
  if (!file.endsWith('.ts')) cpSync(`${root}/src/page/${file}`, `${root}/dist/page/${file}`);
chmodSync(`${root}/dist/cli/main.js`, 0o755);
run('node', 'scripts/build-wasm.ts');
writeFileSync(`${root}/dist/browser-app.js`, await bundleBrowserApp());
cpSync(markedPath(), `${root}/dist/page/marked.js`);
