import { CorruptDataError } from '../core/errors.ts';
import { DROP, TIERS } from '../kernels/layout.ts';
import type { PlanJournalEntry } from './persist.ts';
import type { CacheView, Plan } from './policy.ts';

/** New tiers of one layer's segment: [kvHeads][tokens] at `from` of `tiers`. */
export interface Change {
  /** The epoch whose plan this is. */
  readonly position: number;
  readonly segment: number;
  readonly tiers: Uint8Array;
  readonly from: number;
}

const HEADER = 4;
export const isTier = (id: number): boolean => id < TIERS.length || id === DROP;

const IS_TIER = Uint8Array.from({ length: 256 }, (_, id) => Number(isTier(id)));
function areTiers(bytes: Uint8Array, from: number, count: number): boolean {
  for (let i = from; i < from + count; i++) if (IS_TIER[bytes[i]!] === 0) return false;
  return true;
}

/** A plan as bytes: for each layer and segment that changes u16 layer, u16 segment, its tier ids [kvHeads][tokens]. */
export function encodePlan(view: CacheView, plan: Plan): Uint8Array {
  const changed: [layer: number, segment: number][] = [];
  let bytes = 0;
  for (let layer = 0; layer < view.layers; layer++)
    view.segments.forEach(({ tokens, tiers }, s) => {
      const count = view.kvHeads * tokens;
      const to = plan.tiers[s]!;
      for (let i = layer * count; i < (layer + 1) * count; i++)
        if (to[i] !== tiers[i]) {
          changed.push([layer, s]);
          bytes += HEADER + count;
          return;
        }
    });
  const out = new Uint8Array(bytes);
  let at = 0;
  for (const [layer, s] of changed) {
    const { index, tokens } = view.segments[s]!;
    const count = view.kvHeads * tokens;
    out.set([layer & 255, layer >> 8, index & 255, index >> 8], at);
    out.set(plan.tiers[s]!.subarray(layer * count, (layer + 1) * count), at + HEADER);
    at += HEADER + count;
  }
  return out;
}

/** An entry's changes by layer. @throws CorruptDataError when it does not parse */
export function parseEntry(
  { position, bytes }: PlanJournalEntry,
  spans: readonly { readonly tokens: number }[],
  layers: number,
  kvHeads: number,
): Change[][] {
  const byLayer: Change[][] = Array.from({ length: layers }, () => []);
  for (let at = 0; at < bytes.length; ) {
    const layer = bytes[at]! | (bytes[at + 1]! << 8);
    const segment = bytes[at + 2]! | (bytes[at + 3]! << 8);
    const count = kvHeads * (spans[segment]?.tokens ?? 0);
    const from = at + HEADER;
    if (count === 0 || layer >= layers || from + count > bytes.length || !areTiers(bytes, from, count))
      throw new CorruptDataError(`the plan journal of position ${position} does not parse`);
    byLayer[layer]!.push({ position, segment, tiers: bytes, from });
    at = from + count;
  }
  return byLayer;
}
