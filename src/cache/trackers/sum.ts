import { scaledMass, type Tracker } from './tracker.ts';

/** Accumulated attention mass: early tokens had more queries and win. */
export const sumTracker = (): Tracker => scaledMass({ decay: 1, unit: 2 ** 8 }, () => () => 1);
