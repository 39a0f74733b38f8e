import type { Arena, Ptr } from '../core/arena.ts';
import { attendWorkspaceBytes } from './attend-workspace.ts';
import {
  checkNeverFiner,
  countTiers,
  expNonPositive,
  FINE,
  fromF16,
  lanes,
  levelOf,
  meanAt,
  nearest,
  quantise,
  readCode,
  TIER_MAP_AT,
  TINY,
  type TierGroup,
  tierGroups,
  toF16,
  writeCode,
} from './cache-math.ts';
import type { AttendArgs, ExactRef, Kernels } from './kernels.ts';
import {
  type Bits,
  DROP,
  exactKAt,
  exactMassAt,
  exactVAt,
  hadamardSize,
  halfBlockBytes,
  MASS_ONE,
  massBytes,
  recordBytes,
  recordCells,
  SEGMENT_HEADER_BYTES,
} from './layout.ts';

export type CacheKernels = Pick<
  Kernels,
  | 'hadamard'
  | 'appendExact'
  | 'moveExact'
  | 'attend'
  | 'attendWorkspaceBytes'
  | 'encodeRecord'
  | 'recodeRecord'
  | 'decodeRecord'
  | 'decayMass'
>;

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
  /** Float keys [n][headDim], or integer levels with a scale a cell. */
  readonly k: Float32Array;
  readonly kScale: Float32Array | undefined;
  readonly v: Float32Array;
  readonly vScale: Float32Array | undefined;
  /** Added to the scores as query . mean; integer keys only. */
  readonly mean: Float32Array | undefined;
}

/** The cache kernels in plain TypeScript. They define the truth; see kernels.ts for the contracts. */
export function cacheReference(arena: Arena): CacheKernels {
  const u8 = () => new Uint8Array(arena.memory.buffer);
  const u16 = () => new Uint16Array(arena.memory.buffer);
  const u32 = () => new Uint32Array(arena.memory.buffer);
  const f32 = () => new Float32Array(arena.memory.buffer);

  const floats = (bits: 16 | 32, at: Ptr, count: number): Float32Array =>
    bits === 32
      ? f32().slice(at >> 2, (at >> 2) + count)
      : Float32Array.from(u16().subarray(at >> 1, (at >> 1) + count), fromF16);

  /** One token's vector in a half block: float values, or integer levels. */
  const vector = (half: 'k' | 'v', bits: Bits, blocks: Ptr, headDim: number, cell: number): Float32Array => {
    if (bits > 8) return floats(bits as 16 | 32, blocks + (cell * headDim * bits) / 8, headDim);
    const block = blocks + (cell >> 2) * halfBlockBytes(bits, headDim);
    const bytes = u8();
    return Float32Array.from({ length: headDim }, (_, c) =>
      levelOf(bits, readCode(bytes, block, half, bits, headDim, cell & 3, c)),
    );
  };

  const recordAt = (record: Ptr, tokens: number, headDim: number) => {
    const bytes = u8();
    return {
      groups: tierGroups(bytes.subarray(record, record + 16), tokens, headDim),
      mean: floats(16, record + meanAt(tokens), headDim),
      tiers: Uint8Array.from(
        { length: tokens },
        (_, t) => (bytes[record + TIER_MAP_AT + (t >> 1)]! >> ((t & 1) * 4)) & 15,
      ),
    };
  };

  interface Source {
    readonly bits: Bits;
    /** Float values (keys with the mean), or integer levels. */
    readonly values: Float32Array;
    readonly codes: Uint8Array | undefined;
    readonly scale: number;
  }

  /** Writes a record whose halves come from `source`; a half of unchanged bits keeps its bits. */
  const build = (
    tokens: number,
    headDim: number,
    tiers: Uint8Array,
    mean: Float32Array,
    source: (half: 'k' | 'v', token: number) => Source,
    out: Ptr,
  ): number => {
    const counts = countTiers(tiers);
    const size = recordBytes(tokens, counts, headDim);
    const bytes = u8();
    const halves = u16();
    const words = f32();
    bytes.fill(0, out, out + size);
    bytes.set(counts, out);
    for (let t = 0; t < tokens; t++) bytes[out + TIER_MAP_AT + (t >> 1)]! |= tiers[t]! << ((t & 1) * 4);
    for (let c = 0; c < headDim; c++) halves[((out + meanAt(tokens)) >> 1) + c] = toF16(mean[c]!);

    const place = (half: 'k' | 'v', bits: Bits, at: Ptr, scaleAt: Ptr, cell: number, token: number): void => {
      const from = source(half, token);
      const value = (c: number) =>
        from.bits > 8 ? from.values[c]! : f(fromF16(from.scale) * from.values[c]!);
      if (bits > 8) {
        const to = at + (cell * headDim * bits) / 8;
        for (let c = 0; c < headDim; c++)
          if (bits === 32) words[(to >> 2) + c] = value(c);
          else halves[(to >> 1) + c] = toF16(value(c));
        return;
      }
      let { codes, scale } = from;
      if (from.bits !== bits) {
        const centred = half === 'k' && from.bits > 8;
        const x = Float32Array.from({ length: headDim }, (_, c) =>
          centred ? f(value(c) - mean[c]!) : value(c),
        );
        codes = new Uint8Array(headDim);
        scale = quantise(bits as 1 | 2 | 3 | 4 | 8, x, codes);
      }
      halves[(scaleAt >> 1) + cell] = scale;
      const block = at + (cell >> 2) * halfBlockBytes(bits, headDim);
      for (let c = 0; c < headDim; c++) writeCode(bytes, block, half, bits, headDim, cell & 3, c, codes![c]!);
    };
    for (const g of tierGroups(counts, tokens, headDim)) {
      let cell = 0;
      for (let t = 0; t < tokens; t++) {
        if (tiers[t] !== g.id) continue;
        place('k', g.kBits, out + g.k, out + g.kScale, cell, t);
        place('v', g.vBits, out + g.v, out + g.vScale, cell, t);
        cell++;
      }
    }
    return size;
  };

  /** Cell index of each token within a record, -1 where dropped. */
  const cellsOf = (groups: readonly TierGroup[], tiers: Uint8Array): Int32Array => {
    const next = new Map(groups.map((g) => [g.id, g.cell]));
    return Int32Array.from(tiers, (id) => {
      if (id === DROP) return -1;
      const cell = next.get(id)!;
      next.set(id, cell + 1);
      return cell;
    });
  };

  /** Every piece that a kvHead's queries see, and where each piece's mass lies (0 without mass). */
  const piecesOf = (a: AttendArgs, kvHead: number): { pieces: Piece[]; mass: Ptr[]; exactAt: number } => {
    const { headDim, exact } = a;
    const pieces: Piece[] = [];
    const mass: Ptr[] = [];
    let at = 0;
    for (let s = 0; s < a.segmentCount; s++) {
      const block = u32()[(a.segments >> 2) + s]!;
      const [tokens, storedBytes] = [u32()[(block >> 2) + 1]!, u32()[(block >> 2) + 2]!];
      const recordOf = (h: number) => block + u32()[((block + SEGMENT_HEADER_BYTES) >> 2) + h]!;
      let massAt = block + storedBytes;
      for (let h = 0; h < kvHead; h++)
        massAt += massBytes(recordCells(u8().subarray(recordOf(h), recordOf(h) + 16)));
      const record = recordOf(kvHead);
      const { groups, mean } = recordAt(record, tokens, headDim);
      for (const g of groups) {
        const rows = (half: 'k' | 'v', bits: Bits, blocks: Ptr, scale: Float32Array | undefined) => {
          const all = new Float32Array(g.n4 * headDim);
          for (let i = 0; i < g.n; i++) {
            const x = vector(half, bits, record + blocks, headDim, i);
            if (scale && a.arithmetic === 'float')
              for (let c = 0; c < headDim; c++) {
                const y = f(scale[i]! * x[c]!);
                x[c] = half === 'k' ? f(y + mean[c]!) : y;
              }
            all.set(x, i * headDim);
          }
          return all;
        };
        const kScale = g.kScale ? floats(16, record + g.kScale, g.n4) : undefined;
        const vScale = g.vScale ? floats(16, record + g.vScale, g.n4) : undefined;
        const integer = a.arithmetic === 'integer';
        pieces.push({
          at,
          n4: g.n4,
          n: g.n,
          k: rows('k', g.kBits, g.k, kScale),
          kScale: integer ? kScale : undefined,
          v: rows('v', g.vBits, g.v, vScale),
          vScale: integer ? vScale : undefined,
          mean: integer && kScale ? mean : undefined,
        });
        mass.push(a.mass ? massAt + g.cell * 4 : 0);
        at += g.n4;
      }
    }
    const exactAt = at;
    const slots = a.visible + a.rows - 1;
    for (let slot = 0; slot < slots; slot += PIECE) {
      const n = Math.min(PIECE, slots - slot);
      const offset = (slot * headDim * exact.bits) / 8;
      const read = (half: Ptr) => floats(exact.bits, exact.ptr + half + offset, n * headDim);
      pieces.push({
        at: exactAt + slot,
        n4: (n + 3) & ~3,
        n,
        k: read(exactKAt(exact, kvHead)),
        v: read(exactVAt(exact, kvHead)),
        kScale: undefined,
        vScale: undefined,
        mean: undefined,
      });
      mass.push(a.mass ? exact.ptr + exactMassAt(exact, kvHead) + slot * 4 : 0);
    }
    return { pieces, mass, exactAt };
  };

  const dot = (a: Float32Array, b: Float32Array): number => {
    const l = [0, 0, 0, 0];
    for (let c = 0; c < a.length; c++) l[c & 3] = f(l[c & 3]! + f(a[c]! * b[c]!));
    return lanes(l);
  };

  const attend = (a: AttendArgs): void => {
    const { headDim, heads, exact } = a;
    const group = heads / exact.kvHeads;
    const scale = f(a.scale);
    for (let kvHead = 0; kvHead < exact.kvHeads; kvHead++) {
      const { pieces, mass, exactAt } = piecesOf(a, kvHead);
      for (let row = 0; row < a.rows; row++) {
        const cells = exactAt + a.visible + row;
        const scores = new Float32Array((cells + PIECE + 3) & ~3).fill(-Infinity);
        for (let head = kvHead * group; head < (kvHead + 1) * group; head++) {
          const qAt = (a.q >> 2) + row * a.ldQ + head * headDim;
          const q = f32()
            .slice(qAt, qAt + headDim)
            .map((x) => f(x * scale));
          const largest = q.reduce((m, x) => Math.max(m, Math.abs(x)), 0);
          const fine = largest >= TINY;
          const qStep = fine ? f(largest / FINE) : 0;
          const qInverse = fine ? f(FINE / largest) : 0;
          const qi = q.map((x) => nearest(f(x * qInverse)));

          scores.fill(-Infinity);
          for (const p of pieces) {
            const qMean = p.mean ? dot(q, p.mean) : 0;
            for (let i = 0; i < p.n && p.at + i < cells; i++) {
              let sum = 0;
              const x = p.k.subarray(i * headDim, (i + 1) * headDim);
              if (p.kScale) {
                for (let c = 0; c < headDim; c++) sum += qi[c]! * x[c]!;
                scores[p.at + i] = f(f(f(f(sum) * p.kScale[i]!) * qStep) + qMean);
              } else {
                scores[p.at + i] = dot(x, q);
              }
            }
          }

          let max = -Infinity;
          for (let i = 0; i < cells; i++) max = Math.max(max, scores[i]!);
          const total = [0, 0, 0, 0];
          for (let from = 0; from < cells; from += PIECE) {
            const part = [0, 0, 0, 0];
            for (let i = from; i < Math.min(from + PIECE, cells); i++) {
              scores[i] = expNonPositive(f(scores[i]! - max));
              part[i & 3] = f(part[i & 3]! + scores[i]!);
            }
            for (let l = 0; l < 4; l++) total[l] = f(total[l]! + part[l]!);
          }
          const inverse = f(1 / lanes(total));
          const toMass = f(inverse * MASS_ONE);

          const out = new Float32Array(headDim);
          pieces.forEach((p, index) => {
            const seen = Math.min(p.n, cells - p.at);
            const w = scores.subarray(p.at, p.at + Math.max(seen, 0));
            addWeighted(p, w, out);
            const at = mass[index]! >> 2;
            if (at) {
              const words = u32();
              for (let i = 0; i < seen; i++)
                words[at + i] = Math.min(words[at + i]! + nearest(f(w[i]! * toMass)), 0xffffffff);
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

  /** out += w . values. Integer values: weights times scales as 15-bit integers relative to the piece's largest. */
  const addWeighted = (p: Piece, w: Float32Array, out: Float32Array): void => {
    const headDim = out.length;
    if (!p.vScale) {
      for (let first = 0; first < w.length; first += FLOAT_PIECE)
        for (let c = 0; c < headDim; c++) {
          let sum = 0;
          for (let i = first; i < Math.min(first + FLOAT_PIECE, w.length); i++)
            sum = f(sum + f(p.v[i * headDim + c]! * w[i]!));
          out[c] = f(out[c]! + sum);
        }
      return;
    }
    const scaled = w.map((x, i) => f(x * p.vScale![i]!));
    const largest = scaled.reduce((m, x) => Math.max(m, x), 0);
    if (!(largest >= TINY)) return;
    const inverse = f(FINE / largest);
    const step = f(largest / FINE);
    const fine = scaled.map((x) => nearest(f(x * inverse)));
    for (let c = 0; c < headDim; c++) {
      let sum = 0;
      for (let i = 0; i < fine.length; i++) sum += fine[i]! * p.v[i * headDim + c]!;
      out[c] = f(out[c]! + f(f(sum) * step));
    }
  };

  return {
    hadamard(x, ldX, rows, heads, headDim) {
      const all = f32();
      const size = hadamardSize(headDim);
      const norm = f(1 / Math.sqrt(size));
      for (let row = 0; row < rows; row++)
        for (let at = 0; at < heads * headDim; at += size) {
          const y = all.subarray((x >> 2) + row * ldX + at, (x >> 2) + row * ldX + at + size);
          for (let step = 1; step < size; step *= 2)
            for (let i = 0; i < size; i++) {
              if (i & step) continue;
              const [a, b] = [y[i]!, y[i + step]!];
              y[i] = a + b;
              y[i + step] = a - b;
            }
          for (let i = 0; i < size; i++) y[i] = y[i]! * norm;
        }
    },

    appendExact(e, slot, rows, k, v, ldX) {
      for (let row = 0; row < rows; row++)
        for (let h = 0; h < e.kvHeads; h++)
          for (const [from, half] of [
            [k, exactKAt(e, h)],
            [v, exactVAt(e, h)],
          ] as const)
            for (let c = 0; c < e.headDim; c++) {
              const value = f32()[(from >> 2) + row * ldX + h * e.headDim + c]!;
              const at = e.ptr + half + ((slot + row) * e.headDim + c) * (e.bits / 8);
              if (e.bits === 32) f32()[at >> 2] = value;
              else u16()[at >> 1] = toF16(value);
            }
    },

    moveExact(e, from, to, count) {
      const move = (at: Ptr, bytes: number): void => {
        u8().copyWithin(at + to * bytes, at + from * bytes, at + (from + count) * bytes);
      };
      for (let h = 0; h < e.kvHeads; h++) {
        move(e.ptr + exactKAt(e, h), (e.headDim * e.bits) / 8);
        move(e.ptr + exactVAt(e, h), (e.headDim * e.bits) / 8);
        if (e.mass) move(e.ptr + exactMassAt(e, h), 4);
      }
    },

    attend,
    attendWorkspaceBytes,

    encodeRecord(e: ExactRef, kvHead, slot, tokens, tiersAt, out, massOut) {
      const { headDim } = e;
      const tiers = u8().slice(tiersAt, tiersAt + tokens);
      const held = (half: Ptr) =>
        floats(e.bits, e.ptr + half + (slot * headDim * e.bits) / 8, tokens * headDim);
      const k = held(exactKAt(e, kvHead));
      const v = held(exactVAt(e, kvHead));
      const mean = new Float32Array(headDim);
      for (let t = 0; t < tokens; t++)
        for (let c = 0; c < headDim; c++) mean[c] = mean[c]! + k[t * headDim + c]!;
      for (let c = 0; c < headDim; c++) mean[c] = fromF16(toF16(f(mean[c]! / tokens)));

      const size = build(
        tokens,
        headDim,
        tiers,
        mean,
        (half, t) => ({
          bits: 32,
          values: (half === 'k' ? k : v).subarray(t * headDim, (t + 1) * headDim),
          codes: undefined,
          scale: 0,
        }),
        out,
      );
      if (massOut) {
        const groups = tierGroups(countTiers(tiers), tokens, headDim);
        const words = u32();
        words.fill(0, massOut >> 2, (massOut >> 2) + groups.reduce((n, g) => n + g.n4, 0));
        if (e.mass)
          cellsOf(groups, tiers).forEach((cell, t) => {
            if (cell >= 0)
              words[(massOut >> 2) + cell] = words[((e.ptr + exactMassAt(e, kvHead)) >> 2) + slot + t]!;
          });
      }
      return size;
    },

    recodeRecord(record, tokens, headDim, tiersAt, out, mass, massOut) {
      checkNeverFiner(u8(), record, tokens, tiersAt);
      const tiers = u8().slice(tiersAt, tiersAt + tokens);
      const before = recordAt(record, tokens, headDim);
      const cells = cellsOf(before.groups, before.tiers);
      const groupOf = new Map(before.groups.map((g) => [g.id, g]));
      const size = build(
        tokens,
        headDim,
        tiers,
        before.mean,
        (half, t) => {
          const g = groupOf.get(before.tiers[t]!)!;
          const cell = cells[t]! - g.cell;
          const bits = half === 'k' ? g.kBits : g.vBits;
          const blocks = record + (half === 'k' ? g.k : g.v);
          const values = vector(half, bits, blocks, headDim, cell);
          if (bits > 8) return { bits, values, codes: undefined, scale: 0 };
          const block = blocks + (cell >> 2) * halfBlockBytes(bits, headDim);
          const bytes = u8();
          const codes = Uint8Array.from({ length: headDim }, (_, c) =>
            readCode(bytes, block, half, bits, headDim, cell & 3, c),
          );
          const scale = u16()[((record + (half === 'k' ? g.kScale : g.vScale)) >> 1) + cell]!;
          return { bits, values, codes, scale };
        },
        out,
      );
      if (massOut) {
        const groups = tierGroups(countTiers(tiers), tokens, headDim);
        const words = u32();
        words.fill(0, massOut >> 2, (massOut >> 2) + groups.reduce((n, g) => n + g.n4, 0));
        if (mass)
          cellsOf(groups, tiers).forEach((cell, t) => {
            if (cell >= 0) words[(massOut >> 2) + cell] = words[(mass >> 2) + cells[t]!]!;
          });
      }
      return size;
    },

    decodeRecord(record, tokens, headDim, k, v) {
      const { groups, mean, tiers } = recordAt(record, tokens, headDim);
      const cells = cellsOf(groups, tiers);
      const groupOf = new Map(groups.map((g) => [g.id, g]));
      const out = f32();
      for (let t = 0; t < tokens; t++) {
        const g = groupOf.get(tiers[t]!);
        for (const half of ['k', 'v'] as const) {
          const to = ((half === 'k' ? k : v) >> 2) + t * headDim;
          if (!g) {
            out.fill(0, to, to + headDim);
            continue;
          }
          const cell = cells[t]! - g.cell;
          const bits = half === 'k' ? g.kBits : g.vBits;
          const x = vector(half, bits, record + (half === 'k' ? g.k : g.v), headDim, cell);
          if (bits <= 8) {
            const scale = fromF16(u16()[((record + (half === 'k' ? g.kScale : g.vScale)) >> 1) + cell]!);
            for (let c = 0; c < headDim; c++)
              x[c] = half === 'k' ? f(f(scale * x[c]!) + mean[c]!) : f(scale * x[c]!);
          }
          out.set(x, to);
        }
      }
    },

    decayMass(mass, count, numerator) {
      const words = u32();
      for (let i = mass >> 2; i < (mass >> 2) + count; i++)
        words[i] = Math.floor((words[i]! * numerator) / 65536);
    },
  };
}
