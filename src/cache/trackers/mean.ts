import { scaledMass, type Tracker } from './tracker.ts';

/** Attention mass a query that could see the token. */
export const meanTracker = (): Tracker =>
  scaledMass({ decay: 1, unit: 2 ** 8 }, (view) => (position) => 1 / (view.position - position));
