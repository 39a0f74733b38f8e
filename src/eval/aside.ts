import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { deserialize, serialize } from 'node:v8';

/**
 * Work that a run did not finish in its time, put aside in files for the next run: minutes of computing would be lost otherwise. A state belongs to
 * what made it (model, kernels, task, sample, methods): under anything else it is not found.
 */
export class Aside {
  readonly #folder: string;
  readonly #maker: unknown;

  constructor(folder: string, maker: unknown) {
    this.#folder = folder;
    this.#maker = maker;
  }

  /** Parts as they were put, or undefined where nothing lies. */
  take(name: unknown): unknown[] | undefined {
    const base = this.#base(name);
    const head = `${base}.head`;
    if (!existsSync(head)) return undefined;
    try {
      const { parts } = deserialize(readFileSync(head)) as { parts: number };
      return Array.from({ length: parts }, (_, i) => deserialize(readFileSync(`${base}.${i}`)));
    } catch (error) {
      process.stderr.write(
        `${head}: what was put aside cannot be read (${(error as Error).message}): begun anew\n`,
      );
      this.drop(name);
      return undefined;
    }
  }

  /** Each part is a file, what structured cloning can copy. Whole or, if the process dies meanwhile, not there. */
  put(name: unknown, parts: readonly unknown[]): void {
    this.drop(name);
    mkdirSync(this.#folder, { recursive: true });
    const base = this.#base(name);
    for (const [i, part] of parts.entries()) writeFileSync(`${base}.${i}`, serialize(part));
    writeFileSync(`${base}.new`, serialize({ parts: parts.length }));
    renameSync(`${base}.new`, `${base}.head`);
  }

  drop(name: unknown): void {
    const base = this.#base(name);
    rmSync(`${base}.head`, { force: true });
    for (let i = 0; existsSync(`${base}.${i}`); i++) rmSync(`${base}.${i}`);
  }

  #base(name: unknown): string {
    const text = JSON.stringify([this.#maker, name]);
    return join(this.#folder, createHash('sha256').update(text).digest('hex').slice(0, 32));
  }
}
