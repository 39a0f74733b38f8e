import { mean } from './interval.ts';

/** Ranks from 1; equal values share their mean rank. */
export function ranks(values: readonly number[]): number[] {
  const order = values.map((_, i) => i).sort((a, b) => values[a]! - values[b]!);
  const out = new Array<number>(values.length);
  for (let from = 0; from < order.length; ) {
    let to = from + 1;
    while (to < order.length && values[order[to]!] === values[order[from]!]) to++;
    for (let i = from; i < to; i++) out[order[i]!] = (from + to + 1) / 2;
    from = to;
  }
  return out;
}

/** Pearson's correlation; NaN where one side does not vary. */
export function correlation(x: readonly number[], y: readonly number[]): number {
  if (x.length !== y.length || x.length < 2) throw new Error(`${x.length} values against ${y.length}`);
  const mx = mean(x);
  const my = mean(y);
  let xy = 0;
  let xx = 0;
  let yy = 0;
  for (let i = 0; i < x.length; i++) {
    xy += (x[i]! - mx) * (y[i]! - my);
    xx += (x[i]! - mx) ** 2;
    yy += (y[i]! - my) ** 2;
  }
  return xx === 0 || yy === 0 ? Number.NaN : xy / Math.sqrt(xx * yy);
}

/** Spearman's rank correlation, ties by mean rank; NaN where one side does not vary. */
export const rankCorrelation = (x: readonly number[], y: readonly number[]): number =>
  correlation(ranks(x), ranks(y));
