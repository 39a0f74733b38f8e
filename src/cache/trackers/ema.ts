import { EPOCH } from '../../core/config.ts';
import { scaledMass, type Tracker } from './tracker.ts';

/** Attention mass a query that could see the token, older epochs counting less: mass and queries decay alike. */
export const emaTracker = (decay: number): Tracker => ({
  mass: { decay },
  read: (view) => scaledMass(view, (position) => 1 / decayedQueries(position, view.position, decay)),
});

/** Queries that could see the token at `position`, each weighted by the decay since its epoch. */
export function decayedQueries(position: number, now: number, decay: number): number {
  let sum = 0;
  let weight = 1;
  for (let end = now; end > position; ) {
    const begin = Math.ceil(end / EPOCH - 1) * EPOCH;
    sum += weight * (end - Math.max(begin, position));
    weight *= decay;
    end = begin;
  }
  return sum;
}
