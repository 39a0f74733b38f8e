import { spawn } from 'node:child_process';

/** Milliseconds that the code itself may run, and that the process around it may live. */
const RUN_MS = 1000;
const PROCESS_MS = 10_000;

/** Reads {code, test} from standard input; exit code 0 if the test throws nothing. The context holds ECMAScript's own objects alone. */
const HARNESS = `
const vm = require('node:vm');
let text = '';
process.stdin.on('data', (d) => { text += d; }).on('end', () => {
  const { code, test, ms } = JSON.parse(text);
  try {
    vm.runInNewContext(code + '\\n;' + test, Object.create(null), { timeout: ms });
  } catch { process.exit(1); }
  process.exit(0);
});`;

/**
 * Whether JavaScript that a model wrote passes a test, which throws when it is not content. It runs in a process of its own without access to files,
 * other processes or threads (Node's permission model), in an empty context, for at most a second. That keeps out accidents, not attackers.
 */
export function passes(code: string, test: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ['--permission', '--max-old-space-size=64', '-e', HARNESS], {
      stdio: ['pipe', 'ignore', 'ignore'],
      env: {},
    });
    const limit = setTimeout(() => child.kill('SIGKILL'), PROCESS_MS);
    child.on('error', reject);
    child.on('close', (status) => {
      clearTimeout(limit);
      resolve(status === 0);
    });
    child.stdin.on('error', () => {});
    child.stdin.end(JSON.stringify({ code, test, ms: RUN_MS }));
  });
}
