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
import { wrapped } from './costs.ts';
import { median } from './steps.ts';

/** What a tracker costs, under policy adkvc. */
export interface TrackerCosts {
  readonly tracker: TrackerName;
  /** Bytes of attention history a token-head that is held, padding included, and as a share of the cache. */
  readonly bytesPerCell: number;
  readonly bytesShare: number;
  /** What keeping the history adds to attention of queries that count: shares of its time, 32 queries at once and token by token. */
  readonly prefillShare: number;
  readonly decodeShare: number;
  /** Reading all of it once, at an epoch's end. */
  readonly readMs: number;
}

/** Milliseconds that turning relevance into what an allocation compares takes, for all heads. */
export type GranularityCosts = Readonly<Record<string, number>>;

const OPTIONS = { decay: 0.8, lastQueries: 32 };
const REPEATS = 5;
const PREFILL_EPOCHS = 6;
const DECODE_EPOCHS = 2;

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
      const share = async (size: number, epochs: number): Promise<number> => {
        const times = new PairedTimes(engine.model.layers);
        for (let epoch = 0; epoch < epochs; epoch++) {
          // The queries that every tracker counts.
          await engine.feed(cache, ids(cache.position, EPOCH - OPTIONS.lastQueries), 'none');
          for (let fed = 0; fed < OPTIONS.lastQueries; fed += size)
            await times.of(kernels, () => engine.feed(cache, ids(cache.position, size), 'none'));
        }
        return times.share();
      };
      trackers.push({
        tracker,
        bytesPerCell,
        bytesShare,
        prefillShare: await share(OPTIONS.lastQueries, PREFILL_EPOCHS),
        decodeShare: await share(1, DECODE_EPOCHS),
        readMs,
      });
    } finally {
      cache.dispose();
    }
  }
  return { trackers, granularity };
}

/** Attention of every second layer keeps no history, of the others in the next pass: what the machine does besides meets both alike. */
class PairedTimes {
  readonly #kept: number[][];
  readonly #none: number[][];
  #pass = 0;

  constructor(layers: number) {
    this.#kept = Array.from({ length: layers }, () => []);
    this.#none = Array.from({ length: layers }, () => []);
  }

  of(kernels: Kernels, work: () => Promise<unknown>): Promise<unknown> {
    const pass = this.#pass++;
    let layer = 0;
    const clocked =
      (attend: (...args: unknown[]) => unknown) =>
      (run: unknown): unknown => {
        const keeps = (layer + pass) % 2 === 0;
        const start = performance.now();
        const result = attend(keeps ? run : { ...(run as object), mass: 0 });
        (keeps ? this.#kept : this.#none)[layer++]!.push(performance.now() - start);
        return result;
      };
    return wrapped(kernels, 'attend', clocked, work);
  }

  share(): number {
    const sum = (times: readonly number[][]): number => times.reduce((all, t) => all + median(t), 0);
    return sum(this.#kept) / sum(this.#none) - 1;
  }
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
