import { spawn } from 'node:child_process';
import { appendFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { gzipSync } from 'node:zlib';
import { Command, CommanderError } from 'commander';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { DEFAULT_CACHE } from '../../src/cache/policy.ts';
import { evaluateCommand } from '../../src/cli/evaluate.ts';
import { AdkvcError } from '../../src/core/errors.ts';
import { charts } from '../../src/eval/charts.ts';
import type { Job } from '../../src/eval/job.ts';
import { lostAnswers } from '../../src/eval/lost.ts';
import { createPool } from '../../src/eval/pool.ts';
import { writeReport } from '../../src/eval/report.ts';
import { ResultLog, type Row, rowKey } from '../../src/eval/rows.ts';
import { Clock } from '../../src/eval/run.ts';
import { comparisons, summarise } from '../../src/eval/summary.ts';
import { ROOT, runCli } from '../helpers/cli.ts';
import { evalFixture } from '../helpers/eval-fixture.ts';

let fixture: Awaited<ReturnType<typeof evalFixture>>;
beforeAll(async () => {
  fixture = await evalFixture({ context: 2048 });
});
afterAll(() => fixture.remove());

const commonArgs = (): string[] => [
  ...['evaluate', '--bundle', fixture.bundle, '--data', fixture.data],
  ...['--policies', 'adkvc,uniform,window@2,window@4', '--ratios', '2,4', '--samples', '2'],
];
const args = (out: string, ...more: string[]): string[] => [
  ...commonArgs(),
  ...['--tasks', 'pg19,needle-essay', '--lengths', '1024'],
  ...['--out', join(fixture.folder, out), ...more],
];
const rowsOf = (out: string): Row[] =>
  readFileSync(join(fixture.folder, out), 'utf8')
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line) as Row);
/** What the configuration decides: everything but when, where and how fast. */
const decided = (rows: readonly Row[]) =>
  rows.map(({ measured, origin, ...row }) => row).sort((a, b) => (a.key < b.key ? -1 : 1));

const TOTAL = 2 * 2 * 7;

describe('the runner', () => {
  test('runs everything over two workers, with progress and the time that is left on standard error', async () => {
    const result = await runCli(args('whole.jsonl', '--workers', '2'));
    expect(result.stderr).toMatch(/28 of 28 rows, .* gone, done/);
    expect(result.lines).toEqual([
      {
        out: join(fixture.folder, 'whole.jsonl'),
        rows: TOTAL,
        failed: 0,
        skipped: 0,
        left: 0,
        leftByTask: {},
      },
    ]);
    const rows = rowsOf('whole.jsonl');
    expect(new Set(rows.map((r) => r.key)).size).toBe(TOTAL);
    for (const row of rows) {
      const { key, policy, ratio, scores, detail, tokens, cache, measured, origin, ...spec } = row;
      expect(rowKey(spec)).toBe(key);
      expect(row.protocol).toBe('streaming');
      expect(measured!.processPeakBytes).toBeGreaterThan(1e6);
      expect(measured!.restoreMs).toBeGreaterThan(0);
      expect(cache!.averageBytes).toBeGreaterThan(0);
      expect(Object.values(row.data)[0]).toMatch(/^[0-9a-f]{64}$/);
    }
  });

  test('killed and torn, it goes on where it was and ends with the same rows', async () => {
    const out = join(fixture.folder, 'killed.jsonl');
    const child = spawn(
      process.execPath,
      [join(ROOT, 'src/cli/main.ts'), ...args('killed.jsonl', '--workers', '1')],
      {
        cwd: ROOT,
        stdio: 'ignore',
      },
    );
    const closed = new Promise((resolve) => child.on('close', resolve));
    while (!existsSync(out) || readFileSync(out, 'utf8').split('\n').length < 9)
      await new Promise((resolve) => setTimeout(resolve, 20));
    child.kill('SIGKILL');
    await closed;
    const before = rowsOf('killed.jsonl').length;
    expect(before).toBeGreaterThanOrEqual(8);
    expect(before).toBeLessThan(TOTAL);
    appendFileSync(out, '{"key":"torn","task":"pg');
    const result = await runCli(args('killed.jsonl', '--workers', '0'));
    expect(result.stderr).toContain(`(${before} from before)`);
    expect(result.code).toBe(0);
    expect(decided(rowsOf('killed.jsonl'))).toEqual(decided(rowsOf('whole.jsonl')));
  });

  test('out of time, it says what is left and ends well; the next run makes the rest, the same', async () => {
    const short = args('short.jsonl', '--workers', '2', '--minutes', '0.0001');
    const first = await runCli(short);
    expect(first.code).toBe(0);
    const { rows, left, leftByTask } = first.lines[0];
    expect(rows + left).toBe(TOTAL);
    expect(left).toBeGreaterThan(TOTAL / 2);
    expect(leftByTask['needle-essay']).toBe(TOTAL / 2);
    const second = await runCli(args('short.jsonl', '--workers', '1'));
    expect(second.lines[0]).toMatchObject({ rows: TOTAL, failed: 0, left: 0 });
    expect(decided(rowsOf('short.jsonl'))).toEqual(decided(rowsOf('whole.jsonl')));
  });

  test('attention over packed cells in float32 is a method of its own, measured against the same full cache', async () => {
    const own = (out: string, policies: string): string[] => [
      ...['evaluate', '--bundle', fixture.bundle, '--data', fixture.data, '--tasks', 'pg19'],
      ...['--lengths', '512', '--samples', '1', '--workers', '0', '--policies', policies],
      ...['--ratios', '2', '--out', join(fixture.folder, out)],
    ];
    const both = 'adkvc,adkvc+arithmetic=float';
    await runCli(own('both.jsonl', both));
    const rows = rowsOf('both.jsonl');
    expect(rows.map((r) => r.config.arithmetic)).toEqual(['integer', 'integer', 'float']);
    const [, integer, float] = rows;
    expect(float!.scores!.klLast).not.toBe(integer!.scores!.klLast);
    expect(float!.scores!.lossDelta).toBeCloseTo(integer!.scores!.lossDelta!, 2);
    // The full cache's row is there already when the float one is made.
    await runCli(own('later.jsonl', 'adkvc'));
    await runCli(own('later.jsonl', both));
    expect(decided(rowsOf('later.jsonl'))).toEqual(decided(rows));
    const [section, ...others] = summarise(rows);
    expect(others).toEqual([]);
    expect(section!.summaries.map((s) => s.method)).toEqual([
      'full',
      'adkvc at 2x',
      'adkvc (float attention) at 2x',
    ]);
    expect(comparisons(section!).map((c) => c.method)).toEqual(['adkvc (float attention) at 2x']);
  });

  test.each(['0', '1'])('told to end, with %s workers, it says so, and ends well', async (workers) => {
    const child = spawn(
      process.execPath,
      [
        join(ROOT, 'src/cli/main.ts'),
        ...args(`term-${workers}.jsonl`, '--workers', workers, '--lengths', '1500'),
      ],
      { cwd: ROOT },
    );
    let stderr = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      if (stderr === '') child.kill('SIGTERM');
      stderr += text;
    });
    expect(await new Promise((resolve) => child.on('close', resolve))).toBe(0);
    expect(stderr).toMatch(/SIGTERM: ending; what is finished is in/);
  });

  test('a worker that dies is told, its rows are tried again, and marked where that does not help', async () => {
    const method = (policy: string) => ({ policy, config: { ...DEFAULT_CACHE, policy } });
    const job = (sample: number, ...policies: string[]): Job => ({
      ...{ task: 'pg19', length: 1, sample, seed: 0 },
      methods: policies.map(method),
      reference: method('full'),
    });
    const worker = join(fixture.folder, 'dying.mjs');
    // Answers every method but `bad`, which takes the worker with it; `once` does so in its first life only.
    writeFileSync(
      worker,
      `import { parentPort, workerData } from 'node:worker_threads';
       import { existsSync, writeFileSync } from 'node:fs';
       parentPort.on('message', (job) => {
         for (const [method, { policy }] of job.methods.entries()) {
           if (policy === 'bad') throw new Error('out of everything');
           if (policy === 'once' && !existsSync(workerData.aside)) { writeFileSync(workerData.aside, ''); process.exit(9); }
           parentPort.postMessage({ type: 'result', result: { method, outcome: policy, processPeakBytes: 1 } });
         }
         parentPort.postMessage({ type: 'done' });
       });
       parentPort.postMessage({ type: 'ready', identity: {} });`,
    );
    const options = { bundle: '', data: '', backend: 'reference', maxBytes: 1 } as const;
    const pool = await createPool(
      { ...options, aside: join(fixture.folder, 'lived') },
      2,
      pathToFileURL(worker),
    );
    const results: string[] = [];
    const deaths: string[] = [];
    await pool.run([[job(0, 'good', 'once', 'fine'), job(1, 'good')], [job(2, 'bad', 'good')]], {
      onResult: ({ sample, methods }, { method: m, outcome, error }) =>
        results.push(`${sample} ${methods[m]!.policy} ${error ?? outcome}`),
      onTokens: () => {},
      onDone: () => {},
      onDeath: (_, reason) => deaths.push(reason),
      onNote: () => {},
    });
    await pool.close();
    expect(results.sort()).toEqual([
      '0 fine fine',
      '0 good good',
      '0 once once',
      '1 good good',
      '2 bad its worker died 2 times: out of everything',
      '2 good good',
    ]);
    expect(deaths.sort()).toEqual([
      'an evaluation worker ended with code 9',
      'out of everything',
      'out of everything',
    ]);
  });

  test('what a worker that died had read counts for nothing in the time that is left', () => {
    const method = { policy: 'full', config: { ...DEFAULT_CACHE, policy: 'full' } };
    const place = { task: 'pg19', length: 1000, seed: 0, reference: method };
    const jobs = [0, 1].map((sample): Job => ({ ...place, sample, methods: [method] }));
    const left: number[] = [];
    const clock = new Clock(2, jobs, ({ remainingMs }) => left.push(remainingMs));
    clock.tokens(jobs[0]!, 900);
    clock.died(jobs[0]!);
    expect(left.at(-1)).toBeNaN();
    // Tried again, on another worker.
    for (const job of [{ ...jobs[0]! }, jobs[1]!]) clock.done(job);
    expect(left.at(-1)).toBe(0);
  });

  test('without the head profile a policy is another method', async () => {
    const own = ['--tasks', 'needle-noise', '--policies', 'adkvc@4', '--samples', '1', '--workers', '0'];
    const command = [...args('profile.jsonl'), ...own];
    await runCli(command);
    await runCli([...command, '--no-profile']);
    expect(rowsOf('profile.jsonl').map((r) => [r.policy, r.config.useProfile])).toEqual([
      ['full', undefined],
      ['adkvc', undefined],
      ['adkvc', false],
    ]);
    expect(summarise(rowsOf('profile.jsonl'))[0]!.summaries.map((s) => s.method)).toEqual([
      'full',
      'adkvc at 4x',
      'adkvc (no profile) at 4x',
    ]);
  });

  test('variants and one-shot methods are rows of their own, of tasks that have a prompt', async () => {
    const own = [
      '--policies',
      'adkvc@4+floor=1+tiers=8,8 4,4 drop,snapkv@4+one-shot,snapkv@4',
      '--workers',
      '0',
    ];
    const tasks = ['--tasks', 'needle-noise,pg19', '--samples', '1-1'];
    await runCli([...args('variants.jsonl'), ...own, ...tasks]);
    const sections = summarise(rowsOf('variants.jsonl'));
    expect(sections.map((s) => [s.task.name, s.summaries.map((m) => m.method)])).toEqual([
      ['pg19', ['full', 'adkvc (floor 1, tiers 8,8 4,4 drop) at 4x', 'snapkv at 4x']],
      [
        'needle-noise',
        ['full', 'adkvc (floor 1, tiers 8,8 4,4 drop) at 4x', 'snapkv at 4x', 'snapkv (one-shot) at 4x'],
      ],
    ]);
    expect(rowsOf('variants.jsonl').every((r) => r.sample === 1)).toBe(true);
    const once = rowsOf('variants.jsonl').find((r) => r.protocol === 'one-shot')!;
    const streamed = rowsOf('variants.jsonl').find(
      (r) => r.policy === 'snapkv' && r.task === 'needle-noise' && r.protocol === 'streaming',
    )!;
    expect(once.cache!.peakBytes).toBeGreaterThan(2 * streamed.cache!.peakBytes);
    expect(once.cache!.bytes).toBeLessThan(streamed.cache!.bytes);
  });

  test('finished, it does nothing more; a further ratio adds its rows only', async () => {
    const again = await runCli(args('whole.jsonl', '--workers', '0'));
    expect(again.lines[0]).toMatchObject({ rows: TOTAL, failed: 0 });
    expect(rowsOf('whole.jsonl')).toHaveLength(TOTAL);
    const more = args('whole.jsonl', '--workers', '0').with(8, '2,4,6');
    expect(more[8]).toBe('2,4,6');
    await runCli(more);
    // window stays at its own two.
    expect(rowsOf('whole.jsonl')).toHaveLength(TOTAL + 2 * 2 * 2);
  });

  test('what is named twice is made once', async () => {
    const own = ['--tasks', 'needle-noise,needle-noise', '--samples', '1', '--seeds', '3,3'];
    const { lines, stderr } = await runCli([
      ...args('twice.jsonl', '--workers', '0'),
      ...[...own, '--lengths', '512,512', '--policies', 'window@4,window@4+window=16'],
    ]);
    expect(lines[0]).toMatchObject({ rows: 2, failed: 0, left: 0 });
    expect(rowsOf('twice.jsonl').map((r) => r.policy)).toEqual(['full', 'window']);
    expect(stderr).not.toContain('from before');
  });

  test('months of time are not over at once', async () => {
    const own = ['--tasks', 'pg19', '--lengths', '64', '--samples', '1', '--policies', 'window@2'];
    const { lines } = await runCli([
      ...args('months.jsonl', '--workers', '0', '--minutes', '100000'),
      ...own,
    ]);
    expect(lines[0]).toMatchObject({ rows: 2, left: 0 });
  });

  test('a sample that fails is a row of its own, retried; the report is written, and the command fails', async () => {
    // Less than a question takes.
    const bad = [...commonArgs(), '--tasks', 'pg19,needle-noise', '--lengths', '64', '--workers', '0'];
    const out = join(fixture.folder, 'bad.jsonl');
    const report = join(fixture.folder, 'bad-report');
    const result = await runCli([...bad, '--out', out, '--report', report]);
    expect(result.code).toBe(1);
    const rows = rowsOf('bad.jsonl');
    expect(rows.filter((r) => r.error !== undefined).map((r) => r.task)).toEqual(
      Array(2 * 7).fill('needle-noise'),
    );
    expect(rows.filter((r) => r.scores !== undefined)).toHaveLength(2 * 7);
    expect(result.stderr).toMatch(/no room for a haystack in 64 tokens: raise --lengths/);
    expect(readFileSync(join(report, 'report.md'), 'utf8')).toContain('needle-noise under full: failed');
    await runCli([...bad, '--out', out]);
    expect(rowsOf('bad.jsonl')).toHaveLength(rows.length + 2 * 7);
  });

  test('what a model without a chat template cannot be asked is skipped, not failed', async () => {
    const plain = await evalFixture({ context: 1024, metadata: { 'tokenizer.chat_template': undefined } });
    try {
      const out = join(plain.folder, 'plain.jsonl');
      const where = ['--bundle', plain.bundle, '--data', plain.data, '--out', out, '--workers', '0'];
      const tasks = ['--tasks', 'pg19,needle-noise', '--lengths', '512', '--samples', '1'];
      const { code, lines } = await runCli(['evaluate', ...where, ...tasks, '--policies', 'window@2']);
      expect([code, lines[0]]).toMatchObject([0, { rows: 4, failed: 0, skipped: 2, left: 0 }]);
      const rows = readFileSync(out, 'utf8')
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as Row);
      expect(rows.filter((r) => r.skipped !== undefined).map((r) => [r.task, r.skipped])).toEqual(
        Array(2).fill(['needle-noise', expect.stringContaining('this model has no chat template')]),
      );
    } finally {
      await plain.remove();
    }
  });

  test('a text beyond the context of the model is skipped before it is read', async () => {
    const own = ['--tasks', 'pg19', '--lengths', '3000', '--samples', '1', '--policies', 'window@2'];
    const { lines, code } = await runCli([...args('beyond.jsonl', '--workers', '0'), ...own]);
    expect([code, lines[0]]).toMatchObject([0, { rows: 2, failed: 0, skipped: 2 }]);
    expect(rowsOf('beyond.jsonl').map((r) => r.skipped)).toEqual(
      Array(2).fill("3000 tokens, the model's context is 2048"),
    );
    await writeReport(rowsOf('beyond.jsonl'), join(fixture.folder, 'beyond'));
    const markdown = readFileSync(join(fixture.folder, 'beyond/report.md'), 'utf8');
    // Nothing was measured.
    expect(markdown).toContain(`| full | 0, 1 skipped |${' – |'.repeat(9)}`);
    expect(markdown).toContain(`| full |${' – |'.repeat(9)}`);
  });

  test('a text too short for a block to be left out says so', async () => {
    const own = ['--tasks', 'leave-one-out', '--lengths', '130', '--samples', '1'];
    const { stderr } = await runCli([...args('short-text.jsonl', '--workers', '0'), ...own]);
    expect(stderr).toMatch(/no two blocks of 64 positions to leave out in 130 tokens: raise --lengths/);
  });

  test('methods that run again one by one, because one of them failed, are told of', async () => {
    const data = join(fixture.folder, 'odd');
    mkdirSync(join(data, 'books'), { recursive: true });
    writeFileSync(join(data, 'books/pg19_test.jsonl.gz'), gzipSync('{"_id":"a book without a text"}\n'));
    const where = ['--bundle', fixture.bundle, '--data', data, '--out', join(data, 'rows.jsonl')];
    const { stderr } = await runCli([
      ...['evaluate', ...where, '--tasks', 'pg19', '--samples', '1', '--policies', 'window@2'],
      ...['--workers', '0'],
    ]);
    expect(stderr).toMatch(/pg19, sample 0: .*: 2 methods run again, one by one/);
  });

  test.each([
    [['--tasks', 'nonsense'], /unknown task "nonsense": use one of pg19/],
    [['--tasks', ''], /'--tasks <names>' argument '' is invalid/],
    [['--policies', 'nonsense'], /unknown policy "nonsense"/],
    [['--policies', 'window@much'], /write window@4/],
    [['--policies', 'window@2@4'], /write window@4/],
    [['--policies', 'adkvc@4+colour=red'], /"colour=red" of .* is no change/],
    [['--policies', 'adkvc@4+tracker=best'], /adkvc at 4x: tracker must be one of ema/],
    [
      ['--policies', 'adkvc@4+tiers=8,8 8,4 4,4 4,3 4,2 3,3 3,2 2,2 2,1'],
      /tiers names 9: an allocation chooses among 8 at most/,
    ],
    [['--policies', 'adkvc@900'], /adkvc at 900x: ratio must lie between 1 and 64/],
    [['--policies', 'uniform@30'], /uniform at 30x: .* lower the ratio or use policy adkvc/],
    [['--policies', 'fastkv@4+quotas=turns=4,4'], /fastkv at 4x: quotas are for conversations/],
    [['--window', '5000'], /full: window must be an integer from 0 to 1024/],
    [['--seeds', '5000000000'], /full: seed must be an integer/],
    [['--seeds', '1.5'], /expected whole numbers, as in 0,1,2/],
    [['--ratios', '4,'], /expected ratios, as in 2,4,8/],
    [['--lengths', '0'], /expected whole numbers of tokens from 2/],
    [['--samples', '9-3'], /as in 16-19/],
    [['--samples', '-3'], /as in 16-19/],
    [['--samples', '5-6'], /pg19 has no sample 5: its samples are 0 to 2/],
    [['--data', '/nowhere'], /is missing: give the folder/],
    [['--memory', '0.001'], /a worker cannot start: .* --memory says how much/],
    [['--memory', '5'], /a worker cannot start: .* --memory says how much/],
    [['--out', '/dev/null/x.jsonl'], /x\.jsonl cannot be written .* name another file with --out/],
    [['--out', '/dev/null'], /null cannot be read \(it is no file\): name another file with --out/],
    [['--report', '/dev/null/r'], /cannot be a folder .* name another with --report/],
    [['--report-only'], /--report-only needs --report/],
  ])('refuses %j before anything runs', async (more, message) => {
    const out = join(fixture.folder, 'refused.jsonl');
    let printed = '';
    const program = new Command().exitOverride().configureOutput({
      writeErr: (text) => {
        printed += text;
      },
    });
    evaluateCommand(program);
    const line = [...args('refused.jsonl', '--workers', '0'), ...more];
    const error = await program.parseAsync(line, { from: 'user' }).catch((e: unknown) => e);
    // Others are shown with their stack: they are nobody's mistake at the keyboard.
    expect(error instanceof AdkvcError || error instanceof CommanderError).toBe(true);
    expect(printed + (error as Error).message).toMatch(message);
    expect(existsSync(out) ? readFileSync(out, 'utf8') : '').toBe('');
    expect(existsSync(`${out}.lock`)).toBe(false);
    expect(process.listenerCount('SIGTERM')).toBe(0);
  });

  test('one run at a time writes a log; one that was killed keeps nobody away', () => {
    const path = join(fixture.folder, 'held.jsonl');
    const log = new ResultLog(path);
    expect(() => new ResultLog(path)).toThrow(/process \d+ on .* is writing .*held\.jsonl: wait for it/);
    log.close();
    // No process has this number.
    writeFileSync(`${path}.lock`, `4194305 ${hostname()}`);
    new ResultLog(path).close();
    writeFileSync(`${path}.lock`, '1 elsewhere');
    expect(() => new ResultLog(path)).toThrow(/process 1 on elsewhere .* delete .*held\.jsonl\.lock/);
  });

  test('a report over a log that is being written changes nothing of it', async () => {
    const path = join(fixture.folder, 'live.jsonl');
    writeFileSync(path, `${JSON.stringify(rowsOf('whole.jsonl')[0])}\n{"key":"half a ro`);
    const before = readFileSync(path, 'utf8');
    writeFileSync(`${path}.lock`, `${process.pid} ${hostname()}`);
    const own = ['evaluate', '--out', path, '--report', join(fixture.folder, 'live'), '--report-only'];
    expect((await runCli(own)).code).toBe(0);
    expect(readFileSync(path, 'utf8')).toBe(before);
  });

  test('methods that need a prompt are told where a task has none', async () => {
    const own = ['--tasks', 'pg19', '--lengths', '64', '--samples', '1', '--policies', 'fastkv,window'];
    const result = await runCli([...args('once.jsonl', '--workers', '0'), ...own, '--ratios', '2']);
    expect(result.stderr).toContain('pg19 has no prompt: it runs without the one-shot methods');
    expect(rowsOf('once.jsonl').map((r) => r.policy)).toEqual(['full', 'window']);
  });

  test('a report leaves out, and counts, what another version of a policy or task made', async () => {
    const path = join(fixture.folder, 'older.jsonl');
    const rows = rowsOf('whole.jsonl').filter((r) => r.task === 'pg19');
    const older = rows
      .filter((r) => r.policy === 'adkvc' && r.ratio === 4)
      .map((r): Row => ({ ...r, key: `older ${r.sample}`, scores: { ...r.scores, lossDeltaLast: 5 } }));
    const newer = { ...rows[0]!, key: 'newer', taskVersion: 99 };
    writeFileSync(path, [...rows, ...older, newer].map((r) => `${JSON.stringify(r)}\n`).join(''));
    const report = join(fixture.folder, 'older');
    const { stderr } = await runCli(['evaluate', '--out', path, '--report', report, '--report-only']);
    expect(stderr).toContain('3 rows of other versions of their policy or task are not in the report');
    const markdown = readFileSync(join(report, 'report.md'), 'utf8');
    expect(markdown).toContain(`${rows.length} rows, made`);
    await writeReport(rows, report);
    expect(readFileSync(join(report, 'report.md'), 'utf8')).toBe(markdown);
  });

  test('a file that holds something else is left alone', () => {
    const path = join(fixture.folder, 'notes.txt');
    appendFileSync(path, 'my notes\nmore notes');
    expect(() => new ResultLog(path)).toThrow(/line 1 is not a result/);
    expect(readFileSync(path, 'utf8')).toBe('my notes\nmore notes');
  });
});

describe('the report', () => {
  let markdown: string;
  let html: string;
  let rows: Row[];
  beforeAll(async () => {
    const extra = ['--policies', 'window', '--ratios', '4', '--samples', '2', '--workers', '0'];
    const more = await runCli([
      ...commonArgs(),
      ...['--tasks', 'needle-relevance,leave-one-out,longbench-qasper', '--lengths', '1024', ...extra],
      ...['--out', join(fixture.folder, 'whole.jsonl')],
    ]);
    expect(more.stderr).toMatch(/done/);
    rows = rowsOf('whole.jsonl');
    await writeReport(rows, join(fixture.folder, 'report'));
    markdown = await readFile(join(fixture.folder, 'report/report.md'), 'utf8');
    html = await readFile(join(fixture.folder, 'report/report.html'), 'utf8');
  });

  test('has a table of every task with n, intervals and bytes', () => {
    for (const title of ['pg19, 1024 tokens', 'needle-essay, 1024 tokens', 'longbench-qasper'])
      expect(markdown).toContain(`## ${title}\n`);
    expect(markdown).toMatch(/\| adkvc at 4x \| 2 \| [\d.]+x \| [+\d.e-]+ \[/);
    expect(markdown).toContain('process peak, MB');
    // Its first figure is a difference already.
    const pg19 = markdown.slice(markdown.indexOf('## pg19'), markdown.indexOf('## needle-essay'));
    expect(pg19).not.toContain('difference to full, paired');
    expect(markdown.slice(markdown.indexOf('## needle-essay'))).toContain('difference to full, paired');
    expect(markdown).toContain('## By layer: leave-one-out, 1024 tokens');
  });

  test('says where the full cache is at chance', () => {
    const needle = summarise(rows).find((s) => s.task.name === 'needle-essay')!;
    // Random weights find nothing.
    expect(needle.atChance).toBe(true);
    expect(markdown).toContain('no better than guessing');
  });

  test("takes as guessing what the full cache's answers reach for other questions", () => {
    const full = rows.find((r) => r.task === 'longbench-qasper' && r.policy === 'full')!;
    const answer = (sample: number, prediction: string, truth: string, score: number): Row => ({
      ...full,
      sample,
      scores: { score },
      detail: { prediction, answers: [truth] },
    });
    const right = [answer(0, 'red cat', 'red cat', 1), answer(1, 'red dog', 'red dog', 1)];
    expect(summarise(right)[0]).toMatchObject({ chance: 50, atChance: false });
    const vague = [answer(0, 'red', 'red cat', 2 / 3), answer(1, 'red', 'red dog', 2 / 3)];
    expect(summarise(vague)[0]).toMatchObject({ chance: expect.closeTo(66.7, 1), atChance: true });
  });

  test('one sample is not enough to call a task guessing, and a question of another seed is no other question', () => {
    const full = rows.find((r) => r.task === 'longbench-qasper' && r.policy === 'full')!;
    const answer = (sample: number, seed: number, truth: string): Row => ({
      ...{ ...full, sample, seed, scores: { score: 1 } },
      detail: { prediction: truth, answers: [truth] },
    });
    const both = [0, 1].flatMap((seed) => [answer(0, seed, 'red cat'), answer(1, seed, 'red dog')]);
    expect(summarise(both)[0]).toMatchObject({ chance: 50, atChance: false });
    const passages = { ...answer(0, 0, 'Paragraph 3'), task: 'longbench-passage_retrieval_en' };
    expect(summarise([passages])[0]!.atChance).toBe(false);
  });

  test('gives the median of speeds that were measured', () => {
    const full = rows.find((r) => r.task === 'longbench-qasper' && r.policy === 'full')!;
    // The first token was the whole answer of two samples: no step was timed.
    const own = [0, 0, 30, 0, 50].map((decodeTokensPerSecond, sample): Row => {
      const measured = { ...full.measured!, decodeTokensPerSecond, restoreMs: sample };
      return { ...full, sample, measured };
    });
    expect(summarise(own)[0]!.summaries[0]).toMatchObject({ decodeTokensPerSecond: 40, restoreMs: 2.5 });
    const none = own.filter((r) => r.measured!.decodeTokensPerSecond === 0);
    expect(summarise(none)[0]!.summaries[0]).toMatchObject({ decodeTokensPerSecond: 0 });
  });

  test('takes no sample of other texts for the same one', () => {
    const own = rows.filter((r) => r.task === 'pg19' && r.ratio !== 2);
    const data = { 'books/pg19_test.jsonl.gz': 'f00dcafe' };
    const others = own.map((r): Row => ({ ...r, data, scores: { ...r.scores, lossDeltaLast: 5 } }));
    const sections = summarise([...own, ...others]);
    expect(sections).toHaveLength(2);
    expect(sections.map((s) => s.setting.includes('texts f00dcafe'))).toEqual([false, true]);
    expect(sections[0]!.summaries).toEqual(summarise(own)[0]!.summaries);
  });

  test('counts a sample once where two configurations are one method', () => {
    const own = rows.filter((r) => r.task === 'pg19' && r.policy === 'full');
    // The newest nine tokens of a full cache are held as all others; adkvc uses its profile unless told otherwise.
    const other = own.map((r): Row => ({ ...r, key: `9${r.key}`, config: { ...r.config, window: 9 } }));
    const failed = own.map(({ scores, ...r }): Row => ({ ...r, key: `8${r.key}`, error: 'too late' }));
    const adkvc = rows.filter((r) => r.task === 'pg19' && r.policy === 'adkvc' && r.ratio === 4);
    const said = adkvc.map((r): Row => ({ ...r, config: { ...r.config, useProfile: true } }));
    const [section] = summarise([...own, ...other, ...failed, ...adkvc, ...said]);
    expect(section!.summaries.map((s) => [s.method, s.rows.length, s.failed])).toEqual([
      ['full', 2, 0],
      ['adkvc at 4x', 2, 0],
    ]);
    expect(section!.summaries[1]!.figures[0]!.n).toBe(2);
  });

  test('computes the figures that the rows give by hand', () => {
    const section = summarise(rows).find((s) => s.task.name === 'pg19')!;
    const summary = section.summaries.find((s) => s.method === 'window at 4x')!;
    const own = rows.filter((r) => r.task === 'pg19' && r.policy === 'window' && r.ratio === 4);
    const mean = own.reduce((sum, r) => sum + r.scores!.lossDeltaLast!, 0) / own.length;
    expect(summary.figures[0]!.mean).toBeCloseTo(100 * (Math.exp(mean) - 1), 9);
    expect(summary.averageBytes).toBeCloseTo(
      own.reduce((s, r) => s + r.cache!.averageBytes, 0) / own.length,
      3,
    );
    const loss = summary.figures.find((f) => f.metric.name === 'loss')!;
    const delta = own.reduce((sum, r) => sum + r.scores!.lossDelta!, 0) / own.length;
    expect(loss.paired!.mean).toBeCloseTo(100 * (Math.exp(delta) - 1), 6);
  });

  test('holds every method against adkvc at its ratio, paired', () => {
    const section = summarise(rows).find((s) => s.task.name === 'pg19')!;
    const value = (policy: string, sample: number) =>
      rows.find((r) => r.task === 'pg19' && r.policy === policy && r.ratio === 4 && r.sample === sample)!
        .scores!.lossDeltaLast!;
    const delta = [0, 1].map((i) => value('adkvc', i) - value('window', i));
    const found = comparisons(section).find((c) => c.method === 'window at 4x')!;
    expect(found.difference.n).toBe(2);
    expect(found.difference.mean).toBeCloseTo(100 * Math.expm1((delta[0]! + delta[1]!) / 2), 9);
    const losses = ['adkvc', 'window'].map((p) => Math.expm1((value(p, 0) + value(p, 1)) / 2));
    if (losses[0]! > 0 && losses[1]! > 0) expect(found.factor).toBeCloseTo(losses[1]! / losses[0]!, 6);
    else expect(found.factor).toBeUndefined();
    expect(markdown).toContain('| adkvc against |');
    expect(html).toContain('adkvc against');
  });

  test('shows what compression lost: samples that the full cache answers and a method does not', async () => {
    const of = (policy: string) =>
      rows.find((r) => r.task === 'needle-essay' && r.policy === policy && (r.ratio ?? 4) === 4)!;
    const told = (policy: string, sample: number, prediction: string, exact: number): Row => ({
      ...of(policy),
      sample,
      scores: { exact, match: exact },
      detail: { prediction, answers: ['12345'], depth: 0.35 },
    });
    const some = [
      told('full', 0, ' 12345.', 1),
      told('window', 0, ' 777 | <b>', 0),
      told('full', 1, ' no', 0),
      told('window', 1, ' no', 0),
    ];
    expect(lostAnswers(summarise(some)[0]!).map((l) => [l.method, l.row.sample])).toEqual([
      ['window at 4x', 0],
    ]);
    const folder = join(fixture.folder, 'lost');
    await writeReport(some, folder);
    expect(readFileSync(join(folder, 'report.md'), 'utf8')).toContain(
      '| window at 4x | 0 | 35 % | 12345 | " 12345." | " 777 \\| <b>" |',
    );
    expect(readFileSync(join(folder, 'report.html'), 'utf8')).toContain('&quot; 777 | &lt;b&gt;&quot;');
    expect(lostAnswers(summarise(some.slice(2))[0]!)).toEqual([]);
    // Rows that are handed on without what was said to texts of others.
    await writeReport(
      some.map(({ detail, ...row }) => row),
      folder,
    );
    expect(readFileSync(join(folder, 'report.md'), 'utf8')).toContain('| window at 4x | 0 | – | – | – | – |');
  });

  test('keeps the charts of two settings apart, and says which is which', () => {
    const own = rows.filter((r) => r.task === 'needle-essay' && r.policy === 'full');
    const elsewhere = own.map((r): Row => ({ ...r, numerics: 'elsewhere/1' }));
    const both = charts(summarise([...own, ...elsewhere])).filter((c) =>
      c.title.includes('depth and length'),
    );
    expect(both.map((c) => c.caption.includes('kernels elsewhere/1')).sort()).toEqual([false, true]);
    for (const { spec } of both) {
      const { values } = (spec as { data: { values: { n: number }[] } }).data;
      expect(values.reduce((sum, { n }) => sum + n, 0)).toBe(own.length);
    }
    for (const chart of charts(summarise(rows))) expect(chart.caption).toContain('kernels wasm/');
  });

  test('is one page that needs nothing else, with the charts drawn in it', () => {
    expect(html.match(/<svg /g)!.length).toBeGreaterThanOrEqual(8);
    for (const title of ['against bytes', 'depth and length', 'variants', 'Relevance by layer and depth'])
      expect(html).toContain(title);
    expect(html).not.toMatch(/<script|<link|src="http|@import/);
    expect(html).not.toContain('undefined');
    expect(html).not.toContain('NaN');
  });
});
