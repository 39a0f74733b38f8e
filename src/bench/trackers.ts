import type { KvCache } from '../cache/cache.ts';
import { DEFAULT_CACHE, TRACKER_NAMES, type TrackerName } from '../cache/policy.ts';
import { averagePool, blockMean, byHead, maxPool, overMean } from '../cache/relevance.ts';
import { SETTLE_POSITIONS } from '../cache/schedule.ts';
import { snapshot } from '../cache/snapshot.ts';
import { TRACKERS } from '../cache/trackers/registry.ts';
import { EPOCH } from '../core/config.ts';
import { hash32 } from '../core/random.ts';
import type { ModelEngine } from '../engine/engine.ts';
import type { Kernels } from '../kernels/kernels.ts';
import { timeOf, wrapped } from './costs.ts';

/** What a tracker costs, under policy adkvc. */
export interface TrackerCosts {
  readonly tracker: TrackerName;
  /** Bytes of attention history a token-head that is held, padding included, and as a share of the cache. */
  readonly bytesPerCell: number;
  readonly bytesShare: number;
  /** What keeping the history adds to attention: shares of its time over whole epochs, fed at once and token by token. */
  readonly prefillShare: number;
  readonly decodeShare: number;
  /** Reading all of it once, at an epoch's end. */
  readonly readMs: number;
}

/** Milliseconds that turning relevance into what an allocation compares takes, for all heads. */
export type GranularityCosts = Readonly<Record<string, number>>;

const OPTIONS = { decay: 0.8, lastQueries: 32 };
const REPEATS = 5;
/** Epochs with and without history, in turn. */
const PREFILL_PAIRS = 2;

const bestOf = (work: () => void): number => {
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < REPEATS; i++) {
    const start = performance.now();
    work();
    best = Math.min(best, performance.now() - start);
  }
  return best;
};

/** Every tracker after `context` tokens (rounded down to whole epochs) at `ratio`; then what pooling, blocks and the floor take. */
export async function measureTrackers(
  engine: ModelEngine,
  kernels: Kernels,
  ratio: number,
  context: number,
): Promise<{ trackers: TrackerCosts[]; granularity: GranularityCosts }> {
  const { vocab } = engine.model;
  const start = Math.max(1, Math.floor(context / EPOCH)) * EPOCH;
  const ids = (from: number, n: number): number[] =>
    Array.from({ length: n }, (_, i) => hash32(from + i, 5) % vocab);
  const trackers: TrackerCosts[] = [];
  let granularity: GranularityCosts = {};
  for (const tracker of TRACKER_NAMES) {
    const cache = engine.createCache({ ...DEFAULT_CACHE, policy: 'adkvc', ratio, tracker });
    try {
      // Every layer shows the plan of `start` then.
      await engine.feed(cache, ids(0, start + SETTLE_POSITIONS), 'none');
      const { bytesPerCell, bytesShare } = massOf(cache);
      const view = snapshot(cache, null);
      const read = TRACKERS[tracker](OPTIONS).read;
      const readMs = bestOf(() => void read(view));
      if (trackers.length === 0) {
        const steps: Record<string, (line: Float32Array) => void> = {
          'pooling over 5': (line) => maxPool(line, 5),
          'average over 7': (line) => averagePool(line, 7),
          'blocks of 8': (line) => blockMean(line, 8),
          floor: (line) => overMean(line, 0.3),
        };
        const relevance = read(view);
        granularity = Object.fromEntries(
          Object.entries(steps).map(([name, step]) => [name, bestOf(() => byHead(view, relevance, step))]),
        );
      }
      await engine.feed(cache, ids(cache.position, cache.room), 'none');
      const attention = (size: number): Promise<number> =>
        timeOf(kernels, ['attend'], async () => {
          for (let fed = 0; fed < EPOCH; fed += size)
            await engine.feed(cache, ids(cache.position, size), 'none');
        });
      const without = (size: number): Promise<number> =>
        wrapped(
          kernels,
          'attend',
          (attend) => (run) => attend({ ...(run as object), mass: 0 }),
          () => attention(size),
        );
      const share = async (size: number, pairs: number): Promise<number> => {
        let [kept, none] = [0, 0];
        for (let i = 0; i < pairs; i++) {
          kept += await attention(size);
          none += await without(size);
        }
        return kept / none - 1;
      };
      trackers.push({
        tracker,
        bytesPerCell,
        bytesShare,
        prefillShare: await share(EPOCH, PREFILL_PAIRS),
        decodeShare: await share(1, 1),
        readMs,
      });
    } finally {
      cache.dispose();
    }
  }
  return { trackers, granularity };
}

/** Bytes of mass that segments hold, by the ledger. */
function massOf(cache: KvCache): { bytesPerCell: number; bytesShare: number } {
  const { parts, tiers, bytes } = cache.report();
  const cells = Object.entries(tiers).reduce(
    (sum, [name, n]) => sum + (name === 'drop' || name === 'exact' ? 0 : n),
    0,
  );
  const mass = parts?.mass ?? 0;
  return { bytesPerCell: mass / Math.max(1, cells), bytesShare: mass / bytes };
}

/** The table, as Markdown. */
export function trackerTable({ trackers, granularity }: Awaited<ReturnType<typeof measureTrackers>>): string {
  const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
  return [
    '| tracker | bytes a token-head | of the cache | of attention, prefill | of attention, decoding | read at an epoch, ms |',
    '| --- | --- | --- | --- | --- | --- |',
    ...trackers.map(
      (t) =>
        `| \`${t.tracker}\` | ${t.bytesPerCell.toFixed(2)} | ${percent(t.bytesShare)} | ${percent(t.prefillShare)} | ${percent(t.decodeShare)} | ${t.readMs.toFixed(2)} |`,
    ),
    '',
    `Of all heads' relevance, ms: ${Object.entries(granularity)
      .map(([name, ms]) => `${name} ${ms.toFixed(2)}`)
      .join(', ')}`,
  ].join('\n');
}
