import { createHash } from 'node:crypto';
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  truncateSync,
  writeSync,
} from 'node:fs';
import { dirname } from 'node:path';
import type { CacheConfig } from '../cache/policy.ts';
import { CorruptDataError } from '../core/errors.ts';
import type { CacheFigures } from './meter.ts';
import type { Protocol, Speed } from './task.ts';

/** Raised when rows of an older program must not be taken for finished. */
export const ROW_VERSION = 1;

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
    .update(canonical({ rowVersion: ROW_VERSION, ...spec }))
    .digest('hex')
    .slice(0, 32);

/**
 * Rows as JSON lines, appended one by one: a line counts once its line feed is there. A run that was killed left at most one torn line,
 * which the next one cuts off.
 */
export class ResultLog {
  readonly path: string;
  /** The newest row of each key. */
  readonly rows = new Map<string, Row>();
  readonly #file: number;

  /** @throws CorruptDataError for a whole line that is no row: the file is not ours to cut */
  constructor(path: string) {
    this.path = path;
    mkdirSync(dirname(path), { recursive: true });
    const text = existsSync(path) ? readFileSync(path, 'utf8') : '';
    const whole = text.slice(0, text.lastIndexOf('\n') + 1);
    whole.split('\n').forEach((line, i) => {
      if (line === '') return;
      const row = parse(line);
      if (!row) throw new CorruptDataError(`${path}: line ${i + 1} is not a result`, { path });
      this.rows.set(row.key, row);
    });
    if (whole.length < text.length) truncateSync(path, Buffer.byteLength(whole));
    this.#file = openSync(path, 'a');
  }

  finished(key: string): boolean {
    const row = this.rows.get(key);
    return row !== undefined && row.error === undefined;
  }

  append(row: Row): void {
    writeSync(this.#file, `${JSON.stringify(row)}\n`);
    this.rows.set(row.key, row);
  }

  close(): void {
    fsyncSync(this.#file);
    closeSync(this.#file);
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
