import type { KvCache } from '../../cache/cache.ts';
import { SETTLE_POSITIONS } from '../../cache/schedule.ts';
import { EPOCH } from '../../core/config.ts';
import { DROP } from '../../kernels/layout.ts';
import { Meter } from '../meter.ts';
import { distribution, lossOf } from '../metrics/divergence.ts';
import { rankCorrelation } from '../metrics/rank-correlation.ts';
import { relevanceOf } from '../relevance.ts';
import type { MetricSpec, Task } from '../task.ts';

const METRICS: readonly MetricSpec[] = [
  {
    name: 'rankCorrelation',
    label: 'rank correlation of relevance and loss when left out, mean over layers',
    unit: '',
    better: 'higher',
    kind: 'mean',
    chance: 0,
  },
];
/** Positions left out together. */
const BLOCK = 64;
/** Tokens after the text whose loss is watched. */
const PROBE = 64;
/** Most layers looked at, spread evenly. */
const LAYERS = 10;

const BOOKS = 'books/pg19_test.jsonl.gz';

/**
 * Does attention history predict importance? After a text, each block of positions is dropped from one layer alone; how much does the loss
 * of the next tokens rise, and does the block's relevance foretell the order?
 */
export const leaveOneOut: Task = {
  name: 'leave-one-out',
  description: `analysis: loss when one layer loses a block of ${BLOCK} positions, against the block's relevance`,
  version: 1,
  metrics: METRICS,
  files: [BOOKS],
  lengths: [768],
  analysis: true,
  count: async (data) => (await data.jsonLines(BOOKS)).length,
  async run({ engine, data, sample, length }, methods, emit) {
    const books = await data.jsonLines<{ text: string }>(BOOKS);
    // A little after an epoch's end, when its plan has reached every layer.
    const end = Math.floor(length / EPOCH) * EPOCH + SETTLE_POSITIONS;
    const text = books[sample]!.text.slice(20_000, 20_000 + (end + PROBE) * 8);
    const ids = engine.tokenizer.encode(text).slice(0, end + PROBE);
    if (ids.length < end + PROBE) throw new Error(`the text has ${ids.length} tokens only`);
    const probe = ids.slice(end);
    for (const method of methods) {
      const meter = new Meter(engine, method.config);
      try {
        const before = await meter.last(ids.slice(0, end));
        const ms = meter.takeMs();
        const cache = meter.figures();
        const { start, values } = await relevanceOf(meter.cache);
        const saved = await meter.save();
        const lossNow = async (): Promise<number> => {
          let sum = lossOf(distribution(before), probe[0]!);
          await meter.feed(
            probe.slice(0, -1),
            () => true,
            (i, logits) => {
              sum += lossOf(distribution(logits), probe[i + 1]!);
            },
          );
          return sum / probe.length;
        };
        const blocks = Array.from({ length: Math.floor(values[0]![0]!.length / BLOCK) }, (_, b) => b * BLOCK);
        if (blocks.length < 2)
          throw new Error(
            `no two blocks of ${BLOCK} positions to leave out in ${length} tokens: raise --lengths`,
          );
        const intact = await lossNow();
        const step = Math.max(1, Math.floor(engine.model.layers / LAYERS));
        let restoreMs = 0;
        const layers: { layer: number; rankCorrelation: number; relevance: number[]; rise: number[] }[] = [];
        for (let layer = 0; layer < engine.model.layers; layer += step) {
          const relevance = blocks.map((from) =>
            values[layer]!.reduce(
              (sum, head) => sum + head.subarray(from, from + BLOCK).reduce((a, b) => a + b, 0),
              0,
            ),
          );
          const rise: number[] = [];
          for (const from of blocks) {
            restoreMs = meter.restore(saved);
            leaveOut(meter.cache, layer, start + from, start + from + BLOCK);
            rise.push((await lossNow()) - intact);
          }
          layers.push({ layer, rankCorrelation: rankCorrelation(relevance, rise), relevance, rise });
        }
        const known = layers.map((l) => l.rankCorrelation).filter((r) => !Number.isNaN(r));
        emit(method, {
          scores: { rankCorrelation: known.reduce((a, b) => a + b, 0) / known.length },
          detail: { intact, layers },
          tokens: end,
          cache,
          speed: {
            prefillTokensPerSecond: (end * 1000) / ms,
            decodeTokensPerSecond: 0,
            ttftMs: ms,
            restoreMs,
          },
        });
      } finally {
        meter.dispose();
      }
    }
  },
};

/** Drops positions [from, to) of all heads of one layer. */
export function leaveOut(cache: KvCache, layer: number, from: number, to: number): void {
  const { kvHeads } = cache.context.model;
  cache.spans.forEach((span, segment) => {
    const begin = Math.max(from - span.start, 0);
    const end = Math.min(to - span.start, span.tokens);
    if (begin >= end) return;
    const reader = cache.reader(cache.blocks[layer]![segment]!);
    const tiers = new Uint8Array(kvHeads * span.tokens);
    for (let h = 0; h < kvHeads; h++) {
      reader.tiers(h, tiers, h * span.tokens);
      tiers.fill(DROP, h * span.tokens + begin, h * span.tokens + end);
    }
    cache.recode(layer, segment, tiers, 0, cache.position);
  });
}
