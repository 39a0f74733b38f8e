import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { describe, expect, test } from 'vitest';

/** The rules of README's "How it is built", read from the sources themselves. */
const SRC = join(import.meta.dirname, '../src');
/** From the bottom up: a file imports from its own layer and those before it. */
const LAYERS = ['core', 'kernels', 'cache', 'runtime', 'engine', 'session', 'http'];
/** They import the layers; no layer imports them. */
const BESIDE = ['prepare', 'eval', 'bench', 'cli', 'page', 'browser'];
const MAX_LINES = 600;

interface SourceFile {
  readonly path: string;
  readonly lines: number;
  /** Files of src, by path. */
  readonly imports: readonly string[];
  readonly packages: readonly string[];
}

const withoutComments = (code: string): string =>
  code.replaceAll(/\/\*[\s\S]*?\*\//g, '').replaceAll(/(^|[^:'"`])\/\/.*$/gm, '$1');

/** Every specifier: static, for side effects, re-exported, dynamic, and in types. */
function specifiers(code: string): string[] {
  const patterns = [
    /^\s*(?:import|export)\b[^'"`;]*?\bfrom\s*['"]([^'"]+)['"]/gm,
    /^\s*import\s*['"]([^'"]+)['"]/gm,
    /\bimport\s*\(\s*['"]([^'"]+)['"]/g,
  ];
  const bare = withoutComments(code);
  return patterns.flatMap((pattern) => [...bare.matchAll(pattern)].map((match) => match[1]!));
}

const files: ReadonlyMap<string, SourceFile> = new Map(
  readdirSync(SRC, { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith('.ts') && !path.endsWith('.d.ts'))
    .map((path) => {
      const code = readFileSync(join(SRC, path), 'utf8');
      const found = specifiers(code);
      return [
        path,
        {
          path,
          lines: code.split('\n').length,
          imports: found
            .filter((s) => s.startsWith('.') && s.endsWith('.ts'))
            .map((s) => relative(SRC, join(SRC, dirname(path), s))),
          packages: found.filter((s) => !s.startsWith('.')),
        },
      ];
    }),
);
const all = [...files.values()];
const folderOf = (path: string): string | undefined => (path.includes('/') ? path.split('/')[0] : undefined);

test('the parser sees imports of every form, and none in comments', () => {
  const code = `import a, { b } from './a.ts';\nimport type {\n  C,\n} from "./c.ts";\nexport * from './d.ts';\nimport './e.ts';
    // import x from './not.ts';\n/* import y from './not.ts'; */\nconst f = await import('./f.ts');\ntype G = import('./g.ts').G;`;
  expect(specifiers(code).sort()).toEqual(['./a.ts', './c.ts', './d.ts', './e.ts', './f.ts', './g.ts']);
  expect(all.length).toBeGreaterThan(50);
});

test('every import leads to a file', () => {
  const broken = all.flatMap(({ path, imports }) =>
    imports.filter((i) => !files.has(i)).map((i) => `${path} -> ${i}`),
  );
  expect(broken).toEqual([]);
});

test('imports run downward', () => {
  const upward = all.flatMap(({ path, imports }) => {
    const layer = LAYERS.indexOf(folderOf(path) ?? '');
    if (layer < 0) return [];
    return imports
      .filter((target) => {
        const other = LAYERS.indexOf(folderOf(target) ?? '');
        return other < 0 || other > layer;
      })
      .map((target) => `${path} -> ${target}`);
  });
  expect(upward).toEqual([]);
});

test('every folder is a layer or stands beside them', () => {
  const folders = new Set(all.map(({ path }) => folderOf(path)).filter((f) => f !== undefined));
  expect([...folders].filter((f) => !LAYERS.includes(f) && !BESIDE.includes(f))).toEqual([]);
});

test('there is no cycle', () => {
  const state = new Map<string, 'open' | 'done'>();
  const cycles: string[] = [];
  const visit = (path: string, trail: readonly string[]): void => {
    if (state.get(path) === 'done') return;
    if (state.get(path) === 'open') {
      cycles.push([...trail.slice(trail.indexOf(path)), path].join(' -> '));
      return;
    }
    state.set(path, 'open');
    for (const next of files.get(path)?.imports ?? []) visit(next, [...trail, path]);
    state.set(path, 'done');
  };
  for (const { path } of all) visit(path, []);
  expect(cycles).toEqual([]);
});

describe.each(['worker.ts', 'browser.ts'])('what %s loads', (entry) => {
  const reachable = new Set<string>([entry]);
  for (const path of reachable) for (const next of files.get(path)?.imports ?? []) reachable.add(next);

  test('is more than its entry', () => expect(reachable.size).toBeGreaterThan(30));

  test("holds none of Node's modules", () => {
    const found = [...reachable].flatMap((path) =>
      files
        .get(path)!
        .packages.filter((p) => p.startsWith('node:'))
        .map((p) => `${path} -> ${p}`),
    );
    expect(found).toEqual([]);
  });

  test('holds none of the tools beside the layers', () => {
    const own = entry === 'browser.ts' ? 'browser' : '';
    expect(
      [...reachable].filter((path) => BESIDE.includes(folderOf(path) ?? '') && folderOf(path) !== own),
    ).toEqual([]);
  });
});

test('onnxruntime-web is imported in runtime/ort.ts alone; hosts hand in its compiled module', () => {
  const library = (name: string): boolean => name.startsWith('onnxruntime-web') && !name.endsWith('.wasm');
  const found = all.filter(({ packages }) => packages.some(library));
  expect(found.map(({ path }) => path)).toEqual(['runtime/ort.ts']);
});

test(`no file is longer than ${MAX_LINES} lines`, () => {
  expect(all.filter(({ lines }) => lines > MAX_LINES).map(({ path, lines }) => `${path}: ${lines}`)).toEqual(
    [],
  );
});
