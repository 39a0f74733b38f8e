import { createHash } from 'node:crypto';
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

/**
 * Compiles wasm/index.ts twice: `adkvc-relaxed.wasm` and `adkvc-plain.wasm` differ in ASC_FEATURE_RELAXED_SIMD alone.
 * Skipped when no source, option or compiler has changed. Files appear by renaming, so nobody sees a half-written one.
 */
const ROOT = join(import.meta.dirname, '..');
const OUT = join(ROOT, 'wasm/build');
const VARIANTS = ['relaxed', 'plain'] as const;

const options = (variant: (typeof VARIANTS)[number], outFile: string): string[] => [
  'wasm/index.ts',
  '--outFile',
  outFile,
  '-O3',
  '--noAssert',
  '--runtime',
  'stub',
  // The host owns the memory: it grows it, limits it and gives it to one instance. 65536 pages only bound what a host may state.
  '--importMemory',
  '--initialMemory',
  '2',
  '--maximumMemory',
  '65536',
  '--enable',
  variant === 'relaxed' ? 'simd,relaxed-simd' : 'simd',
];

async function sources(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true });
  return entries
    .filter((name) => name.endsWith('.ts') && !name.startsWith('build'))
    .map((name) => join(folder, name))
    .sort();
}

async function fingerprint(compiler: string): Promise<string> {
  const hash = createHash('sha256').update(compiler);
  for (const variant of VARIANTS) hash.update(options(variant, '').join(' '));
  for (const file of await sources(join(ROOT, 'wasm')))
    hash.update(file.slice(ROOT.length)).update(await readFile(file));
  return hash.digest('hex');
}

/** Builds what has changed. @returns whether anything was built */
export async function buildWasm(log: (line: string) => void = () => {}): Promise<boolean> {
  // Imported late: the compiler is large, and most calls find everything up to date.
  const compiler = JSON.parse(
    await readFile(join(ROOT, 'node_modules/assemblyscript/package.json'), 'utf8'),
  ).version;
  const print = await fingerprint(compiler);
  const stamp = join(OUT, 'fingerprint');
  if ((await readFile(stamp, 'utf8').catch(() => '')) === print) return false;
  const asc = await import('assemblyscript/asc');
  await mkdir(OUT, { recursive: true });
  const temporary: [string, string][] = [];
  for (const variant of VARIANTS) {
    const files = new Map<string, Uint8Array>();
    const outFile = `adkvc-${variant}.wasm`;
    const { error, stderr } = await asc.main(options(variant, outFile), {
      readFile: (name, base) =>
        readFile(join(base && base !== '.' ? base : ROOT, name), 'utf8').catch(() => null),
      listFiles: async () => [],
      writeFile: (name, contents) => {
        files.set(name, typeof contents === 'string' ? new TextEncoder().encode(contents) : contents);
      },
    });
    if (error) throw new Error(`AssemblyScript (${variant}): ${error.message}\n${stderr.toString()}`);
    const file = join(OUT, `${outFile}.${process.pid}`);
    await writeFile(file, files.get(outFile)!);
    temporary.push([file, join(OUT, outFile)]);
    log(`${outFile}: ${files.get(outFile)!.byteLength} bytes`);
  }
  await rm(stamp, { force: true });
  for (const [from, to] of temporary) await rename(from, to);
  await writeFile(`${stamp}.${process.pid}`, print);
  await rename(`${stamp}.${process.pid}`, stamp);
  return true;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const built = await buildWasm((line) => console.error(line));
  if (!built) console.error('wasm/build is up to date');
}
