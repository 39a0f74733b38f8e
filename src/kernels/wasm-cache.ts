import type { Arena, Ptr } from '../core/arena.ts';
import { InvalidInputError } from '../core/errors.ts';
import { attendWorkspaceBytes } from './attend-workspace.ts';
import { checkNeverFiner, checkNotMixed } from './cache-math.ts';
import type { ExactRef } from './kernels.ts';
import {
  exactHalfBytes,
  exactKAt,
  exactMassAt,
  exactVAt,
  hadamardSize,
  massBytes,
  recordTiers,
} from './layout.ts';
import type { CacheKernels } from './reference-cache.ts';

/** What the cache kernels use of the WASM module's exports; the functions are those of wasm/index.ts. */
export interface CacheExports {
  hadamard(x: Ptr, ldX: number, rows: number, width: number, size: number, norm: number): void;
  appendHalf(
    x: Ptr,
    ldX: number,
    rows: number,
    kvHeads: number,
    headDim: number,
    bits: number,
    to: Ptr,
    ldHead: number,
  ): void;
  moveBytes(to: Ptr, from: Ptr, bytes: number): void;
  decayMass(mass: Ptr, count: number, numerator: number): void;
  encodeRecord(
    k: Ptr,
    v: Ptr,
    bits: number,
    tokens: number,
    headDim: number,
    tiers: Ptr,
    out: Ptr,
    massIn: Ptr,
    massOut: Ptr,
  ): number;
  /** -1: some token would get a finer tier, or one of the other kind; nothing was written. */
  recodeRecord(
    record: Ptr,
    tokens: number,
    headDim: number,
    tiers: Ptr,
    out: Ptr,
    massIn: Ptr,
    massOut: Ptr,
  ): number;
  decodeRecord(record: Ptr, tokens: number, headDim: number, k: Ptr, v: Ptr): void;
  attend(
    q: Ptr,
    ldQ: number,
    rows: number,
    heads: number,
    kvHeads: number,
    headDim: number,
    scale: number,
    segments: Ptr,
    segmentCount: number,
    segmentQueries: Ptr,
    sinkQueries: Ptr,
    sinks: number,
    exact: Ptr,
    exactBits: number,
    exactHalf: number,
    exactMass: Ptr,
    ldExactMass: number,
    visible: number,
    out: Ptr,
    ldOut: number,
    massUnit: number,
    massLargest: boolean,
    position: number,
    integerArithmetic: boolean,
    workspace: Ptr,
    workspaceBytes: number,
  ): number;
}

/** Static scratch of wasm/simd/record.ts and unpack.ts. */
const MAX_HEAD_DIM = 512;

const checkHeadDim = (headDim: number): void => {
  if (headDim % 4 !== 0 || headDim < 4 || headDim > MAX_HEAD_DIM)
    throw new InvalidInputError(
      `headDim must be a multiple of 4 within 4..${MAX_HEAD_DIM}, not ${headDim}`,
      'headDim',
    );
};

/** The cache kernels in WASM. They give the bits of the reference, with relaxed and with plain SIMD alike. */
export function cacheWasm(wasm: CacheExports, arena: Arena): CacheKernels {
  const tiersAt = (at: Ptr, tokens: number) => new Uint8Array(arena.memory.buffer, at, tokens);
  const rowBytes = (e: ExactRef): number => (e.headDim * e.bits) / 8;
  return {
    hadamard(x, ldX, rows, heads, headDim) {
      checkHeadDim(headDim);
      const size = hadamardSize(headDim);
      wasm.hadamard(x, ldX, rows, heads * headDim, size, 1 / Math.sqrt(size));
    },

    appendExact(e, slot, rows, k, v, ldX) {
      checkHeadDim(e.headDim);
      const at = e.ptr + slot * rowBytes(e);
      const perHead = 2 * exactHalfBytes(e);
      wasm.appendHalf(k, ldX, rows, e.kvHeads, e.headDim, e.bits, at + exactKAt(e, 0), perHead);
      wasm.appendHalf(v, ldX, rows, e.kvHeads, e.headDim, e.bits, at + exactVAt(e, 0), perHead);
    },

    moveExact(e, from, to, count) {
      const move = (at: Ptr, bytes: number): void =>
        wasm.moveBytes(e.ptr + at + to * bytes, e.ptr + at + from * bytes, count * bytes);
      for (let h = 0; h < e.kvHeads; h++) {
        move(exactKAt(e, h), rowBytes(e));
        move(exactVAt(e, h), rowBytes(e));
        if (e.mass) move(exactMassAt(e, h), 2);
      }
    },

    attend(a) {
      const { exact } = a;
      checkHeadDim(a.headDim);
      const needed = wasm.attend(
        a.q,
        a.ldQ,
        a.rows,
        a.heads,
        exact.kvHeads,
        a.headDim,
        a.scale,
        a.segments,
        a.segmentCount,
        a.segmentQueries ?? 0,
        a.sinkQueries ?? 0,
        a.sinks ?? 0,
        exact.ptr,
        exact.bits,
        exactHalfBytes(exact),
        a.mass ? exact.ptr + exactMassAt(exact, 0) : 0,
        massBytes(exact.capacity),
        a.visible,
        a.out,
        a.ldOut,
        a.mass,
        a.massMode === 'max',
        a.position,
        a.arithmetic === 'integer',
        a.workspace,
        a.workspaceBytes,
      );
      if (needed)
        throw new InvalidInputError(
          `attend needs a workspace of ${needed} bytes, not ${a.workspaceBytes}: ask attendWorkspaceBytes`,
          'workspaceBytes',
        );
    },
    attendWorkspaceBytes,

    encodeRecord(e, kvHead, slot, tokens, tiers, out, massOut) {
      checkHeadDim(e.headDim);
      checkNotMixed(tiersAt(tiers, tokens));
      const row = slot * rowBytes(e);
      return wasm.encodeRecord(
        e.ptr + exactKAt(e, kvHead) + row,
        e.ptr + exactVAt(e, kvHead) + row,
        e.bits,
        tokens,
        e.headDim,
        tiers,
        out,
        e.mass ? e.ptr + exactMassAt(e, kvHead) + slot * 2 : 0,
        massOut,
      );
    },

    recodeRecord(record, tokens, headDim, tiers, out, mass, massOut) {
      checkHeadDim(headDim);
      const bytes = wasm.recodeRecord(record, tokens, headDim, tiers, out, mass, massOut);
      if (bytes >= 0) return bytes;
      const before = new Uint8Array(tokens);
      recordTiers(new Uint8Array(arena.memory.buffer), record, tokens, headDim, before);
      checkNeverFiner(before, tiersAt(tiers, tokens));
      throw new Error('a record was refused whose tiers never become finer');
    },

    decodeRecord(record, tokens, headDim, k, v) {
      checkHeadDim(headDim);
      wasm.decodeRecord(record, tokens, headDim, k, v);
    },

    decayMass: (mass, count, numerator) => wasm.decayMass(mass, count, numerator),
    copyBytes: (from, to, bytes) => wasm.moveBytes(to, from, bytes),
    hostWrote: () => {},
  };
}
