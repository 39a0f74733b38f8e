import { EPOCH } from '../core/config.ts';
import type { SegmentSpan } from './segments.ts';

/**
 * When an epoch's plan takes effect. Plans are made from the state at an epoch's end (a multiple of 128 positions) and applied layer by layer at
 * fixed positions after it, so that no single decoding step does the work of all layers. Everything here is a function of positions alone: the
 * state of a cache does not depend on how its tokens were chunked.
 */

/** Positions after an epoch's end in which its plan is made. */
export const PLAN_POSITIONS = 8;
/** Positions after those in which it is applied, the first layers first. */
export const APPLY_POSITIONS = 16;
/** So many positions after an epoch's end every layer shows its plan. */
export const SETTLE_POSITIONS = PLAN_POSITIONS + APPLY_POSITIONS;

/** The plan of `epoch` is applied to a layer just before the token at position `epoch + dueAfter(layer)` joins it. */
export const dueAfter = (layer: number, layers: number): number =>
  PLAN_POSITIONS + Math.floor((layer * APPLY_POSITIONS) / layers);

export const epochOf = (position: number): number => position - (position % EPOCH);

/** The first position at which a layer's state shows the plan of `epoch`: the version of the blocks that it wrote. */
export const shownFrom = (epoch: number, layer: number, layers: number): number =>
  epoch + dueAfter(layer, layers) + 1;

/** Whether a layer of a cache at `position` still waits for the newest epoch's plan. */
export const isWaiting = (position: number, layer: number, layers: number): boolean =>
  position < shownFrom(epochOf(position), layer, layers);

/** The segments that the epochs up to `position` have made. */
export function spansAt(position: number, config: { sinks: number; window: number }): SegmentSpan[] {
  const spans: SegmentSpan[] = [];
  let start = config.sinks;
  for (let epoch = EPOCH; epoch <= position; epoch += EPOCH) {
    const end = epoch - config.window;
    if (end <= start) continue;
    spans.push({ start, tokens: end - start });
    start = end;
  }
  return spans;
}

/** How many of these segments a layer holds at `position`: the newest may still lie in its exact part. */
export function segmentsHeld(
  position: number,
  config: { sinks: number; window: number },
  layer: number,
  layers: number,
): number {
  return spansAt(isWaiting(position, layer, layers) ? epochOf(position) - 1 : position, config).length;
}
