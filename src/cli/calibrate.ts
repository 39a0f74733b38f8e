import { readFile, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { resolve } from 'node:path';
import { Worker } from 'node:worker_threads';
import type { Command } from 'commander';
import { EPOCH } from '../core/config.ts';
import { InvalidInputError } from '../core/errors.ts';
import type { ModelEngine } from '../engine/engine.ts';
import { attachProfile, sha256 } from '../prepare/bundle.ts';
import {
  type CalibrationResult,
  type CalibrationTask,
  calibrationTasks,
  combineResults,
  profileFile,
} from '../prepare/calibrate.ts';
import { calibrationItems, generateSource } from '../prepare/calibration-texts.ts';
import { EMBEDDED_MODEL } from '../prepare/embedded-model.ts';
import { folderSource } from '../prepare/folder-source.ts';
import { readManifest } from '../runtime/model.ts';
import { bundleFolder, embeddedProfilePath } from './bundle-folder.ts';
import { count, natural } from './engine-options.ts';
import { loadOnCpu } from './load-engine.ts';

interface CalibrateOptions {
  text?: string[];
  texts: number;
  needles: number;
  context: number;
  needleContext: number;
  workers: number;
  seed: number;
  bundle?: string[];
  out?: string;
}

/** Texts that the model writes when it is given none. */
const OWN_TEXTS = 2;

/** `adkvc calibrate`: measures the head profile of the prepared model, and puts it into its bundles; one JSON line tells what was done. */
export function calibrateCommand(program: Command): void {
  program
    .command('calibrate')
    .description("measures how much each head's cache matters, from plain text, for policy adkvc")
    .option('--text <files...>', 'plain text to measure on (default: the model writes some)')
    .option('--texts <n>', 'pieces of text', count, 2)
    .option('--needles <n>', 'needle prompts, made of the texts', count, 4)
    .option('--context <n>', "tokens of a text's past, a multiple of 128", count, 1024)
    .option('--needle-context <n>', "tokens of a needle prompt's past, a multiple of 128", count, 1024)
    .option('--workers <n>', 'threads; each holds the model', count, availableParallelism())
    .option('--seed <n>', 'seed of every random choice', natural, 1)
    .option(
      '--bundle <dirs...>',
      'folders of a prepared model (default: the embedded one): the one in the exact form is measured, all get the profile',
    )
    .option('--out <file>', 'where the profile goes besides (default: beside the embedded model)')
    .action(async (options: CalibrateOptions) => {
      for (const [name, n] of [
        ['--context', options.context],
        ['--needle-context', options.needleContext],
      ] as const)
        if (n % EPOCH !== 0)
          throw new InvalidInputError(`${name} must be a multiple of ${EPOCH}, not ${n}`, name);
      const started = performance.now();
      const { folders, exact, manifest } = await bundlesOf(options);
      const longest = Math.max(options.context, options.needleContext) + EPOCH;
      if (longest > manifest.model.contextLength)
        throw new InvalidInputError(
          `contexts of ${options.context} and ${options.needleContext} and ${EPOCH} tokens after them do not fit the model's ${manifest.model.contextLength}`,
          options.context > options.needleContext ? '--context' : '--needle-context',
        );
      const engine = await loadOnCpu(folderSource(exact));
      const sources = await textSources(engine, options);
      const items = calibrationItems(engine, { ...options, sources, chat: manifest.chatTemplate !== null });
      const heads = engine.model.layers * engine.model.kvHeads;
      const tasks = calibrationTasks(items, heads, options.workers);
      const threads = Math.min(options.workers, tasks.length);
      const results = await runTasks(exact, tasks, threads, items.length * heads);
      const file = profileFile(
        engine,
        manifest.source.sha256,
        {
          texts: options.texts,
          context: options.context,
          needles: options.needles,
          needleContext: options.needleContext,
          seed: options.seed,
          source: options.text ? 'plain text given' : 'text written by the model',
        },
        combineResults(
          tasks.map((task, i) => ({ task, result: results[i]! })),
          heads,
        ),
      );
      const text = profileText(file);
      const out = options.out ?? (options.bundle ? undefined : embeddedProfilePath());
      if (out !== undefined) await writeFile(resolve(out), text);
      for (const folder of folders) await attachProfile(folder, text);
      process.stdout.write(
        `${JSON.stringify({ profile: out ?? folders, sha256: sha256(text), heads, runs: items.length * heads, seconds: Math.round((performance.now() - started) / 1000) })}\n`,
      );
    });
}

/** The folders that get the profile, and which of them is measured. @throws InvalidInputError where they are not of one model or none is in the exact form */
async function bundlesOf({ bundle, out }: CalibrateOptions) {
  // The compact form's rounding of activations would hide all but the most sensitive heads.
  const folders = bundle?.map((folder) => resolve(folder)) ?? [
    await bundleFolder('exact'),
    await bundleFolder('compact'),
  ];
  const manifests = await Promise.all(folders.map((folder) => readManifest(folderSource(folder))));
  const at = manifests.findIndex((m) => m.weightForm === 'exact');
  if (at < 0)
    throw new InvalidInputError(
      `${folders.join(', ')}: none is in the exact form, which is what is measured: adkvc prepare --exact makes it`,
      '--bundle',
    );
  const manifest = manifests[at]!;
  const other = manifests.findIndex((m) => m.source.sha256 !== manifest.source.sha256);
  if (other >= 0)
    throw new InvalidInputError(`${folders[other]} is of another model than ${folders[at]}`, '--bundle');
  if (!bundle && out === undefined && manifest.source.sha256 !== EMBEDDED_MODEL.sha256)
    throw new InvalidInputError(
      'the bundle is not the embedded model: say with --out where its profile goes',
      '--out',
    );
  return { folders, exact: folders[at]!, manifest };
}

/** One line a list: diffs of a profile stay readable. */
function profileText(file: object): string {
  const text = JSON.stringify(file, null, 1);
  return `${text.replaceAll(/\[\n\s+([^\]]*?)\n\s+\]/g, (_, body: string) => `[${body.replaceAll(/\n\s+/g, ' ')}]`)}\n`;
}

async function textSources(engine: ModelEngine, options: CalibrateOptions): Promise<number[][]> {
  if (options.text)
    return Promise.all(
      options.text.map(async (file) => {
        const text = await readFile(resolve(file), 'utf8').catch((error: Error) => {
          throw new InvalidInputError(`${file} cannot be read (${error.message})`, '--text');
        });
        return engine.tokenizer.encode(text);
      }),
    );
  const sources: number[][] = [];
  const length = Math.max(options.context + EPOCH, options.needleContext);
  for (let i = 0; i < OWN_TEXTS; i++) {
    process.stderr.write(`writing text ${i + 1} of ${OWN_TEXTS}, ${length} tokens ...\n`);
    sources.push(await generateSource(engine, length, options.seed + i));
  }
  return sources;
}

/** Hands tasks to threads, first come first served; progress and remaining time on standard error. */
async function runTasks(
  bundle: string,
  tasks: readonly CalibrationTask[],
  threads: number,
  runs: number,
): Promise<CalibrationResult[]> {
  const results: CalibrationResult[] = new Array(tasks.length);
  const started = performance.now();
  let next = 0;
  let done = 0;
  const workers: Worker[] = [];
  const show = (): void => {
    const seconds = (performance.now() - started) / 1000;
    const left = Math.round((seconds / done) * (runs - done));
    if (process.stderr.isTTY) process.stderr.write(`\r${done} of ${runs} runs, ${left} s to go   `);
    else if (done === 1 || done % 10 === 0)
      process.stderr.write(`${done} of ${runs} runs, ${left} s to go\n`);
  };
  // Built code lies beside as .js.
  const file = import.meta.url.endsWith('.ts') ? './calibrate-worker.ts' : './calibrate-worker.js';
  try {
    await Promise.all(
      Array.from(
        { length: threads },
        () =>
          new Promise<void>((finish, fail) => {
            const worker = new Worker(new URL(file, import.meta.url), { workerData: bundle });
            workers.push(worker);
            const give = (): void => {
              const index = next++;
              if (index < tasks.length) worker.postMessage({ index, task: tasks[index] });
              else finish();
            };
            worker.on('error', fail);
            worker.on(
              'message',
              (m: { ready?: true; head?: 1; index?: number; result?: CalibrationResult }) => {
                if (m.head) {
                  done++;
                  show();
                  return;
                }
                if (m.index !== undefined) results[m.index] = m.result!;
                give();
              },
            );
          }),
      ),
    );
  } finally {
    await Promise.all(workers.map((w) => w.terminate()));
  }
  return results;
}
