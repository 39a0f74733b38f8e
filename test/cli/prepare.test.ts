import { existsSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeEach, describe, expect, test } from 'vitest';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { verifyBundle } from '../../src/prepare/verify.ts';
import { ROOT, runCli, runNode } from '../helpers/cli.ts';
import { writeTinyGguf } from '../helpers/tiny-gguf.ts';

const folder = mkdtempSync(join(tmpdir(), 'adkvc-cli-'));
afterAll(() => rmSync(folder, { recursive: true }));
const model = writeTinyGguf(join(folder, 'tiny.gguf'));
let fresh = 0;
let out: string;
beforeEach(() => {
  out = join(folder, `out-${fresh++}`);
});

describe('prepare', () => {
  test.each([[[]], [['--exact']]])("a model of one's own %j", async (extra) => {
    const first = await runCli(['prepare', '--model', model, '--out', out, ...extra]);
    expect(first.code).toBe(0);
    const [line] = first.lines;
    expect(line).toMatchObject({ folder: out, model: 'tiny', written: true });
    const manifest = await verifyBundle(folderSource(out));
    expect(manifest.fingerprint).toBe(line.fingerprint);
    expect(manifest.weightForm).toBe(extra.length > 0 ? 'exact' : 'compact');
    const second = await runCli(['prepare', '--model', model, '--out', out, ...extra]);
    expect(second.lines[0]).toEqual({ ...line, written: false });
  });

  test('a file that cannot be used: one line that says why, exit code 1', async () => {
    const broken = writeTinyGguf(join(folder, 'broken.gguf'));
    truncateSync(broken, 60_000);
    const { code, stdout, stderr } = await runCli(['prepare', '--model', broken, '--out', out]);
    expect(stderr).toMatch(
      /^error: broken\.gguf is truncated: tensor \S+ ends at byte \d+, the file has 60000$/m,
    );
    expect(stderr).not.toMatch(/\n {4}at /);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(existsSync(out)).toBe(false);
  });
});

describe('the bundle of the commands', () => {
  const script = `
    import { bundleFolder } from ${JSON.stringify(join(ROOT, 'src/cli/bundle-folder.ts'))};
    const [folder, model] = process.argv.slice(-2);
    console.log(JSON.stringify(await bundleFolder('compact', { folder, model })));`;
  const want = () => runNode(['--input-type=module-typescript', '-e', script, '--', out, model]);

  test('is made once, however many want it', async () => {
    const results = await Promise.all([want(), want(), want(), want()]);
    for (const { code, lines } of results) expect({ code, lines }).toEqual({ code: 0, lines: [out] });
    const preparing = results.filter((r) => r.stderr.includes('preparing the compact bundle'));
    expect(preparing).toHaveLength(1);
    await verifyBundle(folderSource(out));
    expect(existsSync(`${out}.lock`)).toBe(false);
    expect((await want()).stderr).toBe('');
  });

  test('is made in spite of a lock whose holder has died', async () => {
    const { lines } = await runNode(['-e', 'console.log(process.pid)']);
    writeFileSync(`${out}.lock`, String(lines[0]));
    expect((await want()).code).toBe(0);
    await verifyBundle(folderSource(out));
    expect(existsSync(`${out}.lock`)).toBe(false);
  });

  test("of another model and an older preparer is not replaced behind its owner's back", async () => {
    await want();
    const file = join(out, 'manifest.json');
    const manifest = JSON.parse(readFileSync(file, 'utf8'));
    writeFileSync(file, JSON.stringify({ ...manifest, preparerVersion: 9999 }));
    const { code, stderr } = await want();
    expect(stderr).toMatch(/was prepared from tiny\.gguf by another version/);
    expect(code).not.toBe(0);
  });
});
