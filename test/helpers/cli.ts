import { spawn } from 'node:child_process';
import { join } from 'node:path';

export const ROOT = join(import.meta.dirname, '../..');

export interface CliResult {
  code: number | null;
  stdout: string;
  stderr: string;
  /** Standard output, line by line as JSON. */
  lines: any[];
}

/** Runs a Node program of the project to its end. */
export function runNode(args: readonly string[], stdin: string | Uint8Array = ''): Promise<CliResult> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, args, { cwd: ROOT });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    child.on('error', reject);
    child.on('close', (code) =>
      resolve({
        code,
        stdout,
        stderr,
        get lines() {
          return stdout
            .split('\n')
            .slice(0, -1)
            .map((line) => JSON.parse(line));
        },
      }),
    );
    // A command that fails early does not read its input.
    child.stdin.on('error', () => {});
    child.stdin.end(stdin);
  });
}

/** Runs `adkvc` with these arguments. */
export const runCli = (args: readonly string[], stdin: string | Uint8Array = ''): Promise<CliResult> =>
  runNode([join(ROOT, 'src/cli/main.ts'), ...args], stdin);

export const jsonLines = (values: readonly unknown[]): string =>
  values.map((value) => `${JSON.stringify(value)}\n`).join('');
