import { mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { generate } from '../engine/generate.ts';
import type { Engine } from '../engine/types.ts';
import { LocalDirectories } from '../session/directory.ts';
import { LocalHost } from '../session/local-host.ts';
import { Scheduler } from '../session/scheduler.ts';
import type { SessionServices } from '../session/services.ts';
import { Checkpointer } from '../session/store/checkpointer.ts';
import { MemoryStore } from '../session/store/memory.ts';
import { NodeSqliteStore } from '../session/store/node-sqlite.ts';
import { PROJECT_ROOT } from './bundle-folder.ts';

/** Where `serve` and `chat --session` keep conversations unless told otherwise. */
export const SESSIONS_FOLDER = join(PROJECT_ROOT, '.adkvc/sessions');
const SUFFIX = '.sqlite';
const DIRECTORY_SUFFIX = '.directory';

/** A macrotask of this process: setImmediate lets sockets and timers have their turn without waiting for a clock tick. */
const pause = (ms: number): Promise<void> =>
  new Promise((resolve) => (ms > 0 ? setTimeout(resolve, ms) : setImmediate(resolve)));

/**
 * Sessions of this process over one engine.
 * @param folder one SQLite file a conversation; undefined: memory, nothing is kept
 */
export async function localSessions(engine: Engine, folder: string | undefined): Promise<LocalHost> {
  const services: SessionServices = {
    loadEngine: async () => engine,
    generate,
    scheduler: new Scheduler({ pause }),
    ...(folder !== undefined && {
      directories: new LocalDirectories((name) => new NodeSqliteStore(join(folder, name + DIRECTORY_SUFFIX))),
    }),
  };
  if (folder === undefined) return new LocalHost(services, () => new MemoryStore());
  mkdirSync(folder, { recursive: true });
  const checkpointer = new Checkpointer();
  const host = new LocalHost(
    services,
    (key) => new NodeSqliteStore(join(folder, key + SUFFIX), checkpointer),
  );
  const stored = readdirSync(folder).filter((name) => name.endsWith(SUFFIX));
  await host.resume(stored.map((name) => name.slice(0, -SUFFIX.length)));
  return host;
}
