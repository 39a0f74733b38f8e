import type { Ptr } from '../core/arena.ts';
import {
  COARSE,
  COARSE_QUERY,
  FINE,
  LOG2E,
  lanes,
  massDither,
  nearest,
  powerOf2,
  TINY,
  weightDither,
} from './cache-math.ts';
import { bitsOf, type CacheReader, type Half } from './cache-reader.ts';
import type { AttendArgs } from './kernels.ts';
import {
  exactKAt,
  exactMassAt,
  exactVAt,
  massBytes,
  recordCells,
  recordCounts,
  SEGMENT_HEADER_BYTES,
} from './layout.ts';

const f = Math.fround;
/** Exact slots read together; the cells of a block of the softmax's sum. */
const PIECE = 128;
/** Float values are summed by so many cells before they join the running output. */
const FLOAT_PIECE = 64;

/** Cells that are read together: one tier group of a record, or up to PIECE exact slots. */
interface Piece {
  /** First cell in softmax order, cells with padding, cells that hold a token. */
  readonly at: number;
  readonly n4: number;
  readonly n: number;
  /** Address of the queries that it is scored by. */
  readonly q: Ptr;
  /** The first cells may be scored by others. */
  readonly first?: number;
  readonly firstQ?: Ptr | undefined;
  /** Float keys [n][headDim], or integer levels with a scale a cell. */
  readonly k: Float32Array;
  readonly kScale: Float32Array | undefined;
  /** Bits of the integer levels. */
  readonly kBits: number;
  readonly vBits: number;
  readonly v: Float32Array;
  readonly vScale: Float32Array | undefined;
  /** Added to the scores as query . mean; integer keys only. */
  readonly mean: Float32Array | undefined;
  /** The segment of a record's group. */
  readonly segment?: number;
}

/** Groups of one record whose values have 1 to 4 bits are weighed together. */
const together = (a: Piece, b: Piece): boolean =>
  a.segment === b.segment && a.vScale !== undefined && b.vScale !== undefined && a.vBits <= 4 && b.vBits <= 4;

/** Attention of the reference: every query by itself, no tiles, no workspace. */
export function referenceAttend({
  u8,
  u16,
  u32,
  f32,
  floats,
  vector,
  scale: scaleAt,
  decoded,
  recordAt,
}: CacheReader): (a: AttendArgs) => void {
  /** Every piece that a kvHead's queries see, and where each piece's mass lies (0 without mass). */
  const piecesOf = (a: AttendArgs, kvHead: number): { pieces: Piece[]; mass: Ptr[]; exactAt: number } => {
    const { headDim, exact } = a;
    const pieces: Piece[] = [];
    const mass: Ptr[] = [];
    let at = 0;
    for (let s = 0; s < a.segmentCount; s++) {
      const block = u32()[(a.segments >> 2) + s]!;
      const q = a.segmentQueries ? u32()[(a.segmentQueries >> 2) + s]! : 0;
      const [tokens, storedBytes] = [u32()[(block >> 2) + 1]!, u32()[(block >> 2) + 2]!];
      const placeOf = (h: number) => u32()[((block + SEGMENT_HEADER_BYTES) >> 2) + h]!;
      let massAt = block + storedBytes;
      for (let h = 0; h < kvHead; h++)
        if (placeOf(h)) massAt += massBytes(recordCells(recordCounts(u8(), block + placeOf(h))));
      if (!placeOf(kvHead)) continue;
      const record = block + placeOf(kvHead);
      const read = recordAt(record, tokens, headDim);
      for (const g of read.groups) {
        const integer = a.arithmetic === 'integer' && !g.plain;
        const rows = (half: Half) => {
          const all = new Float32Array(g.n4 * headDim);
          for (let i = 0; i < g.n; i++)
            all.set(
              integer ? vector(record, g, half, headDim, i) : decoded(record, read, g, half, i),
              i * headDim,
            );
          return all;
        };
        const scales = (half: Half) =>
          integer && bitsOf(g, half) <= 8
            ? Float32Array.from({ length: g.n4 }, (_, i) => scaleAt(record, g, half, i, read.base[half]))
            : undefined;
        const kScale = scales('k');
        pieces.push({
          at,
          n4: g.n4,
          n: g.n,
          q: q || a.q,
          k: rows('k'),
          kScale,
          kBits: g.kBits,
          vBits: g.vBits,
          v: rows('v'),
          vScale: scales('v'),
          mean: kScale && read.mean,
          segment: s,
        });
        mass.push(a.mass ? massAt + g.cell * 2 : 0);
        at += g.n4;
      }
    }
    const exactAt = at;
    const slots = a.visible + a.rows - 1;
    const sinks = a.sinkQueries ? (a.sinks ?? 0) : 0;
    for (let slot = 0; slot < slots; slot += PIECE) {
      const n = Math.min(PIECE, slots - slot);
      const offset = (slot * headDim * exact.bits) / 8;
      const read = (half: Ptr) => floats(exact.bits, exact.ptr + half + offset, n * headDim);
      pieces.push({
        at: exactAt + slot,
        n4: (n + 3) & ~3,
        n,
        q: a.q,
        first: Math.max(0, sinks - slot),
        firstQ: a.sinkQueries,
        k: read(exactKAt(exact, kvHead)),
        v: read(exactVAt(exact, kvHead)),
        kScale: undefined,
        kBits: exact.bits,
        vBits: exact.bits,
        vScale: undefined,
        mean: undefined,
      });
      mass.push(a.mass ? exact.ptr + exactMassAt(exact, kvHead) + slot * 2 : 0);
    }
    return { pieces, mass, exactAt };
  };

  const dot = (a: Float32Array, b: Float32Array): number => {
    const l = [0, 0, 0, 0];
    for (let c = 0; c < a.length; c++) l[c & 3] = f(l[c & 3]! + f(a[c]! * b[c]!));
    return lanes(l);
  };

  /** A scaled query, and as integers: fine ones for keys of 8 bits, coarse ones for fewer. */
  const queryAt = (from: Ptr, offset: number, headDim: number, scale: number) => {
    const at = (from >> 2) + offset;
    const q = f32()
      .slice(at, at + headDim)
      .map((x) => f(x * scale));
    const largest = q.reduce((m, x) => Math.max(m, Math.abs(x)), 0);
    const integers = (most: number) => {
      const inverse = largest >= TINY ? f(most / largest) : 0;
      return { x: q.map((x) => nearest(f(x * inverse))), step: largest >= TINY ? f(largest / most) : 0 };
    };
    return { q, fine: integers(FINE), coarse: integers(COARSE_QUERY) };
  };

  const attend = (a: AttendArgs): void => {
    const { headDim, heads, exact } = a;
    const group = heads / exact.kvHeads;
    // Scores are exponents of 2.
    const scale = f(f(a.scale) * LOG2E);
    for (let kvHead = 0; kvHead < exact.kvHeads; kvHead++) {
      const { pieces, mass, exactAt } = piecesOf(a, kvHead);
      for (let row = 0; row < a.rows; row++) {
        const cells = exactAt + a.visible + row;
        const scores = new Float32Array((cells + PIECE + 3) & ~3).fill(-Infinity);
        for (let head = kvHead * group; head < (kvHead + 1) * group; head++) {
          const offset = row * a.ldQ + head * headDim;
          scores.fill(-Infinity);
          for (const p of pieces) {
            const { q, fine, coarse } = queryAt(p.q, offset, headDim, scale);
            const qi = p.kBits === 8 ? fine : coarse;
            const before = p.first && p.firstQ ? queryAt(p.firstQ, offset, headDim, scale).q : q;
            const qMean = p.mean ? dot(q, p.mean) : 0;
            for (let i = 0; i < p.n && p.at + i < cells; i++) {
              let sum = 0;
              const x = p.k.subarray(i * headDim, (i + 1) * headDim);
              if (p.kScale) {
                for (let c = 0; c < headDim; c++) sum += qi.x[c]! * x[c]!;
                scores[p.at + i] = f(f(f(f(sum) * p.kScale[i]!) * qi.step) + qMean);
              } else {
                scores[p.at + i] = dot(x, i < (p.first ?? 0) ? before : q);
              }
            }
          }

          let max = -Infinity;
          for (let i = 0; i < cells; i++) max = Math.max(max, scores[i]!);
          const total = [0, 0, 0, 0];
          for (let from = 0; from < cells; from += PIECE) {
            const part = [0, 0, 0, 0];
            for (let i = from; i < Math.min(from + PIECE, cells); i++) {
              scores[i] = powerOf2(f(scores[i]! - max));
              part[i & 3] = f(part[i & 3]! + scores[i]!);
            }
            for (let l = 0; l < 4; l++) total[l] = f(total[l]! + part[l]!);
          }
          const inverse = f(1 / lanes(total));
          const toMass = f(inverse * a.mass);
          const index = (a.position + row) * heads + head;
          const dither = a.massMode === 'max' ? 0 : massDither(index);

          const out = new Float32Array(headDim);
          const weightsOf = (p: Piece) =>
            scores.subarray(p.at, p.at + Math.max(Math.min(p.n, cells - p.at), 0));
          for (let i = 0, end = 0; i < pieces.length; i = end) {
            for (end = i + 1; end < pieces.length && together(pieces[i]!, pieces[end]!); ) end++;
            const part = pieces.slice(i, end);
            if (part[0]!.vScale) addIntegers(part, part.map(weightsOf), out, index);
            else addFloats(part[0]!.v, weightsOf(part[0]!), out);
          }
          pieces.forEach((p, i) => {
            const at = mass[i]! >> 1;
            if (!at) return;
            const words = u16();
            for (const [cell, w] of weightsOf(p).entries()) {
              const held = words[at + cell]!;
              const units = nearest(f(f(w * toMass) + dither));
              words[at + cell] = a.massMode === 'max' ? Math.max(held, units) : Math.min(held + units, 65535);
            }
          });
          f32().set(
            out.map((x) => f(x * inverse)),
            (a.out >> 2) + row * a.ldOut + head * headDim,
          );
        }
      }
    }
  };

  /** out += w . v. */
  const addFloats = (v: Float32Array, w: Float32Array, out: Float32Array): void => {
    const headDim = out.length;
    for (let first = 0; first < w.length; first += FLOAT_PIECE)
      for (let c = 0; c < headDim; c++) {
        let sum = 0;
        for (let i = first; i < Math.min(first + FLOAT_PIECE, w.length); i++)
          sum = f(sum + f(v[i * headDim + c]! * w[i]!));
        out[c] = f(out[c]! + sum);
      }
  };

  /**
   * The same with integers: levels, and weights times scales relative to the largest of all `pieces`, 15 bits for values of 8 bits, else
   * 7, dithered.
   */
  const addIntegers = (
    pieces: readonly Piece[],
    weights: readonly Float32Array[],
    out: Float32Array,
    index: number,
  ): void => {
    const headDim = out.length;
    const scaled = weights.map((w, p) => w.map((x, i) => f(x * pieces[p]!.vScale![i]!)));
    const largest = Math.max(...scaled.map((part) => part.reduce((m, x) => Math.max(m, x), 0)));
    if (!(largest >= TINY)) return;
    const coarse = pieces[0]!.vBits <= 4;
    const most = coarse ? COARSE : FINE;
    const inverse = f(most / largest);
    const step = f(largest / most);
    const sums = new Float64Array(headDim);
    for (const [p, { at, v }] of pieces.entries())
      for (const [i, x] of scaled[p]!.entries()) {
        const dither = coarse ? weightDither(index, at - pieces[0]!.at + i) : 0;
        const w = nearest(f(f(x * inverse) + dither));
        for (let c = 0; c < headDim; c++) sums[c] = sums[c]! + w * v[i * headDim + c]!;
      }
    for (let c = 0; c < headDim; c++) out[c] = f(out[c]! + f(f(sums[c]!) * step));
  };

  return attend;
}
