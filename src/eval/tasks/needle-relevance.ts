import { SETTLE_POSITIONS } from '../../cache/schedule.ts';
import { EPOCH } from '../../core/config.ts';
import { Meter } from '../meter.ts';
import { mean } from '../metrics/interval.ts';
import { relevanceOf } from '../relevance.ts';
import type { MetricSpec, Task } from '../task.ts';
import { needlePrompt, RULER } from './needle.ts';

const METRICS: readonly MetricSpec[] = [
  {
    name: 'needlePercentile',
    label: "share of the text's tokens that the needle's tokens outrank",
    unit: '%',
    better: 'higher',
    kind: 'percent',
    chance: 0.5,
  },
  {
    name: 'needleRelevance',
    label: "needle tokens' relevance, the head's mean being 1",
    unit: '',
    better: 'higher',
    kind: 'mean',
  },
];
/** The text is cut into this many parts by depth. */
export const DEPTH_BINS = 10;
/** Of the relative relevance of a layer's tokens. */
export const QUANTILES = [0.1, 0.5, 0.9, 0.99];

/**
 * What does attention history say of a needle before anybody asks for it? The text is read up to the last epoch before the question;
 * then the relevance of the needle's tokens is compared with all others', by layer.
 */
export const needleRelevance: Task = {
  name: 'needle-relevance',
  description: "analysis: relevance of a needle's tokens before the question, by layer and depth",
  version: 1,
  metrics: METRICS,
  files: ['haystack/paulgraham_49essays.jsonl.gz'],
  lengths: [1024],
  analysis: true,
  count: async () => Number.POSITIVE_INFINITY,
  async run(context, methods, emit) {
    const { engine } = context;
    const prompt = await needlePrompt(context, { haystack: 'essay', wording: RULER, keys: 1 });
    // A little after an epoch's end, when its plan has reached every layer.
    const end = Math.floor((prompt.ids.length - SETTLE_POSITIONS) / EPOCH) * EPOCH + SETTLE_POSITIONS;
    for (const method of methods) {
      const meter = new Meter(engine, method.config);
      try {
        await meter.feed(prompt.ids.slice(0, end));
        const ms = meter.takeMs();
        const { start, values } = await relevanceOf(meter.cache);
        const from = prompt.needle.start - start;
        const to = prompt.needle.end - start;
        if (from < 0 || to > values[0]![0]!.length) {
          emit(method, { skipped: 'the needle lies among the sinks or in the window' });
          continue;
        }
        const layers = values.map((heads) => {
          const percentiles = heads.map((v) => {
            const sorted = v.toSorted();
            const needle = v.subarray(from, to);
            return mean(Array.from(needle, (x) => below(sorted, x) / sorted.length));
          });
          const all = Float64Array.from(heads.flatMap((v) => [...v])).sort();
          const bins = Array.from({ length: DEPTH_BINS }, (_, b) => {
            const cut = (i: number): number => Math.floor((heads[0]!.length * i) / DEPTH_BINS);
            return mean(heads.map((v) => mean(v.subarray(cut(b), cut(b + 1)))));
          });
          return {
            needle: mean(heads.map((v) => mean(v.subarray(from, to)))),
            percentile: mean(percentiles),
            quantiles: QUANTILES.map((q) => all[Math.floor(q * (all.length - 1))]!),
            bins,
          };
        });
        emit(method, {
          scores: {
            needlePercentile: mean(layers.map((l) => l.percentile)),
            needleRelevance: mean(layers.map((l) => l.needle)),
          },
          detail: { depth: prompt.detail!.depth, layers },
          tokens: end,
          cache: meter.figures(),
          speed: {
            prefillTokensPerSecond: (end * 1000) / ms,
            decodeTokensPerSecond: 0,
            ttftMs: ms,
            restoreMs: meter.restore(await meter.save()),
          },
        });
      } finally {
        meter.dispose();
      }
    }
  },
};

/** How many of the sorted values lie below x, equal ones counting half. */
function below(sorted: Float64Array, x: number): number {
  const first = (from: (v: number) => boolean): number => {
    let low = 0;
    let high = sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (from(sorted[middle]!)) high = middle;
      else low = middle + 1;
    }
    return low;
  };
  return (first((v) => v >= x) + first((v) => v > x)) / 2;
}
