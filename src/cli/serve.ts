import { resolve } from 'node:path';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { AdkvcError, InvalidInputError } from '../core/errors.ts';
import { parseKeys } from '../http/auth.ts';
import { servedModel } from '../http/models.ts';
import { startNodeServer } from '../node.ts';
import { pageFiles } from '../page-files.ts';
import { folderSource } from '../prepare/folder-source.ts';
import { readManifest } from '../runtime/model.ts';
import { bundleFolder } from './bundle-folder.ts';
import { loadCliEngine, wasmFolder } from './load-engine.ts';
import { localSessions, SESSIONS_FOLDER } from './local-sessions.ts';

interface ServeOptions {
  port: number;
  data: string;
  memory?: boolean;
  exact?: boolean;
  backend: 'wasm' | 'webgpu';
}

const port = (text: string): number => {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value > 65_535) throw new InvalidArgumentError('expected a port, 0 to 65535');
  return value;
};

/** `adkvc serve`: the Worker's API and page in this process, on loopback. Keys come from ADKVC_KEYS; without them, who is on this machine is served. */
export function serveCommand(program: Command): void {
  program
    .command('serve')
    .description('serves the API and the chat page from this process')
    .option('--port <n>', '0 takes a free one', port, 8787)
    .option('--data <folder>', 'one SQLite file a conversation', SESSIONS_FOLDER)
    .option('--memory', 'keep conversations in memory alone')
    .addOption(new Option('--backend <name>', 'kernels').choices(['wasm', 'webgpu']).default('wasm'))
    .option('--exact', 'weights as stored, float32 arithmetic')
    .action(async (options: ServeOptions) => {
      const auth = { keys: process.env.ADKVC_KEYS, anonymous: true };
      // Malformed keys are told before the weights are loaded.
      parseKeys(auth.keys ?? '');
      const folder = options.memory ? undefined : resolve(options.data);
      const engine = await loadCliEngine({
        backend: options.backend,
        ...(options.exact ? { exact: true } : {}),
      });
      const source = folderSource(await bundleFolder(options.exact ? 'exact' : 'compact'));
      const host = await localSessions(engine, folder);
      // The page brings the kernels of browsers, whatever this process computes on.
      await wasmFolder();
      const server = await startNodeServer({
        host,
        auth,
        model: servedModel(await readManifest(source)),
        page: await pageFiles(),
        // A page has no room for the exact form.
        ...(options.exact ? {} : { bundle: await bundleFolder('compact') }),
        port: options.port,
      }).catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'EADDRINUSE')
          throw new InvalidInputError(`port ${options.port} is in use: choose another with --port`, '--port');
        throw error instanceof AdkvcError ? error : new Error('the server could not start', { cause: error });
      });
      process.stdout.write(`${server.url}/\n`);
      process.stderr.write(
        folder === undefined ? 'nothing is kept\n' : `conversations are kept in ${folder}\n`,
      );
      const stop = (): void => {
        void server.close().then(() => {
          host.close();
          process.exit(0);
        });
      };
      process.once('SIGINT', stop);
      process.once('SIGTERM', stop);
    });
}
