import { scaledMass, type Tracker } from './tracker.ts';

/** Attention mass of the last `queries` queries before the epoch only. */
export const lastWindowTracker = (queries: number): Tracker =>
  scaledMass({ decay: 0, lastQueries: queries, unit: 2 ** 9 }, () => () => 1);
