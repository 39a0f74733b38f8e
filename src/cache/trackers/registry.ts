import type { TrackerName } from '../policy.ts';
import { emaTracker } from './ema.ts';
import { lastWindowTracker } from './last-window.ts';
import { maxTracker } from './max.ts';
import { meanTracker } from './mean.ts';
import { sumTracker } from './sum.ts';
import type { Tracker } from './tracker.ts';

export interface TrackerOptions {
  /** Of `ema`: the share of mass and queries that an epoch leaves. */
  readonly decay: number;
  /** Of `last-window`: queries before an epoch that count. */
  readonly lastQueries: number;
}

/** To add a tracker: one file here, one name in policy.ts, one line below. */
export const TRACKERS: Readonly<Record<TrackerName, (options: TrackerOptions) => Tracker>> = {
  ema: ({ decay }) => emaTracker(decay),
  'last-window': ({ lastQueries }) => lastWindowTracker(lastQueries),
  max: maxTracker,
  mean: meanTracker,
  sum: sumTracker,
};
