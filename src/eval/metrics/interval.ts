export interface Estimate {
  readonly mean: number;
  /** Bounds of the 95 % interval; NaN when one value says nothing of the spread. */
  readonly low: number;
  readonly high: number;
  readonly n: number;
}

/** Two-sided 95 % quantiles of Student's t by degrees of freedom. Source: any table; from 30 on the approximation below is right to 0.1 %. */
const T95 = [
  12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131,
  2.12, 2.11, 2.101, 2.093, 2.086, 2.08, 2.074, 2.069, 2.064, 2.06, 2.056, 2.052, 2.048, 2.045, 2.042,
];
const Z95 = 1.959964;

export function t95(degrees: number): number {
  if (degrees < 1) return Number.NaN;
  return T95[degrees - 1] ?? Z95 + (Z95 ** 3 + Z95) / (4 * degrees);
}

export const mean = (v: ArrayLike<number>): number => sum(v) / v.length;

function sum(v: ArrayLike<number>): number {
  let all = 0;
  for (let i = 0; i < v.length; i++) all += v[i]!;
  return all;
}

/** Mean with Student's interval. Give differences for a paired comparison. */
export function meanInterval(values: readonly number[]): Estimate {
  const n = values.length;
  const m = mean(values);
  const variance = values.reduce((all, v) => all + (v - m) ** 2, 0) / (n - 1);
  const half = n < 2 ? Number.NaN : t95(n - 1) * Math.sqrt(variance / n);
  return { mean: m, low: m - half, high: m + half, n };
}

/** Share of hits with Wilson's interval, which stays honest at 0 and 1. Source: Wilson 1927. */
export function rateInterval(hits: number, n: number): Estimate {
  const p = hits / n;
  const z2 = Z95 * Z95;
  const middle = (p + z2 / (2 * n)) / (1 + z2 / n);
  const half = (Z95 / (1 + z2 / n)) * Math.sqrt((p * (1 - p)) / n + z2 / (4 * n * n));
  return { mean: p, low: Math.max(0, middle - half), high: Math.min(1, middle + half), n };
}

/**
 * Difference of two rates over the same samples (first minus second), Newcombe's interval: Wilson's for each, joined with their correlation, so that few samples
 * that all agree do not look certain. Source: Newcombe 1998, Statistics in Medicine 17, 2635, method 10.
 */
export function pairedRateInterval(pairs: readonly (readonly [first: number, second: number])[]): Estimate {
  const n = pairs.length;
  const of = (x: number, y: number): number => pairs.filter(([a, b]) => a === x && b === y).length;
  const [both, first, second, neither] = [of(1, 1), of(1, 0), of(0, 1), of(0, 0)];
  const p = rateInterval(both + first, n);
  const q = rateInterval(both + second, n);
  const product = (both + first) * (second + neither) * (both + second) * (first + neither);
  const cross = both * neither - first * second;
  const phi = product === 0 ? 0 : (cross > 0 ? Math.max(cross - n / 2, 0) : cross) / Math.sqrt(product);
  const join = (x: number, y: number): number => Math.sqrt(Math.max(0, x * x - 2 * phi * x * y + y * y));
  const apart = (first - second) / n;
  return {
    mean: apart,
    low: apart - join(p.mean - p.low, q.high - q.mean),
    high: apart + join(p.high - p.mean, q.mean - q.low),
    n,
  };
}
