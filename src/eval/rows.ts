import { createHash } from 'node:crypto';
import {
  closeSync,
  existsSync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { hostname } from 'node:os';
import { dirname } from 'node:path';
import type { CacheConfig } from '../cache/policy.ts';
import { AdkvcError, CorruptDataError, InvalidInputError } from '../core/errors.ts';
import type { CacheFigures } from './meter.ts';
import type { Protocol, Speed } from './task.ts';

/** Raised when rows of an older program must not be taken for finished, whatever their policy. */
const ROW_VERSION = 1;

/** The same for one policy: other constants than before complete its configurations. */
const PLAN_VERSIONS: Readonly<Record<string, number>> = { adkvc: 2, 'adkvc-quantize': 2 };

/** What a row's key says of the program that made it. */
export const rowVersion = (policy: string): number => PLAN_VERSIONS[policy] ?? ROW_VERSION;

/** What decides a row's scores: the same spec gives the same scores. */
export interface RowSpec {
  readonly task: string;
  readonly taskVersion: number;
  /** Tokens; 0 where the sample has a length of its own. */
  readonly length: number;
  readonly sample: number;
  readonly seed: number;
  readonly config: CacheConfig;
  readonly protocol: Protocol;
  readonly model: string;
  readonly weightForm: string;
  /** Of weights, tokenizer and template. */
  readonly fingerprint: string;
  readonly numerics: string;
  readonly profile: string;
  /** sha256 by data file. */
  readonly data: Readonly<Record<string, string>>;
}

/** Where and when; nothing here is part of the key. */
export interface Origin {
  readonly commit: string;
  readonly node: string;
  readonly host: string;
  readonly at: string;
}

export interface Row extends RowSpec {
  /** Hash of the spec. */
  readonly key: string;
  readonly policy: string;
  /** As asked for; null: the policy's own. */
  readonly ratio: number | null;
  readonly scores?: Readonly<Record<string, number>>;
  readonly detail?: Readonly<Record<string, unknown>>;
  /** Tokens fed as prompt or text. */
  readonly tokens?: number;
  readonly cache?: CacheFigures;
  /** Why this sample cannot be put to this model. A finished row. */
  readonly skipped?: string;
  /** Why it failed. Not a finished row: the next run tries again. */
  readonly error?: string;
  readonly measured?: Speed & { readonly processPeakBytes: number };
  readonly origin: Origin;
}

/** JSON with its keys in order, so that equal specs give equal text. */
const canonical = (value: unknown): string =>
  JSON.stringify(value, (_, v: unknown) =>
    v !== null && typeof v === 'object' && !Array.isArray(v)
      ? Object.fromEntries(Object.entries(v).sort(([a], [b]) => (a < b ? -1 : 1)))
      : v,
  );

/** 128 bits of sha256 over the spec, in hex. */
export const rowKey = (spec: RowSpec): string =>
  createHash('sha256')
    .update(canonical({ rowVersion: rowVersion(spec.config.policy), ...spec }))
    .digest('hex')
    .slice(0, 32);

/** Whether this program would give the row's spec the row's key: otherwise an older one made it, whose policy had other constants. */
export function isCurrent(row: Row): boolean {
  const { key, policy, ratio, scores, detail, tokens, cache, skipped, error, measured, origin, ...spec } =
    row;
  return rowKey(spec) === key;
}

interface LogFile {
  /** The newest row of each key. */
  readonly rows: Map<string, Row>;
  /** Bytes of the lines that are whole; what lies behind them a run that was killed left. */
  readonly wholeBytes: number;
  readonly bytes: number;
}

/**
 * The rows of a log, which is only looked at: a run may be writing it.
 * @throws InvalidInputError where there is no such file, CorruptDataError for a whole line that is no row
 */
export function readRows(path: string): LogFile {
  const text = attempt(path, 'read', () => {
    if (!statSync(path).isFile()) throw new Error('it is no file');
    return readFileSync(path, 'utf8');
  });
  const whole = text.slice(0, text.lastIndexOf('\n') + 1);
  const rows = new Map<string, Row>();
  whole.split('\n').forEach((line, i) => {
    if (line === '') return;
    const row = parse(line);
    if (!row)
      throw new CorruptDataError(
        `${path}: line ${i + 1} is not a result: name another file with --out, or take the line out`,
        { path },
      );
    rows.set(row.key, row);
  });
  return { rows, wholeBytes: Buffer.byteLength(whole), bytes: Buffer.byteLength(text) };
}

function attempt<T>(path: string, what: string, action: () => T): T {
  try {
    return action();
  } catch (error) {
    throw new InvalidInputError(
      `${path} cannot be ${what} (${(error as Error).message}): name another file with --out`,
      '--out',
    );
  }
}

/**
 * Rows as JSON lines, appended one by one: a line counts once its line feed is there. A run that was killed left at most one torn line,
 * which the next one cuts off. One run at a time writes a log: a file beside it says which.
 */
export class ResultLog {
  readonly path: string;
  readonly rows: Map<string, Row>;
  readonly #file: number;
  readonly #unlock: () => void;

  /** @throws InvalidInputError where the file cannot be written or another run does, CorruptDataError for a whole line that is no row: the file is not ours to cut */
  constructor(path: string) {
    this.path = path;
    attempt(path, 'written', () => mkdirSync(dirname(path), { recursive: true }));
    this.#unlock = lock(path);
    try {
      const held = existsSync(path) ? readRows(path) : undefined;
      this.rows = held?.rows ?? new Map();
      this.#file = attempt(path, 'written', () => openSync(path, 'a'));
      if (held && held.wholeBytes < held.bytes) ftruncateSync(this.#file, held.wholeBytes);
    } catch (error) {
      this.#unlock();
      throw error;
    }
  }

  finished(key: string): boolean {
    const row = this.rows.get(key);
    return row !== undefined && row.error === undefined;
  }

  /** @throws AdkvcError where the line cannot be written: the log is as good as before, and the next run goes on from it */
  append(row: Row): void {
    const line = Buffer.from(`${JSON.stringify(row)}\n`);
    try {
      for (let at = 0; at < line.length; ) at += writeSync(this.#file, line, at);
    } catch (error) {
      throw new AdkvcError(
        'results_unwritable',
        `a row cannot be added to ${this.path} (${(error as Error).message}): what is there stays, the same command goes on from it`,
      );
    }
    this.rows.set(row.key, row);
  }

  close(): void {
    fsyncSync(this.#file);
    closeSync(this.#file);
    this.#unlock();
  }
}

/** Keeps other runs away from a log until the returned function is called, or this process ends. */
function lock(path: string): () => void {
  const own = `${path}.lock`;
  const me = `${process.pid} ${hostname()}`;
  for (;;) {
    try {
      writeFileSync(own, me, { flag: 'wx' });
      return () => rmSync(own, { force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST')
        return attempt(path, 'written', () => {
          throw error;
        });
    }
    const [pid, host] = readFileSync(own, 'utf8').split(' ') as [string, string?];
    if (host !== hostname() || runs(Number(pid)))
      throw new InvalidInputError(
        `process ${pid} on ${host} is writing ${path}: wait for it or name another file with --out (if there is no such run, delete ${own})`,
        '--out',
      );
    // Its run was killed.
    rmSync(own, { force: true });
  }
}

function runs(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

function parse(line: string): Row | undefined {
  try {
    const row = JSON.parse(line) as Row;
    return typeof row.key === 'string' && typeof row.task === 'string' ? row : undefined;
  } catch {
    return undefined;
  }
}
