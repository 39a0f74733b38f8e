import { scaledMass, type Tracker } from './tracker.ts';

/** The largest probability that any query of any head of the group has given the token so far; it does not age. */
export const maxTracker = (): Tracker => scaledMass({ mode: 'max', decay: 1, unit: 65535 }, () => () => 1);
