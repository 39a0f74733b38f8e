import { mkdir, open, readFile, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { SingleBar } from 'cli-progress';
import { UnsupportedModelError } from '../core/errors.ts';
import {
  attachProfile,
  isAlive,
  PREPARER_VERSION,
  readBundleManifest,
  writeBundle,
} from '../prepare/bundle.ts';
import { EMBEDDED_MODEL } from '../prepare/embedded-model.ts';
import type { BundleForm } from '../prepare/forms.ts';
import { openModel } from '../prepare/open-model.ts';

/** Where package.json lies: two levels above this file, in the sources and in dist alike. */
export const PROJECT_ROOT = fileURLToPath(new URL('../../', import.meta.url));

/** Where commands look for the bundle, and `prepare` puts it unless --out says otherwise. */
export const defaultBundleFolder = (form: BundleForm): string =>
  join(PROJECT_ROOT, '.adkvc', form === 'exact' ? 'bundle-exact' : 'bundle');

export const embeddedModelPath = (): string => join(PROJECT_ROOT, EMBEDDED_MODEL.file);

/**
 * The folder of the bundle that commands use, made (from the embedded model by default) when there is none; progress on standard error. Of several
 * processes that want it at once one makes it and the others wait.
 * @throws UnsupportedModelError when an older version of this program prepared a bundle there from another model
 */
export async function bundleFolder(
  form: BundleForm,
  { folder = defaultBundleFolder(form), model }: { folder?: string; model?: string } = {},
): Promise<string> {
  if (!(await isUsable(folder, form)))
    await withLock(`${folder}.lock`, async () => {
      if (!(await isUsable(folder, form))) await prepareBundle({ form, out: folder, model });
    });
  await refreshProfile(folder);
  return folder;
}

/** The embedded model's profile is a file of the project: a bundle made before it was there, or from an older one, takes it over. */
async function refreshProfile(folder: string): Promise<void> {
  const manifest = await readBundleManifest(folder);
  if (manifest?.source.sha256 !== EMBEDDED_MODEL.sha256) return;
  const profile = await embeddedProfile();
  if (profile !== undefined) await attachProfile(folder, profile);
}

export const embeddedProfilePath = (): string => join(PROJECT_ROOT, EMBEDDED_MODEL.profile);
const embeddedProfile = (): Promise<string | undefined> =>
  readFile(embeddedProfilePath(), 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  });

async function isUsable(folder: string, form: BundleForm): Promise<boolean> {
  const manifest = await readBundleManifest(folder);
  if (!manifest || manifest.weightForm !== form) return false;
  if (manifest.preparerVersion === PREPARER_VERSION) return true;
  if (manifest.source.sha256 === EMBEDDED_MODEL.sha256) return false;
  throw new UnsupportedModelError(
    `${folder} was prepared from ${manifest.source.file} by another version of adkvc: run adkvc prepare --model again`,
    { folder },
  );
}

/** Prepares a model (the embedded one unless `model` names another) into `out`, with a bar on standard error. */
export async function prepareBundle(options: { model?: string; form: BundleForm; out: string }) {
  const embedded = embeddedModelPath();
  const model = options.model ?? embedded;
  const bar = progressBar(`preparing the ${options.form} bundle`);
  const source = await openModel(model);
  try {
    const result = await writeBundle(source, options.out, {
      form: options.form,
      ...(model === embedded ? { expectSha256: EMBEDDED_MODEL.sha256 } : {}),
      onProgress: bar.update,
    });
    await refreshProfile(options.out);
    return { ...result, folder: options.out };
  } finally {
    bar.stop();
    await source.close();
  }
}

function progressBar(what: string) {
  if (!process.stderr.isTTY) {
    let announced = false;
    return {
      update: (): void => {
        if (!announced) process.stderr.write(`${what} ...\n`);
        announced = true;
      },
      stop: (): void => {},
    };
  }
  const bar = new SingleBar({
    format: `${what} {bar} {percentage}% of {megabytes} MB`,
    stream: process.stderr,
    hideCursor: true,
  });
  let started = false;
  return {
    update: (done: number, total: number): void => {
      if (!started) bar.start(total, done, { megabytes: (total / 1e6).toFixed(0) });
      started = true;
      bar.update(done);
    },
    stop: (): void => bar.stop(),
  };
}

const POLL_MS = 200;

/**
 * Runs `work` while no other process holds the lock file. The lock of a process that no longer lives is taken over. It only spares work: what is
 * made under it appears by an atomic rename, so that even two holders at once would do no harm.
 */
async function withLock(file: string, work: () => Promise<void>): Promise<void> {
  await mkdir(dirname(file), { recursive: true });
  for (let waited = false; ; waited = true) {
    const handle = await open(file, 'wx').catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'EEXIST') return undefined;
      throw error;
    });
    if (handle) {
      await handle.writeFile(String(process.pid));
      await handle.close();
      break;
    }
    const holder = Number(await readFile(file, 'utf8').catch(() => ''));
    // An empty file is a holder between creating and writing.
    if (holder > 0 && !isAlive(holder)) await rm(file, { force: true });
    else {
      if (!waited)
        process.stderr.write(`waiting for process ${holder || '?'}, which prepares the bundle ...\n`);
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }
  try {
    await work();
  } finally {
    await rm(file, { force: true });
  }
}
