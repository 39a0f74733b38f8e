import { EPOCH } from '../../core/config.ts';
import { scaledMass, type Tracker } from './tracker.ts';

/** About 380 queries an epoch at a decay of 0.8 saturate where each gives a token 1.7 %. */
const UNIT = 2 ** 11;

/** Attention mass a query that could see the token, older epochs counting less: mass and queries decay alike. */
export const emaTracker = (decay: number): Tracker =>
  scaledMass({ decay, unit: UNIT }, (view) => {
    const queries = queriesBefore(view.position, decay);
    return (position) => 1 / queries(position);
  });

/** Queries that could see the token at `position`, each weighted by the decay since its epoch. */
export const decayedQueries = (position: number, now: number, decay: number): number =>
  queriesBefore(now, decay)(position);

/** The same for all positions. */
function queriesBefore(now: number, decay: number): (position: number) => number {
  // Of whole epochs, the newest first: their sum, and the weight of the one before.
  const sums = [0];
  const weights = [1];
  const begins = [now];
  for (let end = now; end > 0; ) {
    const begin = Math.ceil(end / EPOCH - 1) * EPOCH;
    const weight = weights.at(-1)!;
    sums.push(sums.at(-1)! + weight * (end - begin));
    weights.push(weight * decay);
    begins.push(begin);
    end = begin;
  }
  return (position) => {
    if (position >= now) return 0;
    // The first of these is the newest epoch, whole or not.
    const epoch = Math.ceil(now / EPOCH) - 1 - Math.floor(position / EPOCH);
    return sums[epoch]! + weights[epoch]! * (begins[epoch]! - position);
  };
}
