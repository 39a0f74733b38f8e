import type { Arena, Ptr } from '../core/arena.ts';
import type { PlanInstances } from './wasm-plan.ts';

/**
 * The one interface of all kernels. Implementations: `reference.ts` (plain TypeScript; defines the truth) and `wasm.ts`
 * (AssemblyScript, relaxed or plain SIMD). All operands are addresses in the backend's linear
 * memory, which the caller owns; kernels keep no state between calls. All methods are synchronous: a caller that must
 * yield splits its work by calls.
 *
 * Rules every implementation keeps:
 * - Row-invariance: a row's result is bit-identical whether it is computed alone or among 128 (fixed reduction
 *   order, activation scales per row, integer mass accumulation).
 * - No host-dependent arithmetic: no relaxed_madd, and the relaxed dot's second operand within 0..127. So `wasm` gives the same
 *   bits with relaxed and with plain SIMD, on every host.
 * - Nothing is written outside the stated outputs and the workspace.
 */
export interface Kernels {
  readonly name: 'wasm' | 'reference';
  /** Names everything that may change bits: backend and version. Stored with every session. */
  readonly numerics: string;
  /** 'relaxed', 'simd' or 'scalar'. */
  readonly variant: string;
  readonly arena: Arena;
  /** Makes plans of a cache's policy faster, to the same bits; absent: they are made in TypeScript. */
  readonly plans?: PlanInstances;

  // ---- products -----------------------------------------------------------------------------------------------
  /** Bytes that `prepareActivation` writes for `rows` rows of k elements. 0 for 'f32': the operand is x itself. */
  activationBytes(kind: ActivationKind, rows: number, k: number): number;
  /** x f32 [rows, k] -> the operand form that `kind` wants (quantised per row in groups of 32, perhaps rotated). */
  prepareActivation(kind: ActivationKind, x: Ptr, rows: number, k: number, out: Ptr): void;
  /**
   * out f32 [rows, n] = activation [rows, k] x weight [n, k] transposed.
   * `activation` is what prepareActivation(activationKind(form)) wrote, or x itself for 'f32'.
   * `ldOut`: elements between rows of `out` (>= n), so that fused projections write side by side.
   */
  matmul(
    form: WeightForm,
    activation: Ptr,
    rows: number,
    weight: Ptr,
    n: number,
    k: number,
    out: Ptr,
    ldOut: number,
  ): void;
  /** out f32 [count, k]: rows `ids` (u32 [count]) of the table [n, k]. */
  embed(form: WeightForm, table: Ptr, n: number, k: number, ids: Ptr, count: number, out: Ptr): void;

  // ---- rows ---------------------------------------------------------------------------------------------------
  /** out = x * weight / sqrt(mean(x^2) + eps); x, out f32 [rows, dim], may be the same. */
  rmsNorm(x: Ptr, weight: Ptr, rows: number, dim: number, eps: number, out: Ptr): void;
  /** out[i] = a[i] + b[i]; count f32 elements; out may be a or b. */
  add(a: Ptr, b: Ptr, count: number, out: Ptr): void;
  mul(a: Ptr, b: Ptr, count: number, out: Ptr): void;
  sigmoid(x: Ptr, count: number, out: Ptr): void;
  /** out[i] = gate[i] * sigmoid(gate[i]) * up[i]. */
  siluMul(gate: Ptr, up: Ptr, count: number, out: Ptr): void;
  /**
   * Rotary embedding, in place, rotate-half form (channel i pairs with i + headDim/2).
   * x f32: row r starts at x + r * ldX * 4 and holds [heads, headDim].
   * cos, sin f32 [positions, headDim/2]; row r is at position `position + r`.
   */
  rope(
    x: Ptr,
    ldX: number,
    rows: number,
    heads: number,
    headDim: number,
    cos: Ptr,
    sin: Ptr,
    position: number,
  ): void;
  /** Orthonormal Hadamard rotation of each head's vector, in place; its own inverse. Same row layout as `rope`. */
  hadamard(x: Ptr, ldX: number, rows: number, heads: number, headDim: number): void;

  // ---- cache --------------------------------------------------------------------------------------------------
  /**
   * Writes rows of keys and values into the exact part at slots slot .. slot + rows - 1.
   * k, v f32, rotated, rows ldX elements apart, each [kvHeads, headDim]. f16 rounds to nearest even.
   */
  appendExact(exact: ExactRef, slot: number, rows: number, k: Ptr, v: Ptr, ldX: number): void;
  /** Moves the cells (keys, values, mass) of `count` slots from `from` to `to` (to < from), ascending; zeroes nothing. */
  moveExact(exact: ExactRef, from: number, to: number, count: number): void;
  attend(args: AttendArgs): void;
  /** Workspace bytes `attend` wants for this many rows and cells in all (records + exact part); it tiles, so it is bounded by 4 MB. */
  attendWorkspaceBytes(a: {
    rows: number;
    heads: number;
    kvHeads: number;
    headDim: number;
    cells: number;
  }): number;
  /**
   * Encodes exact slots slot .. slot + tokens - 1 of one kvHead into a record at `out`.
   * tiers u8 [tokens]: a tier id or DROP for each token. The mean is taken over all `tokens` keys as they are held.
   * massOut u16 [cells] or 0: receives the slots' mass in cell order (padding cells 0).
   * @returns the record's bytes, equal to recordBytes(tokens, counts, headDim); 0 writes nothing
   * @throws InvalidInputError if plain tiers stand beside others
   */
  encodeRecord(
    exact: ExactRef,
    kvHead: number,
    slot: number,
    tokens: number,
    tiers: Ptr,
    out: Ptr,
    massOut: Ptr,
  ): number;
  /**
   * Rewrites a record under a new tier map (u8 [tokens], never a lower id than before, and neither from nor to a plain tier). A half whose bits
   * do not change moves bit for bit; another is decoded and encoded again. mass/massOut: u16 cells before and after, or 0.
   * @returns the new record's bytes; 0 writes nothing
   */
  recodeRecord(
    record: Ptr,
    tokens: number,
    headDim: number,
    tiers: Ptr,
    out: Ptr,
    mass: Ptr,
    massOut: Ptr,
  ): number;
  /** Decodes a record: k, v f32 [tokens, headDim] in position order, rotated, mean added; dropped tokens are zero. */
  decodeRecord(record: Ptr, tokens: number, headDim: number, k: Ptr, v: Ptr): void;
  /** mass[i] = floor((mass[i] * numerator + 2^15) / 2^16) for count u16 values, a multiple of 4 (numerator <= 65536). */
  decayMass(mass: Ptr, count: number, numerator: number): void;
  /** Copies an even number of bytes to a place apart; addresses are even. */
  copyBytes(from: Ptr, to: Ptr, bytes: number): void;
  /** The caller wrote these bytes through the arena's buffer: a backend whose bytes lie elsewhere takes them over. */
  hostWrote(at: Ptr, bytes: number): void;
}

/** What a cache needs of its kernels. On a GPU they only record what is to be done; results stay there until they are asked for. */
export type RecordKernels = Pick<
  Kernels,
  | 'arena'
  | 'numerics'
  | 'moveExact'
  | 'encodeRecord'
  | 'recodeRecord'
  | 'decayMass'
  | 'copyBytes'
  | 'hostWrote'
> & {
  /** Where the host reads records itself. */
  readonly decodeRecord?: Kernels['decodeRecord'];
  /** Brings bytes that lie elsewhere into the arena's buffer; absent where the arena's buffer is the only place. */
  fetch?(ranges: readonly { readonly at: Ptr; readonly bytes: number }[]): Promise<void>;
};

/** The exact part of one layer; see layout.ts. */
export interface ExactRef {
  readonly ptr: Ptr;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly capacity: number;
  readonly bits: 16 | 32;
  readonly mass: boolean;
}

/**
 * One layer's attention for a chunk of queries that lies within one epoch. The chunk's own keys were appended before:
 * row r sees every visible cell of every segment and the exact slots 0 .. visible + r - 1 (`visible` counts row 0's own slot).
 * Softmax runs over all of them, in this order: segments in order (a record's cells in order), then the exact slots.
 */
export interface AttendArgs {
  /** f32, rotated, not scaled; row r at q + r * ldQ * 4, [heads, headDim]. Head h reads kvHead floor(h / (heads / kvHeads)). */
  q: Ptr;
  ldQ: number;
  rows: number;
  heads: number;
  headDim: number;
  scale: number;
  /** u32 [segmentCount]: addresses of the layer's segment blocks. */
  segments: Ptr;
  segmentCount: number;
  /**
   * u32 [segmentCount]: the queries to use for each segment, rows as in q; 0 stands for q. 0 or absent: q for all.
   * For segments whose keys were rotated at other positions than they have now.
   */
  segmentQueries?: Ptr;
  /** The queries to use for the exact slots before `sinks`, rows as in q; 0 or absent: q. */
  sinkQueries?: Ptr;
  sinks?: number;
  exact: ExactRef;
  visible: number;
  /** f32 [rows, heads, headDim], rows ldOut elements apart; still rotated. */
  out: Ptr;
  ldOut: number;
  /**
   * Units of attention history that a probability of 1 adds to a cell's u16 mass, at most 65535; 0: none is kept. Each query head adds
   * round(p * mass + massDither(its index among all queries)), saturating: unbiased also where p is far below a unit, and the same in any order.
   */
  mass: number;
  /** 'max': a cell keeps the largest round(p * mass) instead of the sum. */
  massMode?: 'sum' | 'max';
  /** Absolute position of row 0; decides the dither alone. */
  position: number;
  /**
   * 'integer': queries quantised per row, scores and weighted values of packed cells by integer dots.
   * 'float': packed cells are decoded and read with f32 arithmetic (`--exact`).
   */
  arithmetic: 'integer' | 'float';
  workspace: Ptr;
  workspaceBytes: number;
}

/**
 * How a matrix [n, k] is held. weights.ts makes the bytes and says their layout.
 * - f32     as is; float32 activations
 * - q4_1    GGUF Q4_1's exact values (blocks of 32: f16 scale, f16 minimum, 4-bit codes); float32 activations
 * - q8_0    GGUF Q8_0's exact values; float32 activations
 * - q4r     Q4_1 recoded: 4-bit codes as they were, 8-bit block scales and minima on a per-row f32 grid (4.5 bits); int8 activations
 * - q6h     6 bits after a Hadamard-64 rotation along k, scale per group of 64 (6.25 bits); rotated int8 activations
 */
export type WeightForm = 'f32' | 'q4_1' | 'q8_0' | 'q4r' | 'q6h';
export type ActivationKind = 'f32' | 'i8' | 'i8h64';
export const activationKind = (form: WeightForm): ActivationKind =>
  form === 'q4r' ? 'i8' : form === 'q6h' ? 'i8h64' : 'f32';
