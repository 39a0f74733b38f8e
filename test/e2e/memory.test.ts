import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { type IsolateBytes, openInspector, sum } from '../../scripts/inspector.ts';
import { ask, prose, servedModel } from '../../scripts/served.ts';
import { freePort } from '../../src/cli/wrangler-dev.ts';
import { ISOLATE_BYTES, ISOLATE_KERNEL_BYTES } from '../../src/engine/isolate.ts';
import { ROOT, runNode } from '../helpers/cli.ts';

/**
 * SQLite's page cache: its own default is 2,000 KiB a connection (https://www.sqlite.org/pragma.html#pragma_cache_size); one object has one.
 * It cannot be read off in a Worker, so all of it counts.
 */
const SQLITE_CACHE_BYTES = 2_048_000;
/** What must be reached, with the tokens of the current epoch still exact; and what is asked of the policy for it. */
const RATIO = 3.5;
const ASKED = 4.2;

/** What an isolate may hold before a conversation has a cache, and the bytes of ArrayBuffers that turns may leave to the collector. */
const IDLE_BYTES = 100e6;
const MOST_BUFFERS = 8e6;

describe('the ledger of an isolate: embedded model, one conversation of 2,000 tokens, ratio 3.5', () => {
  let ledger: { weights: number; workspace: number; kernelStatic: number };

  test('everything held stays under 128 MB, and the weights are never held twice', {
    timeout: 600_000,
  }, async () => {
    // A process of its own does what an isolate does; its JavaScript heap counts whole, Node's own part included.
    const result = await runNode([
      '--expose-gc',
      join(ROOT, 'test/helpers/memory-probe.ts'),
      '2900',
      String(ASKED),
    ]);
    expect(result.code, result.stderr).toBe(0);
    const [report] = result.lines;
    ledger = report.ledger;
    const { cache } = report.finished;
    expect(cache.tokens).toBeGreaterThan(2000);
    expect(cache.ratio).toBeGreaterThanOrEqual(RATIO);
    expect(report.kernelMemory).toBeLessThanOrEqual(ISOLATE_KERNEL_BYTES);
    // What the arena counts is what the memory holds, but for at most one step of growth and what compaction left.
    const counted = report.ledger.weights + report.ledger.workspace + report.ledger.kernelStatic;
    expect(counted + cache.peakBytes).toBeLessThanOrEqual(report.kernelMemory);

    // The whole context fits under the budget that a served conversation gets by default.
    expect(report.fits.tokens).toBe(8192);
    expect(report.fits.worstCase).toBeLessThanOrEqual(report.fits.available);

    // Weights come in pieces, straight into the kernels' memory.
    expect(report.largestPieceWhileLoading).toBeLessThanOrEqual(2 ** 20);
    expect(report.javascript.loaded).toBeLessThan(report.javascript.start + 8e6);

    expect(report.ledger.plans).toBeGreaterThan(0);
    const { ortHeap, plans } = report.ledger;
    const total = report.kernelMemory + ortHeap + plans + report.javascript.most + SQLITE_CACHE_BYTES;
    console.log(
      `isolate: ${(total / 1e6).toFixed(1)} MB of 128: kernels ${(report.kernelMemory / 1e6).toFixed(1)} ` +
        `(weights ${(report.ledger.weights / 1e6).toFixed(1)}, workspace ${(report.ledger.workspace / 1e6).toFixed(1)}, ` +
        `cache ${(cache.bytes / 1e6).toFixed(1)}, at its peak ${(cache.peakBytes / 1e6).toFixed(1)}), ` +
        `plans ${(plans / 1e6).toFixed(1)}, JavaScript ${(report.javascript.most / 1e6).toFixed(1)}, SQLite ${(SQLITE_CACHE_BYTES / 1e6).toFixed(1)}`,
    );
    expect(total).toBeLessThan(ISOLATE_BYTES);
  });

  test('in workerd the model, the runtime and the tokenizer take 100 MB, and turns leave few buffers behind', {
    timeout: 600_000,
  }, async () => {
    const model = await servedModel();
    const inspectorPort = await freePort();
    const served = await model.serve({ inspectorPort });
    try {
      const inspector = await openInspector(inspectorPort);
      const say = (id: string, content: string) =>
        ask(served.url, {
          ...{ session_id: id, session_append: true, max_tokens: 4 },
          messages: [{ role: 'user', content }],
        });
      await say('first', 'Hello');
      const idle = await inspector.bytes();
      // The memory is longer than this by the short conversation's cache and a step of growth.
      const held = ledger.weights + ledger.workspace + ledger.kernelStatic;
      expect(idle.wasm).toBeGreaterThan(held);
      const loaded = held + idle.objects + idle.buffers;
      expect(loaded).toBeLessThan(IDLE_BYTES);

      // Two that do not fit beside each other: the first is restored.
      await say('long', prose(900, 1));
      await say('other', prose(600, 2));
      const { cachedTokens } = await say('long', 'And then?');
      expect(cachedTokens).toBeGreaterThan(900);
      const after = await inspector.bytes();
      console.log(
        `workerd: ${(loaded / 1e6).toFixed(1)} MB for model, runtime and tokenizer; ${told(idle)} after a short turn, ${told(after)} after long ones`,
      );
      expect(after.buffers).toBeLessThan(MOST_BUFFERS);
      expect(sum(after)).toBeLessThan(ISOLATE_BYTES - SQLITE_CACHE_BYTES);
      inspector.close();
    } finally {
      served.kill();
      model.remove();
    }
  });
});

const told = (bytes: IsolateBytes): string =>
  `${(sum(bytes) / 1e6).toFixed(1)} MB (objects ${(bytes.objects / 1e6).toFixed(1)}, buffers ${(bytes.buffers / 1e6).toFixed(1)}, WebAssembly ${(bytes.wasm / 1e6).toFixed(1)})`;
