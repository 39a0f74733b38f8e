import type { Estimate } from './metrics/interval.ts';
import type { Row } from './rows.ts';
import { comparisons, type Figure, type Section, type Summary } from './summary.ts';

export interface Table {
  readonly head: readonly string[];
  readonly body: readonly (readonly string[])[];
}

/** Three or four digits that mean something. */
export function number(value: number): string {
  if (!Number.isFinite(value)) return '–';
  const size = Math.abs(value);
  if (size === 0) return '0';
  if (size < 0.001) return value.toExponential(1);
  return value.toFixed(size < 0.1 ? 4 : size < 10 ? 2 : size < 1000 ? 1 : 0);
}

export const signed = (value: number): string => (value > 0 ? `+${number(value)}` : number(value));
const interval = (e: Estimate, show: (v: number) => string): string =>
  Number.isNaN(e.low) ? show(e.mean) : `${show(e.mean)} [${show(e.low)}, ${show(e.high)}]`;
const MB = (bytes: number): string => number(bytes / 1e6);

const times = (ratio: number): string => (Number.isNaN(ratio) ? '–' : `${number(ratio)}x`);

export const heading = (f: Pick<Figure, 'metric'>): string =>
  `${f.metric.label}${f.metric.unit === '' ? '' : `, ${f.metric.unit}`}`;

/** What was scored: every metric with its 95 % interval, and the first one's paired difference to the full cache. */
export function scoreTable(section: Section): Table {
  const { metrics } = section.task;
  const paired = section.summaries.some((s) => s.figures[0]?.paired);
  return {
    head: [
      'method',
      'n',
      'true ratio',
      ...metrics.flatMap((metric, i) => [
        heading({ metric }),
        ...(i === 0 && paired ? [`difference to full, paired${metric.kind === 'exp' ? ', %' : ''}`] : []),
      ]),
    ],
    body: section.summaries.map((s) => [
      s.method,
      samples(s),
      times(s.trueRatio),
      ...metrics.flatMap((metric, i) => {
        const f = s.figures.find((x) => x.metric.name === metric.name);
        const show = metric.kind === 'exp-percent' ? signed : number;
        return [
          f ? interval(f, show) : '–',
          ...(i === 0 && paired ? [f?.paired ? interval(f.paired, signed) : '–'] : []),
        ];
      }),
    ]),
  };
}

/** Every method against adkvc at the same ratio; undefined where there is nothing to compare. */
export function comparisonTable(section: Section): Table | undefined {
  const rows = comparisons(section);
  if (rows.length === 0) return undefined;
  const metric = section.task.metrics[0]!;
  return {
    head: [
      'adkvc against',
      'n',
      'true ratios',
      `${metric.label}: adkvc minus the other, paired${metric.unit === '' ? '' : `, ${metric.unit}`}`,
      'the other loses so many times as much',
    ],
    body: rows.map((c) => [
      c.method,
      `${c.difference.n}`,
      c.trueRatios.map(times).join(', '),
      interval(c.difference, signed),
      c.factor === undefined ? '–' : number(c.factor),
    ]),
  };
}

/** What it cost: bytes and speed. */
export const costTable = (section: Section): Table => ({
  head: [
    'method',
    'cache at the end, MB',
    'average, MB',
    'peak, MB',
    'process peak, MB',
    're-encodings a token',
    'prefill, tokens/s',
    'decode, tokens/s',
    'first token, ms',
    'restore, ms',
  ],
  body: section.summaries.map((s) => [
    s.method,
    MB(s.bytes),
    MB(s.averageBytes),
    MB(s.peakBytes),
    number(s.processPeakBytes / 1e6),
    number(s.meanRecodes),
    speed(s.prefillTokensPerSecond),
    speed(s.decodeTokensPerSecond),
    speed(s.ttftMs),
    speed(s.restoreMs),
  ]),
});

/** 0 is what was not measured. */
const speed = (value: number): string => (value === 0 ? '–' : number(value));

const samples = (s: Summary): string => {
  const n = s.figures[0]?.n ?? 0;
  return [
    `${n}`,
    ...(s.skipped > 0 ? [`${s.skipped} skipped`] : []),
    ...(s.failed > 0 ? [`${s.failed} failed`] : []),
  ].join(', ');
};

export const titleOf = (section: Section): string =>
  section.length === 0 ? section.task.name : `${section.task.name}, ${section.length} tokens`;

/** What guessing reaches, and whether the full cache does better. */
export function chanceNote({ chance, atChance, task }: Section): string | undefined {
  if (chance === undefined || chance < 0.1) return atChance ? AT_CHANCE : undefined;
  const unit = task.metrics[0]!.unit;
  return `Guessing reaches ${number(chance)}${unit === '%' ? ' %' : ''}.${atChance ? ` ${AT_CHANCE}` : ''}`;
}
const AT_CHANCE =
  'The full cache does no better than guessing here: this task says nothing about caches on this model.';

/** Where the rows come from: commits, machines, days. */
export function provenance(rows: readonly Row[]): string[] {
  const distinct = (pick: (row: Row) => string): string => [...new Set(rows.map(pick))].sort().join('; ');
  return [
    `${rows.length} rows, made ${distinct((r) => r.origin.at.slice(0, 10))} by commit ${distinct((r) => r.origin.commit)} (+: with changes not committed)`,
    `on ${distinct((r) => `${r.origin.host}, node ${r.origin.node}`)}`,
    'Streaming, compressed at every epoch before the question is known, unless a method says one-shot: compressed once, after the whole prompt; its peak is the full cache.',
    'Intervals are 95 %: Wilson (paired: Newcombe) for hit or miss, Student otherwise; paired over the same samples and seeds. Speeds are medians on a machine that may have had other work.',
  ];
}

/** Failed and skipped rows, each reason once. */
export function failures(rows: readonly Row[]): string[] {
  const reasons = new Map<string, number>();
  for (const row of rows) {
    const why = row.error ?? row.skipped;
    if (why === undefined) continue;
    const line = `${row.task} under ${row.policy}: ${row.error === undefined ? 'skipped' : 'failed'}, ${why}`;
    reasons.set(line, (reasons.get(line) ?? 0) + 1);
  }
  return [...reasons].map(([line, n]) => `${line} (${n} ${n === 1 ? 'row' : 'rows'})`);
}

const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('\n', ' ');

function markdownTable({ head, body }: Table): string {
  const line = (cells: readonly string[]): string => `| ${cells.map(cell).join(' | ')} |`;
  return [line(head), `|${head.map(() => ' --- |').join('')}`, ...body.map(line)].join('\n');
}

/** The whole report as Markdown. `extra`: tables of analyses, each with its title. */
export function markdownReport(
  rows: readonly Row[],
  sections: readonly Section[],
  extra: readonly { title: string; note: string; table: Table }[],
): string {
  const parts = ['# Evaluation of cache compression', provenance(rows).join('  \n')];
  for (const section of sections) {
    parts.push(
      `## ${titleOf(section)}`,
      `${section.task.description}.  \n${section.setting}`,
      ...[chanceNote(section)].flatMap((note) => (note === undefined ? [] : [`**${note}**`])),
      markdownTable(scoreTable(section)),
      ...[comparisonTable(section)].flatMap((table) => (table ? [markdownTable(table)] : [])),
      markdownTable(costTable(section)),
    );
  }
  for (const { title, note, table } of extra) parts.push(`## ${title}`, note, markdownTable(table));
  const failed = failures(rows);
  if (failed.length > 0) parts.push('## Not scored', failed.map((line) => `- ${line}`).join('\n'));
  return `${parts.join('\n\n')}\n`;
}
