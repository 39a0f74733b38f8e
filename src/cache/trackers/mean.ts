import { scaledMass, type Tracker } from './tracker.ts';

/** Attention mass a query that could see the token. */
export const meanTracker = (): Tracker => ({
  mass: { decay: 1, unit: 2 ** 8 },
  read: (view) => scaledMass(view, (position) => 1 / (view.position - position)),
});
