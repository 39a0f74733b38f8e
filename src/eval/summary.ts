import { DEFAULT_CACHE } from '../cache/policy.ts';
import { type Estimate, mean, meanInterval, pairedRateInterval, rateInterval } from './metrics/interval.ts';
import { TASKS } from './registry.ts';
import type { Row } from './rows.ts';
import type { MetricSpec, Task } from './task.ts';

/** One metric of one method over its samples, in the unit that is shown. */
export interface Figure extends Estimate {
  readonly metric: MetricSpec;
  /** Against the full cache on the same samples and seeds; absent for the full cache and for figures that are differences already. */
  readonly paired?: Estimate;
}

/** One method on one task. */
export interface Summary {
  /** `adkvc at 4x` */
  readonly method: string;
  readonly policy: string;
  readonly ratio: number | null;
  readonly figures: readonly Figure[];
  readonly skipped: number;
  readonly failed: number;
  /** Bytes, means over samples; the peak is the largest. */
  readonly averageBytes: number;
  readonly peakBytes: number;
  readonly bytes: number;
  readonly trueRatio: number;
  readonly meanRecodes: number;
  /** Medians over samples. */
  readonly prefillTokensPerSecond: number;
  readonly decodeTokensPerSecond: number;
  readonly ttftMs: number;
  readonly restoreMs: number;
  readonly processPeakBytes: number;
  readonly rows: readonly Row[];
}

/** One task at one length under one setting: what is compared stands in one section. */
export interface Section {
  readonly task: Task;
  readonly length: number;
  readonly setting: string;
  readonly summaries: readonly Summary[];
  /** What guessing reaches, in the unit that is shown, where that is known. */
  readonly chance: number | undefined;
  /** The full cache does no better than guessing: the task says nothing of this model's cache. */
  readonly atChance: boolean;
}

function settingOf({ model, weightForm, numerics, profile, data }: Row): string {
  const [text] = Object.values(data);
  return [
    ...[model, `${weightForm} weights`, `kernels ${numerics}`, `head profile ${profile.slice(0, 8)}`],
    ...(text === undefined ? [] : [`texts ${text.slice(0, 8)}`]),
  ].join(', ');
}

/** Fields that every method has: the others make a variant. */
const COMMON = new Set(['policy', 'ratio', 'bytes', 'seed', 'exactBits', 'arithmetic', 'useProfile']);

/** `adkvc (no profile, floor 1)`: the policy, and in what it is not as by default. */
function policyName({
  policy,
  config,
  protocol,
  weightForm,
}: Pick<Row, 'policy' | 'config' | 'protocol' | 'weightForm'>): string {
  const changed = Object.entries(config).filter(
    ([field, value]) => !COMMON.has(field) && value !== DEFAULT_CACHE[field as keyof typeof DEFAULT_CACHE],
  );
  // Weights as stored go with float arithmetic, compact ones with integers, unless the run said otherwise.
  const usual = weightForm === 'exact' ? 'float' : 'integer';
  const variant = [
    ...(protocol === 'streaming' ? [] : [protocol]),
    ...(policy === 'full' || config.arithmetic === usual ? [] : [`${config.arithmetic} attention`]),
    ...(config.useProfile === false ? ['no profile'] : []),
    ...(policy === 'full' ? [] : changed.map(([field, value]) => `${field} ${value}`)),
  ];
  return variant.length === 0 ? policy : `${policy} (${variant.join(', ')})`;
}
const methodName = (row: Pick<Row, 'policy' | 'ratio' | 'config' | 'protocol' | 'weightForm'>): string =>
  row.ratio === null ? policyName(row) : `${policyName(row)} at ${row.ratio}x`;

export function groupBy<T>(items: readonly T[], key: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const group = groups.get(key(item));
    if (group) group.push(item);
    else groups.set(key(item), [item]);
  }
  return groups;
}

/** Configurations that differ in nothing that counts are one method (full under another window, a default that was said): a sample's newest row that has scores. */
function oncePerSample(rows: readonly Row[]): Row[] {
  const bySample = new Map<string, Row>();
  for (const row of rows) {
    const place = `${row.sample}/${row.seed}`;
    if (row.scores !== undefined || bySample.get(place)?.scores === undefined) bySample.set(place, row);
  }
  return [...bySample.values()];
}

/** Whether a task of this program made the row, in the version that it has now. */
export const isKnown = (row: Row): boolean => TASKS[row.task]?.version === row.taskVersion;

/** Sections in the registry's order; rows of tasks that this program does not know are left out. */
export function summarise(rows: readonly Row[]): Section[] {
  const order = Object.keys(TASKS);
  const sections = [
    ...groupBy(rows.filter(isKnown), (r) =>
      JSON.stringify([r.task, r.length, settingOf(r), r.fingerprint, r.data]),
    ),
  ].map(([, group]): Section => {
    const task = TASKS[group[0]!.task]!;
    const byMethod = [...groupBy(group, methodName).values()].map(oncePerSample);
    const full = byMethod.find((g) => g[0]!.policy === 'full') ?? [];
    const summaries = byMethod
      .map((g) => summary(task, g, full))
      .sort(
        (a, b) => rank(a) - rank(b) || a.policy.localeCompare(b.policy) || (a.ratio ?? 0) - (b.ratio ?? 0),
      );
    const reference = summaries.find((s) => s.policy === 'full')?.figures[0];
    const chance = chanceOf(task.metrics[0]!, full);
    // One sample of a share has no interval: nothing is said.
    const atChance = reference !== undefined && chance !== undefined && reference.low <= chance;
    return { task, length: group[0]!.length, setting: settingOf(group[0]!), summaries, chance, atChance };
  });
  return sections.sort(
    (a, b) => order.indexOf(a.task.name) - order.indexOf(b.task.name) || a.length - b.length,
  );
}

/** Guessing: as the metric says, or the full cache's answers held against every other question's truths. */
function chanceOf(metric: MetricSpec, full: readonly Row[]): number | undefined {
  if (metric.chance !== undefined) return shown(metric, metric.chance);
  const { rescore } = metric;
  if (!rescore) return undefined;
  const answered = full.flatMap(answersOf);
  const values = answered.flatMap((own) =>
    answered.flatMap((other) =>
      own.question === other.question ? [] : [rescore(own.prediction, other.answers)],
    ),
  );
  return values.length === 0 ? undefined : shown(metric, mean(values));
}

interface Answered {
  /** The same under other seeds. */
  readonly question: string;
  readonly prediction: string;
  readonly answers: readonly string[];
}
/** What a row's sample was answered, question by question. */
function answersOf({ sample, detail }: Row): Answered[] {
  const answered = (prediction: string, answers: readonly string[]): Answered => ({
    question: JSON.stringify([sample, answers]),
    ...{ prediction, answers },
  });
  const truths = detail?.answers as readonly string[] | undefined;
  if (typeof detail?.prediction === 'string') return [answered(detail.prediction, truths!)];
  const turns = detail?.turns as readonly { prediction: string }[] | undefined;
  return turns?.map((turn, i) => answered(turn.prediction, [truths![i]!])) ?? [];
}

const rank = (s: Summary): number => (s.policy === 'full' ? 0 : 1);
/** Of what was measured, which is more than 0; 0 where nothing was. */
function median(v: readonly number[]): number {
  const sorted = v.filter((x) => x > 0).sort((a, b) => a - b);
  const middle = sorted.length / 2;
  return sorted.length === 0 ? 0 : mean([sorted[Math.ceil(middle) - 1]!, sorted[Math.floor(middle)]!]);
}

function summary(task: Task, rows: readonly Row[], full: readonly Row[]): Summary {
  const scored = rows.filter((r) => r.scores !== undefined);
  const policy = policyName(rows[0]!);
  const { ratio } = rows[0]!;
  const cache = (pick: (c: NonNullable<Row['cache']>) => number): number[] =>
    scored.map((r) => pick(r.cache!));
  const measured = (pick: (m: NonNullable<Row['measured']>) => number): number[] =>
    scored.map((r) => pick(r.measured!));
  return {
    method: methodName(rows[0]!),
    policy,
    ratio,
    figures: scored.length === 0 ? [] : task.metrics.flatMap((m) => figure(m, scored, full) ?? []),
    skipped: rows.filter((r) => r.skipped !== undefined).length,
    failed: rows.filter((r) => r.error !== undefined).length,
    averageBytes: mean(cache((c) => c.averageBytes)),
    peakBytes: Math.max(...cache((c) => c.peakBytes)),
    bytes: mean(cache((c) => c.bytes)),
    trueRatio: mean(cache((c) => c.ratio)),
    meanRecodes: mean(cache((c) => c.meanRecodes ?? Number.NaN)),
    prefillTokensPerSecond: median(measured((m) => m.prefillTokensPerSecond)),
    decodeTokensPerSecond: median(measured((m) => m.decodeTokensPerSecond)),
    ttftMs: median(measured((m) => m.ttftMs)),
    restoreMs: median(measured((m) => m.restoreMs)),
    processPeakBytes: Math.max(...measured((m) => m.processPeakBytes)),
    rows,
  };
}

/** A sample's value in the unit of the table. */
export const shown = (metric: MetricSpec, value: number): number =>
  ({
    rate: value * 100,
    percent: value * 100,
    mean: value,
    exp: Math.exp(value),
    'exp-percent': 100 * Math.expm1(value),
  })[metric.kind];

function figure(metric: MetricSpec, rows: readonly Row[], full: readonly Row[]): Figure | undefined {
  const values = rows.map((r) => r.scores![metric.name]).filter((v) => v !== undefined);
  if (values.length === 0) return undefined;
  const raw =
    metric.kind === 'rate'
      ? rateInterval(
          values.reduce((a, b) => a + b, 0),
          values.length,
        )
      : meanInterval(values);
  // Student's interval of a share knows nothing of its bounds.
  const share = metric.kind === 'rate' || metric.kind === 'percent';
  const within = (v: number): number => (share ? Math.min(100, Math.max(0, v)) : v);
  const own = { ...convert(raw, (v) => within(shown(metric, v))), metric };
  if (rows[0]!.policy === 'full' || metric.kind === 'exp-percent') return own;
  const reference = new Map(full.map((r) => [`${r.sample}/${r.seed}`, r.scores?.[metric.name]]));
  const pairs = rows.flatMap((r): [number, number][] => {
    const other = reference.get(`${r.sample}/${r.seed}`);
    return other === undefined ? [] : [[r.scores![metric.name]!, other]];
  });
  if (pairs.length === 0) return own;
  const difference =
    metric.kind === 'rate' ? pairedRateInterval(pairs) : meanInterval(pairs.map(([a, b]) => a - b));
  // The difference of mean losses is the logarithm of the perplexities' ratio.
  const scale = metric.kind === 'exp' ? (v: number) => 100 * Math.expm1(v) : (v: number) => shown(metric, v);
  return { ...own, paired: convert(difference, scale) };
}

/** A method beside adkvc at the same ratio, on the samples that both have. */
export interface Comparison {
  readonly method: string;
  readonly ratio: number;
  readonly trueRatios: readonly [adkvc: number, other: number];
  /** adkvc minus the method, in the unit of the first metric (percent of perplexity where that is a loss). */
  readonly difference: Estimate;
  /** What the method loses against the full cache over what adkvc loses, where both lose something; undefined otherwise. */
  readonly factor: number | undefined;
}

/** The policy that others are held against. */
const OURS = 'adkvc';

/** Paired over samples and seeds. Ratios are as asked for; the true ones stand beside. */
export function comparisons(section: Section): Comparison[] {
  const metric = section.task.metrics[0]!;
  const valuesOf = (s: Summary | undefined): Map<string, number> =>
    new Map(
      (s?.rows ?? []).flatMap((r): [string, number][] =>
        r.scores === undefined ? [] : [[`${r.sample}/${r.seed}`, r.scores[metric.name]!]],
      ),
    );
  const full = valuesOf(section.summaries.find((s) => s.policy === 'full'));
  return section.summaries.flatMap((other): Comparison[] => {
    const ours = section.summaries.find((s) => s.policy === OURS && s.ratio === other.ratio);
    if (other.ratio === null || !ours || other === ours) return [];
    const [a, b] = [valuesOf(ours), valuesOf(other)];
    const samples = [...a.keys()].filter((key) => b.has(key));
    if (samples.length === 0) return [];
    const pairs = samples.map((key): [number, number] => [a.get(key)!, b.get(key)!]);
    const loss = metric.kind === 'exp' || metric.kind === 'exp-percent';
    const difference =
      metric.kind === 'rate' ? pairedRateInterval(pairs) : meanInterval(pairs.map(([x, y]) => x - y));
    const scale = loss ? (v: number) => 100 * Math.expm1(v) : (v: number) => shown(metric, v);
    const lost = (values: Map<string, number>): number => {
      const sign = metric.better === 'lower' ? 1 : -1;
      // A metric of kind exp-percent is a difference to the full cache already.
      const reference = (key: string): number =>
        metric.kind === 'exp-percent' ? 0 : (full.get(key) ?? Number.NaN);
      return scale(mean(samples.map((key) => sign * (values.get(key)! - reference(key)))));
    };
    const [own, theirs] = [lost(a), lost(b)];
    return [
      {
        method: other.method,
        ratio: other.ratio,
        trueRatios: [ours.trueRatio, other.trueRatio],
        difference: convert(difference, scale),
        factor: own > 0 && theirs > 0 ? theirs / own : undefined,
      },
    ];
  });
}

const convert = (e: Estimate, scale: (v: number) => number): Estimate => ({
  mean: scale(e.mean),
  low: scale(e.low),
  high: scale(e.high),
  n: e.n,
});
