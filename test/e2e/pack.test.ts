import { execFileSync, spawnSync } from 'node:child_process';
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';

/**
 * The package as its users get it: packed, unpacked below the node_modules of an empty folder, with the declared dependencies alone
 * beside it (linked: downloading them again would prove nothing more).
 */
const ROOT = join(import.meta.dirname, '../..');
let folder: string;
let home: string;
let manifest: {
  bin: Record<string, string>;
  exports: Record<string, any>;
  dependencies: Record<string, string>;
};

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'adkvc-pack-'));
  execFileSync('npm', ['pack', '--pack-destination', folder], { cwd: ROOT, stdio: 'pipe' });
  const tarball = readdirSync(folder).find((name) => name.endsWith('.tgz'))!;
  home = join(folder, 'node_modules/adkvc');
  mkdirSync(home, { recursive: true });
  execFileSync('tar', ['-xzf', join(folder, tarball), '-C', home, '--strip-components=1']);
  manifest = JSON.parse(readFileSync(join(home, 'package.json'), 'utf8'));
  for (const name of Object.keys(manifest.dependencies)) {
    const link = join(folder, 'node_modules', name);
    mkdirSync(dirname(link), { recursive: true });
    symlinkSync(realpathSync(join(ROOT, 'node_modules', name)), link);
  }
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const adkvc = (args: string[], input = '') =>
  spawnSync(process.execPath, [join(home, manifest.bin.adkvc!), ...args], {
    cwd: folder,
    input,
    encoding: 'utf8',
  });

test('holds compiled code, the kernels and the model, and no sources', () => {
  const files = readdirSync(home, { recursive: true, encoding: 'utf8' });
  expect(files).toContain('wasm/build/adkvc-relaxed.wasm');
  expect(files).toContain('models/LICENSE');
  expect(files.filter((name) => /^(src|test|scripts|\.adkvc)\b/.test(name))).toEqual([]);
  expect(files.filter((name) => name.endsWith('.ts') && !name.endsWith('.d.ts'))).toEqual([]);
});

test('adkvc tokenize runs from the package', () => {
  const { stdout, stderr, status } = adkvc(['tokenize'], '{"text": "Hello world<|im_end|>"}\n');
  expect(stderr).not.toContain('Error');
  expect(status).toBe(0);
  const { ids, text } = JSON.parse(stdout);
  expect(text).toBe('Hello world<|im_end|>');
  expect(ids.at(-1)).toBe(2);
});

test('every command tells its options', () => {
  for (const command of ['prepare', 'chat', 'serve', 'tokenize', 'render', 'score', 'generate', 'bench']) {
    const { stdout, status } = adkvc([command, '--help']);
    expect(status).toBe(0);
    expect(stdout).toContain(`adkvc ${command}`);
  }
});

test('the module is importable by name', () => {
  const code = "import { createApp } from 'adkvc'; console.log(typeof createApp)";
  const { stdout } = spawnSync(process.execPath, ['--input-type=module', '-e', code], {
    cwd: folder,
    encoding: 'utf8',
  });
  expect(stdout.trim()).toBe('function');
});
