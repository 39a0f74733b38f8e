import { execFileSync } from 'node:child_process';
import { copyFileSync, cpSync, mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { build } from 'esbuild';
import { bundleFolder, PROJECT_ROOT } from '../src/cli/bundle-folder.ts';
import { InvalidInputError } from '../src/core/errors.ts';
import { TASKS } from '../src/eval/registry.ts';
import type { BundleForm } from '../src/prepare/forms.ts';
import { buildWasm } from './build-wasm.ts';

/**
 * `npm run pack:evaluation -- --out FOLDER [--forms exact,compact] [--tasks pg19,needle-essay] [--data DIR] [--webgpu] [--with FILE,...] [--part-mib 60]`:
 * the program for a machine without network and without this checkout. Writes FOLDER/part-1.tar, ...: unpacked into one folder on that machine,
 * `node dist/eval/main.js evaluate --data data ...`, `... calibrate`, `... bench` and so on run there; only Node has to be there (or to come along, --with).
 * --webgpu takes along what `--backend webgpu` needs (21 MB, of x86-64 Linux) and scripts/measure-gpu.ts; a Vulkan driver has to be there.
 */
const { values } = parseArgs({
  options: {
    out: { type: 'string' },
    forms: { type: 'string', default: 'exact' },
    tasks: { type: 'string', default: 'pg19,needle-essay' },
    data: { type: 'string', default: join(PROJECT_ROOT, '../shared/evaldata') },
    webgpu: { type: 'boolean', default: false },
    with: { type: 'string', default: '' },
    'part-mib': { type: 'string', default: '60' },
  },
});
if (values.out === undefined) throw new InvalidInputError('say with --out where the parts go', '--out');
const list = (text: string): string[] => text.split(',').filter((part) => part !== '');
const out = resolve(values.out);
const tree = join(out, 'tree');
rmSync(tree, { recursive: true, force: true });

const put = (from: string, to: string): void => {
  mkdirSync(dirname(join(tree, to)), { recursive: true });
  copyFileSync(from, join(tree, to));
};

await build({
  entryPoints: [
    'src/cli/main.ts',
    'src/eval/worker.ts',
    'src/cli/calibrate-worker.ts',
    ...(values.webgpu ? ['scripts/measure-gpu.ts'] : []),
  ].map((file) => join(PROJECT_ROOT, file)),
  // Side by side, and two levels below the root, where the program looks for its files.
  outdir: join(tree, 'dist/eval'),
  entryNames: '[name]',
  bundle: true,
  platform: 'node',
  format: 'esm',
  minifyWhitespace: true,
  logLevel: 'error',
  // Packages written for CommonJS ask for Node's own modules.
  banner: {
    js: "import { createRequire as nodeRequire } from 'node:module'; const require = nodeRequire(import.meta.url);",
  },
  // The report's charts, and the servers: nothing that is used there.
  external: ['vega', 'vega-lite', 'wrangler', 'miniflare', 'webgpu'],
});
await buildWasm();
cpSync(join(PROJECT_ROOT, 'wasm/build'), join(tree, 'wasm/build'), { recursive: true });
if (values.webgpu) {
  cpSync(join(PROJECT_ROOT, 'shaders'), join(tree, 'shaders'), { recursive: true });
  for (const file of ['index.js', 'package.json', 'LICENSE.md', 'dist/linux-x64/dawn.node'])
    put(join(PROJECT_ROOT, 'node_modules/webgpu', file), `node_modules/webgpu/${file}`);
}
writeFileSync(join(tree, 'package.json'), '{"type":"module"}\n');
const git = (...args: string[]): string =>
  execFileSync('git', args, { cwd: PROJECT_ROOT, encoding: 'utf8' }).trim();
const changed = git('status', '--porcelain', '--', 'src', 'wasm', 'shaders') === '' ? '' : '+';
writeFileSync(join(tree, 'commit'), `${git('rev-parse', '--short=12', 'HEAD')}${changed}\n`);

for (const name of list(values.tasks)) {
  const task = TASKS[name];
  if (!task) throw new InvalidInputError(`unknown task "${name}"`, '--tasks');
  for (const file of task.files) put(join(values.data, file), `data/${file}`);
}
for (const file of list(values.with)) put(resolve(file), basename(file));
for (const form of list(values.forms) as BundleForm[]) {
  const folder = await bundleFolder(form);
  for (const file of readdirSync(folder))
    put(join(folder, file), `.adkvc/${form === 'exact' ? 'bundle-exact' : 'bundle'}/${file}`);
}

// First fit: weights come in shards of 20 MB.
const limit = Number(values['part-mib']) * 2 ** 20;
const files = readdirSync(tree, { recursive: true, withFileTypes: true })
  .filter((entry) => entry.isFile())
  .map((entry) => join(entry.parentPath, entry.name).slice(tree.length + 1))
  // A tar holds a header of 512 bytes a file, and pads to 512.
  .map((file) => ({ file, bytes: statSync(join(tree, file)).size + 1024 }))
  .sort((a, b) => b.bytes - a.bytes);
const parts: { files: string[]; bytes: number }[] = [];
for (const { file, bytes } of files) {
  if (bytes > limit) throw new InvalidInputError(`${file} is larger than a part`, '--part-mib');
  let part = parts.find((p) => p.bytes + bytes <= limit);
  if (!part) {
    part = { files: [], bytes: 10_240 };
    parts.push(part);
  }
  part.files.push(file);
  part.bytes += bytes;
}
for (const [i, part] of parts.entries()) {
  const tar = join(out, `part-${i + 1}.tar`);
  execFileSync('tar', ['-cf', tar, '-C', tree, ...part.files]);
  process.stdout.write(`${JSON.stringify({ part: tar, bytes: statSync(tar).size, files: part.files })}\n`);
}
