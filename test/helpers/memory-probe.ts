import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { completeConfig } from '../../src/cache/policy.ts';
import { bundleFolder } from '../../src/cli/bundle-folder.ts';
import { loadWasmKernels } from '../../src/cli/load-engine.ts';
import { generate } from '../../src/engine/generate.ts';
import { ISOLATE_CACHE_BYTES, ISOLATE_KERNEL_BYTES, IsolateEngine } from '../../src/engine/isolate.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import type { TurnEvent } from '../../src/session/api.ts';
import { LocalHost } from '../../src/session/local-host.ts';
import { Scheduler } from '../../src/session/scheduler.ts';
import { NodeSqliteStore } from '../../src/session/store/node-sqlite.ts';
import { prose, request, user } from './turns.ts';

/**
 * A process that does what an isolate does, with the embedded model: loads it, runs a long turn over SQLite, and tells what is
 * held then. Run with --expose-gc. Arguments: prompt tokens (about), ratio. Prints one JSON object.
 */
const pause = (ms: number): Promise<void> =>
  new Promise((resolve) => void (ms === 0 ? setImmediate(resolve) : setTimeout(resolve, ms)));
const gc = (globalThis as { gc?: () => void }).gc!;
const used = async (): Promise<number> => {
  // The stores of dead ArrayBuffers are given back by later tasks; what is held is what no collection frees.
  let least = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 6; i++) {
    gc();
    await pause(5);
    const { heapUsed, arrayBuffers } = process.memoryUsage();
    // The kernels' memory is counted by its own length.
    least = Math.min(least, heapUsed + arrayBuffers);
  }
  return least;
};

const [tokens, ratio] = process.argv.slice(2).map(Number) as [number, number];
const folder = mkdtempSync(join(tmpdir(), 'adkvc-memory-'));
try {
  const source = folderSource(await bundleFolder('compact'));
  const kernels = await loadWasmKernels(ISOLATE_KERNEL_BYTES);
  const before = await used();
  let mostWhileLoading = 0;
  const isolate = new IsolateEngine();
  const watched = {
    ...source,
    async *stream(file: string) {
      for await (const piece of source.stream(file)) {
        mostWhileLoading = Math.max(mostWhileLoading, piece.byteLength);
        yield piece;
      }
    },
  };
  const engine = await isolate.get(watched, { makeKernels: () => kernels, wait: pause });
  const loaded = await used();
  const { contextLength } = engine.model;
  const fits = {
    tokens: contextLength,
    worstCase: engine.worstCaseBytes(completeConfig({}, ISOLATE_CACHE_BYTES), contextLength),
    available: engine.availableBytes,
  };
  const scheduler = new Scheduler({ pause });
  const host = new LocalHost(
    { loadEngine: async () => engine, generate, scheduler },
    (key) => new NodeSqliteStore(join(folder, `${key}.sqlite`)),
  );
  let most = 0;
  let finished: Extract<TurnEvent, { type: 'finished' }> | undefined;
  const events = await host.turn(
    'k',
    'memory',
    request([user(prose(tokens))], { maxTokens: 40, cache: { policy: 'adkvc', ratio } }),
    new AbortController().signal,
  );
  for await (const event of events) {
    if (event.type === 'prefill') most = Math.max(most, await used());
    if (event.type === 'failed') throw new Error(event.error.message);
    if (event.type === 'finished') finished = event;
  }
  process.stdout.write(
    `${JSON.stringify({
      ledger: engine.ledger(),
      kernelMemory: kernels.arena.memory.buffer.byteLength,
      javascript: { start: before, loaded, most, end: await used() },
      largestPieceWhileLoading: mostWhileLoading,
      fits,
      finished,
    })}\n`,
  );
  host.close();
} finally {
  rmSync(folder, { recursive: true, force: true });
}
