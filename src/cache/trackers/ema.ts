import { EPOCH } from '../../core/config.ts';
import { scaledMass, type Tracker } from './tracker.ts';

/** About 380 queries an epoch at a decay of 0.8 saturate where each gives a token 1.7 %. */
const UNIT = 2 ** 11;

/** Attention mass a query that could see the token, older epochs counting less: mass and queries decay alike. */
export const emaTracker = (decay: number): Tracker => ({
  mass: { decay, unit: UNIT },
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
