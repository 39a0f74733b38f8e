import type { TopLevelSpec } from 'vega-lite';
import { heading, signed, titleOf } from './markdown.ts';
import { mean } from './metrics/interval.ts';
import { groupBy, type Section, shown } from './summary.ts';
import { DEPTH_BINS, QUANTILES } from './tasks/needle-relevance.ts';

/** A chart with its data in it; `render.ts` draws it. */
export interface Chart {
  readonly title: string;
  readonly caption: string;
  readonly spec: TopLevelSpec;
}

const WIDTH = 640;
const HEIGHT = 340;
/** Long enough for a method with three fields changed. */
const LABEL_PIXELS = 380;
const SCHEMA = 'https://vega.github.io/schema/vega-lite/v6.json';

interface Colour {
  readonly field: string;
  readonly type: 'nominal';
  readonly scale: { readonly domain: string[]; readonly scheme: 'tableau10' | 'tableau20' };
}
/** Changes of perplexity lie between a thousandth and tens of a percent: logarithmic but around 0. */
const CHANGE = {
  scale: { type: 'symlog' as const, constant: 0.1, nice: false, padding: 12 },
  axis: { format: '~r', values: [-10, -3, -1, -0.3, -0.1, 0, 0.1, 0.3, 1, 3, 10, 30, 100, 300] },
};

/** What a chart of the usual size begins with. */
const canvas = <T>(values: T[]) => ({ $schema: SCHEMA, width: WIDTH, height: HEIGHT, data: { values } });

/** Every chart that the rows have data for. */
export function charts(sections: readonly Section[]): Chart[] {
  // One colour a policy in all charts.
  const domain = [...new Set(sections.flatMap((s) => s.summaries.map((m) => m.policy)))].sort();
  const color: Colour = {
    field: 'policy',
    type: 'nominal',
    scale: { domain, scheme: domain.length > 10 ? 'tableau20' : 'tableau10' },
  };
  const drawn = (of: (s: Section) => Chart[]): Chart[] => sections.flatMap((s) => of(s).map(within(s)));
  return [
    ...drawn((s) => (s.task.analysis ? [] : [...byteCurve(s, color), ...differences(s, color)])),
    ...heatMaps(sections),
    ...drawn(relevanceCharts),
    ...drawn(leaveOneOutChart),
  ];
}

/** A task may have sections of several settings, whose titles are the same. */
const within =
  ({ setting }: Pick<Section, 'setting'>) =>
  (chart: Chart): Chart => ({ ...chart, caption: `${chart.caption} ${setting}.` });

/** Metric against bytes held, one line a policy; the full cache is a point of its own. */
function byteCurve(section: Section, color: Colour): Chart[] {
  const metric = section.task.metrics[0]!;
  const values = section.summaries.flatMap((s) => {
    const f = s.figures[0];
    if (!f) return [];
    const known = Number.isFinite(f.low) && Number.isFinite(f.high);
    return [
      {
        policy: s.policy,
        method: s.method,
        megabytes: s.bytes / 1e6,
        value: f.mean,
        low: known ? f.low : f.mean,
        high: known ? f.high : f.mean,
      },
    ];
  });
  if (values.length < 2) return [];
  const megabytes = values.map((v) => v.megabytes);
  const x = {
    field: 'megabytes',
    type: 'quantitative' as const,
    // No point on the frame.
    scale: {
      type: 'log' as const,
      domain: [Math.min(...megabytes) / 1.15, Math.max(...megabytes) * 1.15],
      nice: false,
    },
    title: 'bytes held at the end, MB',
  };
  const y = metric.kind === 'exp-percent' ? CHANGE : { scale: { zero: false } };
  // The longest line's colour says nothing of fifteen: each policy has its name and its shape as well.
  const present = [...new Set(values.map((v) => v.policy))].sort();
  const legend = { values: present, labelLimit: LABEL_PIXELS, symbolOpacity: 1, title: null };
  return [
    {
      title: `${titleOf(section)}: ${metric.label} against bytes`,
      caption: `${metric.better === 'higher' ? 'Higher' : 'Lower'} and further left is better. Bars: 95 % intervals.`,
      spec: {
        ...canvas(values),
        layer: [
          {
            mark: { type: 'rule', opacity: 0.4 },
            encoding: {
              x,
              y: { field: 'low', type: 'quantitative', title: heading({ metric }), ...y },
              y2: { field: 'high' },
              color: { ...color, legend },
            },
          },
          {
            mark: { type: 'line' },
            encoding: { x, y: { field: 'value', type: 'quantitative' }, color: { ...color, legend } },
          },
          {
            mark: { type: 'point', size: 55, filled: true, opacity: 1 },
            encoding: {
              x,
              y: { field: 'value', type: 'quantitative' },
              color: { ...color, legend },
              shape: { field: 'policy', type: 'nominal', scale: { domain: color.scale.domain }, legend },
            },
          },
        ],
      },
    },
  ];
}

/** Every variant's difference to the full cache, as bars. */
function differences(section: Section, color: Colour): Chart[] {
  const metric = section.task.metrics[0]!;
  const values = section.summaries.flatMap((s) => {
    const f = s.figures[0];
    const e = metric.kind === 'exp-percent' ? f : f?.paired;
    if (s.policy === 'full' || !e) return [];
    const known = Number.isFinite(e.low) && Number.isFinite(e.high);
    return [
      {
        method: s.method,
        policy: s.policy,
        value: e.mean,
        label: signed(e.mean),
        low: known ? e.low : e.mean,
        high: known ? e.high : e.mean,
      },
    ];
  });
  if (values.length < 2) return [];
  const sort = values.toSorted((a, b) => a.value - b.value).map((v) => v.method);
  const axis = { labelLimit: LABEL_PIXELS };
  const y = { field: 'method', type: 'nominal' as const, sort, title: null, axis };
  const end = Math.max(...values.map((v) => v.high), 0);
  return [
    {
      title: `${titleOf(section)}: variants`,
      caption: `${metric.label}: difference to the full cache on the same samples, 95 % intervals.`,
      spec: {
        $schema: SCHEMA,
        width: WIDTH,
        data: { values },
        layer: [
          {
            mark: 'bar',
            encoding: {
              y,
              x: {
                field: 'value',
                type: 'quantitative',
                title: `difference to full${metric.unit === '' ? '' : `, ${metric.unit}`}`,
              },
              color: { ...color, legend: null },
            },
          },
          {
            mark: { type: 'rule' },
            encoding: { y, x: { field: 'low', type: 'quantitative' }, x2: { field: 'high' } },
          },
          // Short bars are read by their numbers.
          {
            mark: { type: 'text', align: 'left', dx: 6, fontSize: 10 },
            encoding: { y, x: { datum: end }, text: { field: 'label' } },
          },
        ],
      },
    },
  ];
}

const HEAT_BINS = 5;
const HEAT_LABELS = Array.from(
  { length: HEAT_BINS },
  (_, b) => `${(b * 100) / HEAT_BINS}–${((b + 1) * 100) / HEAT_BINS} %`,
);

/** Needle tasks: hits by depth and length, one panel a method and one chart a setting. */
function heatMaps(sections: readonly Section[]): Chart[] {
  const needles = sections.filter((s) => /^(needle|passkey)-/.test(s.task.name) && !s.task.analysis);
  return [...groupBy(needles, (s) => `${s.task.name}\n${s.setting}`).values()].map((own): Chart => {
    const { task, setting } = own[0]!;
    const { name } = task;
    const metric = task.metrics[0]!;
    const cells = new Map<
      string,
      { method: string; length: number; depth: string; hits: number; n: number }
    >();
    for (const section of own)
      for (const s of section.summaries)
        for (const row of s.rows) {
          const depth = row.detail?.depth;
          if (row.scores === undefined || typeof depth !== 'number') continue;
          const bin = Math.min(HEAT_BINS - 1, Math.floor(depth * HEAT_BINS));
          const label = HEAT_LABELS[bin]!;
          const key = `${s.method}/${section.length}/${bin}`;
          const cell = cells.get(key) ?? {
            method: s.method,
            length: section.length,
            depth: label,
            hits: 0,
            n: 0,
          };
          cell.hits += row.scores[metric.name]!;
          cell.n++;
          cells.set(key, cell);
        }
    const values = [...cells.values()].map((c) => ({
      ...c,
      value: shown(metric, c.hits / c.n),
      label: `${c.hits} of ${c.n}`,
    }));
    const methods = [...new Set(own.flatMap((s) => s.summaries.map((m) => m.method)))];
    return within({ setting })({
      title: `${name}: depth and length`,
      caption: `${metric.label}, %. Depth counts from the text's beginning; each cell says how many of its samples were answered.`,
      spec: {
        $schema: SCHEMA,
        data: { values },
        facet: { field: 'method', type: 'nominal', title: null, sort: methods },
        columns: 4,
        spec: {
          width: 150,
          height: 140,
          encoding: {
            x: { field: 'length', type: 'ordinal', title: 'tokens', axis: { labelAngle: 0 } },
            y: { field: 'depth', type: 'ordinal', title: 'depth', sort: HEAT_LABELS },
          },
          layer: [
            {
              mark: 'rect',
              encoding: {
                color: {
                  field: 'value',
                  type: 'quantitative',
                  scale: { domain: [0, 100], range: ['#d7604a', '#f7e7a0', '#66b56f'] },
                  title: '%',
                },
              },
            },
            { mark: { type: 'text', fontSize: 10 }, encoding: { text: { field: 'label' } } },
          ],
        },
      },
    });
  });
}

interface RelevanceLayer {
  readonly needle: number;
  readonly percentile: number;
  readonly quantiles: readonly number[];
  readonly bins: readonly number[];
}

/** Layers of the needle-relevance analysis, averaged over its samples. */
export function relevanceLayers(section: Section): RelevanceLayer[] {
  const samples = section.summaries
    .flatMap((s) => s.rows)
    .flatMap((r) =>
      (r.detail?.layers as RelevanceLayer[] | undefined) ? [r.detail!.layers as RelevanceLayer[]] : [],
    );
  if (samples.length === 0) return [];
  return samples[0]!.map((_, layer) => ({
    needle: mean(samples.map((s) => s[layer]!.needle)),
    percentile: mean(samples.map((s) => s[layer]!.percentile)),
    quantiles: QUANTILES.map((_, q) => mean(samples.map((s) => s[layer]!.quantiles[q]!))),
    bins: Array.from({ length: DEPTH_BINS }, (_, b) => mean(samples.map((s) => s[layer]!.bins[b]!))),
  }));
}

function relevanceCharts(section: Section): Chart[] {
  if (section.task.name !== 'needle-relevance') return [];
  const layers = relevanceLayers(section);
  if (layers.length === 0) return [];
  const quantiles = layers.flatMap((l, layer) =>
    l.quantiles.map((value, q) => ({
      layer,
      quantile: `${QUANTILES[q]! * 100} %`,
      value: Math.max(value, 1e-3),
    })),
  );
  const bins = layers.flatMap((l, layer) =>
    l.bins.map((value, b) => ({
      layer,
      depth: `${b * DEPTH_BINS} %`,
      value: Math.log2(Math.max(value, 1e-3)),
    })),
  );
  const needles = section.summaries
    .flatMap((s) => s.rows)
    .flatMap((r) =>
      r.detail
        ? [{ depth: (r.detail.depth as number) * 100, value: (r.scores?.needlePercentile ?? 0) * 100 }]
        : [],
    );
  return [
    {
      title: `Relevance by layer, ${section.length} tokens`,
      caption: "Quantiles of the tokens' relevance; 1 is the head's mean.",
      spec: {
        ...canvas(quantiles),
        mark: { type: 'line', point: true },
        encoding: {
          x: { field: 'layer', type: 'quantitative' },
          y: {
            field: 'value',
            type: 'quantitative',
            scale: { type: 'log' },
            title: 'relative relevance',
          },
          color: { field: 'quantile', type: 'nominal', sort: null },
        },
      },
    },
    {
      title: `Relevance by layer and depth, ${section.length} tokens`,
      caption:
        "Mean relevance of a tenth of the text, log2 of the head's mean: which layers look back, and where to.",
      spec: {
        ...canvas(bins),
        mark: 'rect',
        encoding: {
          x: { field: 'layer', type: 'ordinal' },
          y: { field: 'depth', type: 'ordinal', sort: null, title: 'depth from' },
          color: {
            field: 'value',
            type: 'quantitative',
            scale: { scheme: 'blueorange', domainMid: 0 },
            title: 'log2',
          },
        },
      },
    },
    {
      title: `A needle's relevance before the question, ${section.length} tokens`,
      caption:
        "Share of the text's tokens that the needle's tokens outrank, mean over layers and heads, one point a sample.",
      spec: {
        ...canvas(needles),
        mark: 'point',
        encoding: {
          x: { field: 'depth', type: 'quantitative', title: 'depth, %', scale: { domain: [0, 100] } },
          y: {
            field: 'value',
            type: 'quantitative',
            title: 'outranked tokens, %',
            scale: { domain: [0, 100] },
          },
        },
      },
    },
  ];
}

export interface LeftOut {
  readonly layer: number;
  readonly rankCorrelation: number | null;
  readonly rise: readonly number[];
}

/** By layer: rank correlations of all samples, and the largest rise of the loss. */
export function leftOutLayers(section: Section): { layer: number; correlations: number[]; worst: number }[] {
  const all = section.summaries
    .flatMap((s) => s.rows)
    .flatMap((r) => (r.detail?.layers as LeftOut[] | undefined) ?? []);
  return [...new Set(all.map((l) => l.layer))].map((layer) => {
    const own = all.filter((l) => l.layer === layer);
    return {
      layer,
      correlations: own.map((l) => l.rankCorrelation).filter((r) => r !== null),
      worst: Math.max(...own.flatMap((l) => l.rise)),
    };
  });
}

function leaveOneOutChart(section: Section): Chart[] {
  if (section.task.name !== 'leave-one-out') return [];
  const values = leftOutLayers(section).flatMap((l) =>
    l.correlations.map((value) => ({ layer: l.layer, value })),
  );
  return [
    {
      title: `Relevance and loss when left out, ${section.length} tokens`,
      caption: 'Rank correlation over the blocks of one layer; one point a sample, the line is the mean.',
      spec: {
        ...canvas(values),
        layer: [
          {
            mark: 'point',
            encoding: { y: { field: 'value', type: 'quantitative', title: 'rank correlation' } },
          },
          { mark: 'line', encoding: { y: { field: 'value', type: 'quantitative', aggregate: 'mean' } } },
        ],
        encoding: { x: { field: 'layer', type: 'quantitative' } },
      },
    },
  ];
}
