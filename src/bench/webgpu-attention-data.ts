import { Arena } from '../core/arena.ts';
import { uniform01 } from '../core/random.ts';
import {
  exactBytes,
  recordBytes,
  SEGMENT_HEADER_BYTES,
  SEGMENT_TOKENS,
  segmentHeaderBytes,
  TIER_IDS,
  tierNamed,
} from '../kernels/layout.ts';
import { cacheReference } from '../kernels/reference-cache.ts';
import type { AttendItem } from '../kernels/webgpu-plan.ts';
import type { HeadShape } from '../kernels/webgpu-prelude.ts';

/** Shares of the tiers among compressed tokens. */
export type TierMix = Readonly<Record<string, number>>;

/** What `adkvc` at a ratio of 4 holds of 8,192 tokens of a book (PG-19's fourth test text, from character 20,000): tokens of each tier, all layers and heads of SmolLM2-135M. */
export const RATIO_4: TierMix = {
  '8,8': 0.055,
  '8,4': 0.071,
  '4,4': 0.498,
  '4,2': 0.078,
  '3,2': 0.215,
  drop: 0.083,
};

/** Sinks, window and epoch: what an exact part holds at most before an epoch ends. */
export const EXACT = 192;
/** Different segments; conversations repeat them in another order, each with bytes of its own. */
const SAMPLES = 6;

/** Caches of one layer of many conversations, in one piece of memory. */
export interface AttentionData {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly items: readonly AttendItem[];
  /** f32 [conversations, heads, headDim] */
  readonly queries: Float32Array<ArrayBuffer>;
  /** Cache bytes that one dispatch reads: blocks without mass, and the visible part of the exact slots. */
  readonly read: number;
}

export function attentionData(
  shape: HeadShape,
  mix: TierMix,
  conversations: number,
  context: number,
): AttentionData {
  const { heads, kvHeads, headDim } = shape;
  const compressed = context - EXACT;
  const lengths = Array.from({ length: Math.ceil(compressed / SEGMENT_TOKENS) }, (_, i) =>
    Math.min(SEGMENT_TOKENS, compressed - i * SEGMENT_TOKENS),
  );
  const samples = new Map<number, Uint8Array[]>();
  for (const tokens of new Set(lengths))
    samples.set(
      tokens,
      Array.from({ length: SAMPLES }, (_, i) => sampleSegment(shape, tokens, mix, i)),
    );
  const exact = { kvHeads, headDim, capacity: EXACT, bits: 16 as const, mass: false };
  const copies: { at: number; bytes: Uint8Array }[] = [];
  const exactSample = randomHalves(exactBytes(exact) / 2);
  let at = 0;
  let read = 0;
  const place = (bytes: Uint8Array): number => {
    const here = at;
    copies.push({ at: here, bytes });
    at += (bytes.length + 15) & ~15;
    read += bytes.length;
    return here;
  };
  const items = Array.from({ length: conversations }, (_, c) => ({
    q: c * heads * headDim,
    out: c * heads * headDim,
    exact: place(exactSample),
    capacity: EXACT,
    exactBits: 16 as const,
    visible: EXACT,
    position: context,
    segments: lengths.map((tokens, s) => place(samples.get(tokens)![(s + c) % SAMPLES]!)),
  }));
  const bytes = new Uint8Array(at);
  for (const { at: to, bytes: piece } of copies) bytes.set(piece, to);
  const queries = Float32Array.from(
    { length: conversations * heads * headDim },
    (_, i) => 2 * uniform01(i, 1) - 1,
  );
  return { bytes, items, queries, read };
}

/** One conversation's output by the reference kernels, f32 [heads, headDim]. */
export function referenceOutput(shape: HeadShape, data: AttentionData, conversation: number): Float32Array {
  const { heads, kvHeads, headDim } = shape;
  const item = data.items[conversation]!;
  const width = heads * headDim;
  const cells = (item.segments.length + 2) * 2 * SEGMENT_TOKENS + item.capacity;
  const first = Math.min(item.exact, ...item.segments);
  const last = data.items[conversation + 1]?.exact ?? data.bytes.length;
  const buffer = new ArrayBuffer(last - first + 16_000_000);
  const arena = new Arena({ buffer, maxBytes: buffer.byteLength, ensure: () => {} }, 16);
  const kernels = cacheReference(arena);
  const base = arena.allocStatic(last - first);
  new Uint8Array(buffer).set(data.bytes.subarray(first, last), base);
  const q = arena.allocStatic(width * 4);
  new Float32Array(buffer, q, width).set(data.queries.subarray(item.q, item.q + width));
  const segments = arena.allocStatic(item.segments.length * 4);
  new Uint32Array(buffer, segments, item.segments.length).set(item.segments.map((at) => at - first + base));
  const out = arena.allocStatic(width * 4);
  const workspaceBytes = kernels.attendWorkspaceBytes({ rows: 1, heads, kvHeads, headDim, cells });
  const workspace = arena.allocStatic(workspaceBytes);
  const { capacity, exactBits: bits, visible, position } = item;
  kernels.attend({
    ...{ q, ldQ: width, rows: 1, heads, headDim, scale: 1 / Math.sqrt(headDim) },
    ...{ segments, segmentCount: item.segments.length, visible, out, ldOut: width, mass: 0, position },
    exact: { ptr: item.exact - first + base, kvHeads, headDim, capacity, bits, mass: false },
    ...{ arithmetic: 'float', workspace, workspaceBytes },
  });
  return new Float32Array(buffer, out, width).slice();
}

/** A segment block of noise, encoded by the reference kernels. */
function sampleSegment(shape: HeadShape, tokens: number, mix: TierMix, seed: number): Uint8Array {
  const { kvHeads, headDim } = shape;
  const exact = { kvHeads, headDim, capacity: tokens, bits: 16 as const, mass: false };
  const buffer = new ArrayBuffer(4 * exactBytes(exact) + 100_000);
  const arena = new Arena({ buffer, maxBytes: buffer.byteLength, ensure: () => {} }, 16);
  const kernels = cacheReference(arena);
  const exactAt = arena.allocStatic(exactBytes(exact));
  new Uint8Array(buffer, exactAt).set(randomHalves(exactBytes(exact) / 2, seed));
  const tiersAt = arena.allocStatic(tokens);
  const block = arena.allocStatic(2 * exactBytes(exact));
  const names = Object.keys(mix);
  const total = Object.values(mix).reduce((a, b) => a + b, 0);
  let to = block + segmentHeaderBytes(kvHeads);
  for (let h = 0; h < kvHeads; h++) {
    const counts = new Uint8Array(TIER_IDS);
    for (let t = 0; t < tokens; t++) {
      // As the policy does, which leaves no group of four half empty.
      let x = uniform01(seed, h, t >> 2) * total;
      const name = names.find((n) => (x -= mix[n]!) < 0) ?? names.at(-1)!;
      const tier = tierNamed(name);
      new Uint8Array(buffer)[tiersAt + t] = tier;
      counts[tier]!++;
    }
    new Uint32Array(buffer, block + SEGMENT_HEADER_BYTES, kvHeads)[h] = to - block;
    kernels.encodeRecord({ ptr: exactAt, ...exact }, h, 0, tokens, tiersAt, to, 0);
    to += recordBytes(tokens, counts, headDim);
  }
  new Uint32Array(buffer, block, 3).set([0, tokens, to - block]);
  return new Uint8Array(buffer.slice(block, to));
}

/** f16 noise in -2..2. */
function randomHalves(count: number, seed = 0): Uint8Array {
  const halves = new Uint16Array(count);
  for (let i = 0; i < count; i++) {
    const word = Math.floor(uniform01(seed, i, 3) * 65536);
    halves[i] = (word & 0x83ff) | ((12 + ((word >> 10) & 3)) << 10);
  }
  return new Uint8Array(halves.buffer);
}
